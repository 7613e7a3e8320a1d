"""The shipped network as files: what comes back is what went in; what does not belong is refused in one sentence."""

import copy
import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from exactness import first_filters, images, logits, randomise_statistics, same_state, state
from little_networks import STRUCTURES, WIDTH, Net
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

import bpl
from bpl.export import ModelFileError, describe_widths, read_description
from bpl.pruning import masks_of_zeros

SIZE = 8
NETWORKS = ("resnet18", "resnet56", "vgg16_bn", "mobilenet_v2")


def shipped(name: str = "resnet18", dtype: torch.dtype = torch.float32) -> nn.Module:
    """A network as a run ships it: grown, fused, slimmed."""
    model = randomise_statistics(bpl.grow_partners(bpl.build_model(name, 5, 32, width=8)).to(dtype))
    return bpl.slim(bpl.fuse_partners(model), bpl.prune_masks(model, 0.5)).eval()


def own() -> nn.Module:
    """A freshly constructed network of one's own, wider than what is loaded into it."""
    return STRUCTURES["InvertedResidual"]()


def own_shipped(dtype: torch.dtype = torch.float32) -> nn.Module:
    model = randomise_statistics(bpl.grow_partners(own()).to(dtype))
    return bpl.slim(bpl.fuse_partners(model), first_filters(model, 0.5, "all")).eval()


# -- there and back -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_the_library_comes_back_by_name_bit_by_bit(name, tmp_path):
    model, x = shipped(name), images(dtype=torch.float32)
    bpl.save_model(model, tmp_path / "net")
    loaded = bpl.load_model(tmp_path / "net")
    assert torch.equal(logits(loaded, x), logits(model, x))
    assert same_state(state(loaded), state(model)) and not loaded.training
    assert describe_widths(loaded) == describe_widths(model)
    assert all(p.requires_grad and p.is_leaf for p in loaded.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_precision_comes_back(dtype, tmp_path):
    x = images(dtype=dtype)
    for model, fresh, size in ((shipped(dtype=dtype), None, 32), (own_shipped(dtype), own(), SIZE)):
        bpl.save_model(model, tmp_path / "net")
        loaded = bpl.load_model(tmp_path / "net", fresh)
        assert {p.dtype for p in loaded.parameters()} == {dtype}
        assert torch.equal(logits(loaded, x[..., :size, :size]), logits(model, x[..., :size, :size]))


@pytest.mark.parametrize(
    "structure",
    [
        "Gate",
        "FlattenMap",
        "PreActivation",
        "HarmlessSubclass",
        "NormWithoutStatistics",
        "OtherNorm",
        "TwoNames",
        "Parametrised",
    ],
)
def test_a_network_of_ones_own_comes_back_onto_a_fresh_one(structure, tmp_path):
    model = randomise_statistics(bpl.grow_partners(STRUCTURES[structure]()))
    small = bpl.slim(bpl.fuse_partners(model), first_filters(model, 0.5, "all")).eval()
    bpl.save_model(small, tmp_path / "net")
    fresh = STRUCTURES[structure]()
    loaded = bpl.load_model(tmp_path / "net", fresh)
    x = images(size=SIZE, dtype=torch.float32)
    assert loaded is fresh and torch.equal(logits(loaded, x), logits(small, x))
    assert [kind_of(m) for m in loaded.modules()] == [kind_of(m) for m in small.modules()]


def kind_of(module: nn.Module) -> type | list[type]:
    """Its class; a parametrised layer has one of its own, made from that of the layer."""
    return list(type(module).__bases__) if is_parametrized(module) else type(module)


@pytest.mark.parametrize(
    ("use", "said"),
    [
        ({"classes": "abcde"}, "classes is 'abcde': it must be a list of class names"),
        ({"classes": ["a", "b", "a"]}, "classes has 'a' twice"),
        ({"classes": []}, r"classes is \[\]: it must be a list of class names"),
        ({"classes": {"a", "b"}}, "classes is .*: it must be a list of class names"),
        ({"classes": {"a": 1, "b": 0}}, "classes is .*: it must be a list of class names"),
        ({"classes": 5}, "classes is 5: it must be a list of class names"),
        ({"classes": ["a", 3]}, "classes has 3: a name must be one line of text"),
        ({"mean": [float("nan")] * 3}, r"mean is \[nan, nan, nan\]: it must be finite numbers, one a channel"),
        ({"mean": {0.4, 0.5, 0.6}}, "mean is .*: it must be finite numbers, one a channel"),
        ({"mean": 0.5}, "mean is 0.5: it must be finite numbers, one a channel"),
        ({"mean": [True, 0.5, 0.5]}, r"mean is \[True, 0.5, 0.5\]"),
        ({"mean": [1e6, 0.5, 0.5]}, r"mean is \[1000000.0, 0.5, 0.5\]"),
        ({"std": [0.2, 0.2, 0.0]}, r"std is \[0.2, 0.2, 0.0\]: it must be finite numbers above 0"),
    ],
)
def test_a_description_that_prediction_would_refuse_is_not_written(use, said, tmp_path):
    net = bpl.build_model("resnet18", 3, 32, width=8)
    with pytest.raises(ValueError, match=said):
        bpl.save_model(net, tmp_path / "net", **use)
    with pytest.raises(ValueError, match=said):
        bpl.export_onnx(net, tmp_path / "net.onnx", 32, **use)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "call",
    [
        lambda net, folder: bpl.save_model(net, folder / "net"),
        lambda net, folder: bpl.prune_masks(net, 0.5),
        lambda net, folder: bpl.measure_latency(net, 32),
        lambda net, folder: masks_of_zeros(net),
    ],
    ids=["save", "prune", "latency", "zeros"],
)
def test_a_network_of_shapes_without_values_is_refused(call, tmp_path):
    with torch.device("meta"):
        net = bpl.build_model("resnet18", 3, 32, width=8)
    with pytest.raises(ValueError, match="'conv1.weight' is on the meta device"):
        call(net, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_use_needs_may_be_arrays_and_tensors(tmp_path):
    use = {"classes": np.array(["a", "b", "c"]), "mean": torch.full((3,), 0.5), "std": [np.float32(0.25)] * 3}
    bpl.save_model(bpl.build_model("resnet18", 3, 32, width=8), tmp_path / "net", **use)
    content = json.loads((tmp_path / "net.json").read_text())
    assert [content[key] for key in use] == [["a", "b", "c"], [0.5] * 3, [0.25] * 3]


def test_an_original_that_is_no_network_is_named(tmp_path):
    bpl.save_model(Tied(), tmp_path / "net")
    with pytest.raises(TypeError, match="the model is 'x', a str"):
        bpl.load_model(tmp_path / "net", "x")


class Tied(nn.Module):
    """Two convolutions with one weight, each with a normalisation of its own."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.a, self.na = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.b, self.nb = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.b.weight = self.a.weight
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.na(self.a(self.stem(x)).relu())
        return self.fc(self.nb(self.b(x)).mean((2, 3)))


def test_a_weight_that_two_layers_share_is_one_weight_again(tmp_path):
    net = randomise_statistics(Tied()).eval()
    bpl.save_model(net, tmp_path / "net")
    loaded = bpl.load_model(tmp_path / "net", Tied())
    assert loaded.a.weight is loaded.b.weight
    assert bpl.count_params(loaded) == bpl.count_params(net)
    apart = copy.deepcopy(net)
    apart.b.weight = nn.Parameter(apart.b.weight + 1)  # what a file holds as two stays two
    bpl.save_model(apart, tmp_path / "apart")
    loaded = bpl.load_model(tmp_path / "apart", Tied())
    assert torch.equal(loaded.b.weight, loaded.a.weight + 1)


def test_a_loaded_network_trains_fuses_and_slims_on(tmp_path):
    bpl.save_model(own_shipped(), tmp_path / "net")
    loaded = bpl.load_model(tmp_path / "net", own()).train()
    x = images(4, SIZE, torch.float32)
    loaded(x).square().sum().backward()
    assert all(p.grad is not None for p in loaded.parameters())
    smaller = bpl.slim(loaded, first_filters(loaded, 0.5))
    bpl.save_model(smaller, tmp_path / "smaller")
    assert torch.equal(logits(bpl.load_model(tmp_path / "smaller", own()), x), logits(smaller, x))


@pytest.mark.parametrize("given", ["net", "net.safetensors", "net.json", "v1.2/net.best"])
def test_a_model_is_named_by_its_stem_or_by_either_file(given, tmp_path):
    model = own_shipped()
    weights = bpl.save_model(model, tmp_path / given)
    assert {f.suffix for f in weights.parent.iterdir() if f.is_file()} == {".safetensors", ".json"}
    for path in (tmp_path / given, weights, str(weights.with_suffix("")) + ".json"):
        assert same_state(state(bpl.load_model(path, own())), state(model))


def test_what_use_needs_is_in_the_description(tmp_path):
    bpl.save_model(shipped(), tmp_path / "net", classes=["a", "b"], mean=np.array([0.1, 0.2, 0.3]), std=(1, 1, 1))
    description = read_description(tmp_path / "net")
    assert description["classes"] == ["a", "b"] and description["mean"] == [0.1, 0.2, 0.3]
    assert description["std"] == [1.0, 1.0, 1.0] and description["arch"]["name"] == "resnet18"
    assert description["widths"]["layer1.0.conv1"] == {
        "kind": "conv",
        "inputs": 8,
        "outputs": 4,
        "groups": 1,
        "bias": True,
    }


def test_saving_changes_nothing_and_replaces_what_was_there(tmp_path):
    first, second = shipped(), shipped("resnet56")
    before = state(first)
    bpl.save_model(first, tmp_path / "net")
    assert same_state(before, first.state_dict())
    bpl.save_model(second, tmp_path / "net")
    assert same_state(state(bpl.load_model(tmp_path / "net")), state(second))


def test_tied_weights_are_saved(tmp_path):
    model = STRUCTURES["TiedWeights"]().eval()
    bpl.save_model(model, tmp_path / "net")
    x = images(size=SIZE, dtype=torch.float32)
    assert torch.equal(logits(bpl.load_model(tmp_path / "net", STRUCTURES["TiedWeights"]()), x), logits(model, x))


def test_partners_are_refused(tmp_path):
    model = bpl.grow_partners(Net())
    for write in (
        lambda: bpl.save_model(model, tmp_path / "net"),
        lambda: bpl.export_onnx(model, tmp_path / "net.onnx", SIZE),
    ):
        with pytest.raises(ValueError, match="'stem.0' still has a partner: call bpl.fuse_partners before"):
            write()
    assert not list(tmp_path.iterdir())


# -- what does not belong -------------------------------------------------------------------------------------------
def refused(path, message: str, fresh: nn.Module | None = None) -> None:
    """Assert that loading stops with one sentence that says this."""
    with pytest.raises(ModelFileError, match=message) as caught:
        bpl.load_model(path, fresh)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600 + 4 * len(str(path))


def altered(path, change) -> None:
    """Change the description of a saved model."""
    file = path.with_suffix(".json")
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """The files of a network of the library."""
    return bpl.save_model(shipped(), tmp_path_factory.mktemp("saved") / "net")


@pytest.fixture
def saved(original, tmp_path):
    """A copy of them to spoil."""
    for suffix in (".safetensors", ".json"):
        shutil.copy(original.with_suffix(suffix), tmp_path)
    return tmp_path / "net"


def conv1(**sizes):
    """A change of one layer's entry in the description."""
    return lambda content: content["widths"]["layer1.0.conv1"].update(sizes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format="onnx"), "does not describe a model of this library"),
        (lambda c: c.update(version=2), "has version 2: this library reads 1"),
        (lambda c: c.update(version="1"), "has version '1'"),
        (lambda c: c.pop("version"), "has version None"),
        (lambda c: c.update(widths=[]), "no table of widths"),
        (lambda c: c.update(arch=None), "pass a freshly constructed original"),
        (lambda c: c.update(arch={"name": "resnet19"}), "cannot be built"),
        (lambda c: c["arch"].update(name="resnet19"), "unknown network 'resnet19'"),
        (lambda c: c["arch"].update(name=["resnet18"]), "cannot be built"),
        (lambda c: c["arch"].update(width="8"), "width is '8'"),
        (lambda c: c["arch"].update(hidden=3), "cannot be built"),
        (lambda c: c["arch"].update(num_classes=10**30), "cannot be built"),
        # Terabytes, if the description were believed before the weights are looked at.
        (lambda c: (c["arch"].update(width=10**6), c["widths"].clear()), "do not fit"),
        (lambda c: (c["arch"].update(num_classes=10**12), c["widths"]["fc"].update(outputs=10**12)), "do not fit"),
        (conv1(outputs=10**12), "outputs of layer 'layer1.0.conv1' is 1000000000000: .*1 to 8"),
        (conv1(outputs=-1), "outputs of layer 'layer1.0.conv1' is -1"),
        (conv1(outputs=0), "outputs of layer 'layer1.0.conv1' is 0"),
        (conv1(outputs=3.0), "outputs of layer 'layer1.0.conv1' is 3.0"),
        (conv1(outputs=True), "is True"),
        (conv1(outputs="4"), "is '4'"),
        (conv1(inputs=None), "inputs of layer 'layer1.0.conv1' is None"),
        (conv1(inputs=[4]), r"is \[4\]"),
        (conv1(outputs=3), "do not fit the widths"),
        (conv1(bias=False), "do not fit the widths"),
        (conv1(kind="norm"), "layer 'layer1.0.conv1' is a Conv2d, not a 'norm'"),
        (conv1(kind=["conv"]), "not a"),
        (lambda c: c["widths"].update({"conv1": 3}), "no layer 'conv1'"),
        (lambda c: c["widths"].update({"conv9": {"kind": "conv"}}), "has no layer 'conv9'"),
        (lambda c: c["widths"].update({"": {"kind": "conv"}}), "is a ResNet, not a 'conv'"),
        (lambda c: c["widths"].pop("layer1.0.conv1"), "do not fit the widths"),
        (lambda c: c["widths"].update(conv1={"kind": "identity"}), "is a Conv2d, not a 'identity'"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(change, message, saved):
    altered(saved, change)
    refused(saved, message)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"[1]", b"\xff\xfe\x00", b"[" * 200_000, b'{"format": "bpl-model", "version": 1}'],
    ids=["empty", "cut off", "null", "list", "not text", "deeply nested", "no widths"],
)
def test_a_description_that_is_none_is_refused(content, saved):
    saved.with_suffix(".json").write_bytes(content)
    refused(saved, "net.json")


@pytest.mark.parametrize("size", [0, 4, 100, -1, -4000])
def test_truncated_weights_are_refused(size, saved):
    file = saved.with_suffix(".safetensors")
    file.write_bytes(file.read_bytes()[:size])
    refused(saved, "net.safetensors cannot be read")


def test_weights_that_are_something_else_are_refused(saved):
    saved.with_suffix(".safetensors").write_bytes(b"\x80\x04cos\nsystem\n" * 100)
    refused(saved, "net.safetensors cannot be read")


@pytest.mark.parametrize("missing", [".json", ".safetensors"])
def test_a_missing_file_is_named(missing, saved):
    saved.with_suffix(missing).unlink()
    refused(saved, f"net{missing} cannot be read")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("fc.weight"), "fc.weight"),
        (lambda t: t.update(extra=torch.zeros(3)), "extra"),
        (lambda t: t.update({"fc.bias": torch.zeros(7)}), "fc.bias"),
        (lambda t: t.update({"fc.bias": torch.zeros(5, dtype=torch.int64)}), "'fc.bias' is torch.int64"),
    ],
    ids=["missing", "additional", "of another shape", "of whole numbers"],
)
def test_weights_that_do_not_fit_name_the_tensor(change, message, saved):
    tensors = load_file(saved.with_suffix(".safetensors"))
    change(tensors)
    save_file(tensors, saved.with_suffix(".safetensors"))
    refused(saved, message)


def test_a_network_of_ones_own_needs_its_original_and_the_right_one(tmp_path):
    bpl.save_model(own_shipped(), tmp_path / "net")
    refused(tmp_path / "net", "pass a freshly constructed original as model")
    refused(tmp_path / "net", "has no layer|do not fit", Net())


# -- ONNX -----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A slimmed network and its ONNX file; what the exporter warns of is its own business."""
    torch.manual_seed(0)
    model = own_shipped().train()
    path = tmp_path_factory.mktemp("onnx") / "new" / "net.onnx"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"torch\.|onnxscript|onnx_ir|copyreg")
        assert bpl.export_onnx(model, path, SIZE) == path
    return model, path


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_onnx_computes_the_same_for_any_batch_size(exported, batch):
    import onnxruntime

    model, path = exported
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    x = images(batch, SIZE, torch.float32)
    (got,) = session.run(["logits"], {"images": x.numpy()})
    assert got.shape == (batch, 5)
    np.testing.assert_allclose(got, logits(model, x).numpy(), atol=1e-4, rtol=1e-4)


def test_an_exported_file_has_plain_convolutions_and_no_normalisation(exported):
    import onnx

    model, path = exported
    onnx.checker.check_model(onnx.load(path))
    operators = [node.op_type for node in onnx.load(path).graph.node]
    assert operators.count("Conv") == sum(isinstance(m, nn.Conv2d) for m in model.modules())
    assert WIDTH // 2 in [d for w in onnx.load(path).graph.initializer for d in w.dims]


def test_exporting_leaves_the_model_as_it_was(exported):
    model, _ = exported
    assert all(module.training for module in model.modules())


def test_onnxruntime_is_timed(exported):
    model, _ = exported
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"torch\.|onnxscript|onnx_ir|copyreg")
        latency = bpl.measure_latency(model, SIZE, 2, "onnxruntime", seconds=0)
    assert latency.backend == "onnxruntime" and latency.median_ms > 0


@pytest.mark.parametrize(
    ("name", "layer"),
    [("maxpool", nn.MaxPool2d(2, 2)), ("relu", nn.SiLU()), ("bn1", nn.BatchNorm2d(8, eps=1e-2)), (None, None)],
)
def test_a_network_whose_layers_were_changed_is_not_loaded_by_its_name(tmp_path, name, layer):
    model = bpl.build_model("resnet18", 5, 64, 8).eval()
    if name is not None:
        assert hasattr(model, name)
        setattr(model, name, layer)
    masks = bpl.prune_masks(model, 0.5)
    bpl.apply_masks(model, masks)
    small = bpl.slim(model, masks).eval()
    bpl.save_model(small, tmp_path / "small")
    images = torch.randn(2, 3, 64, 64)
    if name is None:
        torch.testing.assert_close(bpl.load_model(tmp_path / "small")(images), small(images))
        return
    with pytest.raises(ModelFileError, match="pass a freshly constructed original"):
        bpl.load_model(tmp_path / "small")
    original = bpl.build_model("resnet18", 5, 64, 8)
    setattr(original, name, type(layer)(8, eps=1e-2) if name == "bn1" else layer)
    torch.testing.assert_close(bpl.load_model(tmp_path / "small", original)(images), small.eval()(images))
