"""Latency: what is reported, and what is refused. How fast anything is, is no test's business."""

import sys

import pytest
import torch
from exactness import same_state, state
from little_networks import Net

import bpl


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
        ({"batch_size": 0}, "batch_size is 0: it must be at least 1"),
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
