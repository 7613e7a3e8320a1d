"""Latency: what is reported, and what is refused. How fast anything is, is no test's business."""

import sys

import pytest
import torch
from exactness import images, logits, relative_error, same_state, state
from little_networks import WIDTH, Net, block
from torch import nn

import bpl
from bpl.channels import ChannelGraph
from bpl.layer_times import layers_of
from bpl.measure import image_channels
from bpl.memory import inference_memory, step_memory
from bpl.onnx_files import open_session
from bpl.pruning.channel_cost import ChannelCost
from bpl.pruning.masks import prunable_sets


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_measurement_says_what_it_depends_on(dtype):
    latency = bpl.measure_latency(Net().to(dtype), 8, 3, seconds=0.01, warm_up=1)
    assert 0 < latency.low_ms <= latency.median_ms <= latency.high_ms
    assert latency.passes >= 5
    assert (latency.backend, latency.batch_size, latency.image_size) == ("eager", 3, 8)
    assert latency.threads == torch.get_num_threads() and latency.device == "cpu"


def test_measuring_changes_nothing():
    model = Net().train()
    before = state(model)
    bpl.measure_latency(model, 8, seconds=0, warm_up=0)
    assert model.training and same_state(before, model.state_dict())
    assert model.stem[0].weight.is_contiguous()


def test_a_network_is_timed_in_evaluation_mode_on_the_batch_asked_for():
    model = Net().train()
    seen = []
    model.register_forward_hook(lambda module, inputs, _: seen.append((module.training, tuple(inputs[0].shape))))
    latency = bpl.measure_latency(model, 8, 4, seconds=0, warm_up=2)
    assert seen == [(False, (4, 3, 8, 8))] * (2 + latency.passes)


def test_at_least_five_passes_and_as_many_as_the_time_allows():
    assert bpl.measure_latency(Net(), 8, seconds=0).passes == 5
    assert bpl.measure_latency(Net(), 8, seconds=0.5).passes > 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "tpu"}, "unknown backend 'tpu': allowed are eager, compile, onnxruntime"),
        ({"batch_size": 0}, "batch_size is 0: it must be a whole number of at least 1"),
        ({"warm_up": -1}, "warm_up is -1: it must be a whole number of at least 0"),
        ({"seconds": -1.0}, "seconds is -1.0: it must be a number of at least 0"),
        ({"seconds": "a"}, "seconds is 'a': it must be a number of at least 0"),
    ],
)
def test_a_bad_option_is_named_with_what_is_allowed(options, message):
    with pytest.raises(ValueError, match=message):
        bpl.measure_latency(Net(), 8, **options)


def test_a_network_with_partners_is_not_exported_to_be_timed():
    if "onnxruntime" not in sys.modules:
        pytest.importorskip("onnxruntime")
    with pytest.raises(ValueError, match="'stem.0' still has a partner: call bpl.fuse_partners"):
        bpl.measure_latency(bpl.grow_partners(Net()), 8, backend="onnxruntime", seconds=0)


@pytest.mark.slow
def test_compiled_networks_are_timed_too():
    assert bpl.measure_latency(Net(), 8, backend="compile", seconds=0).backend == "compile"


# -- images with other than 3 channels ------------------------------------------------------------------------------
def taking(channels: int) -> nn.Module:
    model = Net()
    model.stem = block(channels)
    return model


@pytest.mark.parametrize("channels", [1, 4])
def test_a_network_is_counted_and_timed_on_images_with_its_own_channels(channels, tmp_path):
    grown = bpl.grow_partners(taking(channels))
    model = bpl.slim(bpl.fuse_partners(grown), bpl.prune_masks(grown, 0.5))
    kept = WIDTH // 2
    assert bpl.count_macs(model, 8) == (channels * kept + kept * kept) * 9 * 64 + kept * 5
    assert bpl.measure_latency(model, 8, seconds=0).passes == 5
    assert layers_of(model, 8)[0][1].inputs == channels
    assert inference_memory(model, 8) > 0 and step_memory(grown, 8, 2).peak > 0
    graph = ChannelGraph(model)
    assert ChannelCost(graph, prunable_sets(graph), "macs", 8).full == bpl.count_macs(model, 8)
    onnxruntime = pytest.importorskip("onnxruntime")
    path = bpl.export_onnx(model.eval(), tmp_path / "net.onnx", 8)
    x = torch.randn(2, channels, 8, 8)
    (got,) = onnxruntime.InferenceSession(path).run(None, {"images": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), model(x).detach(), rtol=1e-4, atol=1e-5)


def test_a_network_that_takes_colour_images_is_given_them_whatever_its_first_convolution():
    rearranged = nn.Sequential(nn.PixelUnshuffle(2), *block(12))
    assert image_channels(rearranged, 8) == 3 and image_channels(nn.Sequential(*block(12)), 8) == 12
    assert image_channels(Net(), 8) == image_channels(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), 8) == 3


class Doubled(Net):
    """Takes grey images, or colour ones in two channels: no convolution says so."""

    def __init__(self):
        super().__init__()
        self.stem = block(6)

    def forward(self, x):
        return super().forward(x.repeat(1, 6 // x.shape[1], 1, 1))


def test_channels_that_no_convolution_tells_can_be_said(tmp_path):
    model = Doubled().eval()
    assert bpl.count_macs(model, 8, channels=1) == bpl.count_macs(model, 8, channels=2) > 0
    assert bpl.measure_latency(model, 8, channels=2, seconds=0).passes == 5
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(bpl.export_onnx(model, tmp_path / "net.onnx", 8, channels=2))
    assert session.get_inputs()[0].shape[1:] == [2, 8, 8]
    with pytest.raises(ValueError, match="channels is 0: it must be a whole number of at least 1"):
        bpl.count_macs(model, 8, channels=0)


class OfTwo(Net):
    def forward(self, before, after):
        return super().forward(after - before)


@pytest.mark.parametrize(
    "what",
    [
        lambda model, path: bpl.count_macs(model, 8),
        lambda model, path: bpl.measure_latency(model, 8, seconds=0),
        lambda model, path: bpl.export_onnx(model, path, 8),
    ],
    ids=["count_macs", "measure_latency", "export_onnx"],
)
def test_a_network_that_one_image_is_not_enough_for_is_refused_in_one_sentence(what, tmp_path):
    with pytest.raises(ValueError, match="^OfTwo does not take an image of 3 x 8 x 8 by itself: TypeError: .*'after'$"):
        what(OfTwo().eval(), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_a_network_without_parameters_has_no_macs_and_can_be_timed_and_exported(tmp_path):
    assert bpl.count_macs(nn.ReLU(), 8) == 0
    for backend in ("eager", "onnxruntime"):
        assert bpl.measure_latency(nn.ReLU(), 8, backend=backend, seconds=0).device == "cpu"
    assert bpl.export_onnx(nn.ReLU(), tmp_path / "net.onnx", 8).exists()


def test_tensors_past_parameters_and_buffers_are_counted_with():
    class Scaled(Net):
        def __init__(self):
            super().__init__()
            self.mean, self.scales = torch.rand(3, 1, 1), [{"last": torch.rand(WIDTH)}]

        def forward(self, x):
            x = self.last(self.stem(x - self.mean)).mean((2, 3))
            return self.fc(x * self.scales[0]["last"])

    model = Scaled()
    assert bpl.count_macs(model, 8) == bpl.count_macs(Net(), 8)
    assert not model.mean.is_meta and not model.scales[0]["last"].is_meta


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_onnxruntime_opens_a_network_of_any_precision(dtype, tmp_path):
    model, x = Net().to(dtype).eval(), images(3, 8, dtype)
    assert bpl.measure_latency(model, 8, backend="onnxruntime", seconds=0).passes >= 5
    session = open_session(bpl.export_onnx(model, tmp_path / "net.onnx", 8).read_bytes(), tmp_path)
    wide = x.half() if dtype == torch.float16 else x.float()
    (got,) = session.run(None, {"images": wide.numpy()})
    assert relative_error(torch.from_numpy(got).double(), logits(model, x).double()) < 0.05
    assert model.stem[0].weight.dtype == dtype


def test_an_image_without_pixels_is_refused():
    for size in (-3, "32", (32, 32)):
        with pytest.raises(ValueError, match="image_size is .*: it must be a whole number of at least 1"):
            bpl.count_macs(bpl.build_model("resnet18", 5, 32, width=8), size)


def test_what_is_no_network_is_named():
    for counted in (bpl.count_params, lambda model: bpl.count_macs(model, 8)):
        with pytest.raises(TypeError, match="the model is None, a NoneType"):
            counted(None)
