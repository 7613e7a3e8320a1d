"""Eight bits: what is written is what the scheme says, computes nearly the same, and leaves nothing behind."""

import logging
import tempfile

import numpy as np
import onnx
import pytest
import torch
from deployed import CLASSES, MEAN, SIZE, STD, network, network_as_onnx
from exactness import images, logits
from onnx import numpy_helper

from bpl.deployment.deploy import as_callable, compare
from bpl.deployment.quantise import CALIBRATION_IMAGES, calibration_part, quantise_onnx
from bpl.export import describe_use


@pytest.fixture(scope="module")
def calibration() -> torch.Tensor:
    return images(40, SIZE, torch.float32)


@pytest.fixture(scope="module")
def quantised(calibration) -> bytes:
    return quantise_onnx(network_as_onnx(), calibration)


def constants(content: bytes) -> dict[str, np.ndarray]:
    return {one.name: numpy_helper.to_array(one) for one in onnx.load_from_string(content).graph.initializer}


def weights_of(content: bytes) -> dict[str, tuple[np.ndarray, ...]]:
    """Weights of every convolution and linear layer by name: the float tensor, or whole numbers, scales and zeros."""
    graph, values = onnx.load_from_string(content).graph, constants(content)
    made_by = {node.output[0]: node for node in graph.node}
    found = {}
    for name in (node.input[1] for node in graph.node if node.op_type in ("Conv", "Gemm")):
        parts = [name] if name in values else list(made_by[name].input)
        found[parts[0].removesuffix("_quantized")] = tuple(values[part] for part in parts)
    return found


def test_every_weight_is_its_channels_scale_times_a_whole_number_of_seven_bits(quantised):
    """Counted anew from the float weights: s_c = max |w| / 64 over channel c, and w = s_c round(w / s_c)."""
    before, after = weights_of(network_as_onnx()), weights_of(quantised)
    assert len(before) == 21 and before.keys() == after.keys()  # 20 convolutions and the classifier
    for name, (weight,) in before.items():
        whole, scale, zero = after[name]
        assert whole.dtype == np.int8 and whole.shape == weight.shape and not zero.any()
        np.testing.assert_allclose(scale, np.abs(weight).reshape(len(weight), -1).max(1) / 64, rtol=1e-5)
        steps = scale.reshape(-1, *[1] * (weight.ndim - 1))
        assert np.abs(whole.astype(int)).max() <= 64, "more than 7 bits overflow on processors without VNNI"
        np.testing.assert_array_less(np.abs(whole * steps - weight), np.broadcast_to(0.501 * steps, weight.shape))


def test_activations_have_eight_unsigned_bits_over_the_range_that_was_seen(quantised, calibration):
    graph, values = onnx.load_from_string(quantised).graph, constants(quantised)
    pairs = {node.input[0]: node.input[1:] for node in graph.node if node.op_type == "QuantizeLinear"}
    scale, zero = (values[name] for name in pairs["images"])
    assert all(values[name].dtype == np.uint8 for _, name in pairs.values())
    low, high = min(0.0, float(calibration.min())), max(0.0, float(calibration.max()))
    assert float(scale) == pytest.approx((high - low) / 255, rel=1e-5)
    assert int(zero) == pytest.approx(-low / float(scale), abs=0.51)


def test_it_classifies_as_the_float_network_does_and_is_smaller(quantised):
    x = images(60, SIZE, torch.float32, seed=2)
    agreement = compare(logits(network(), x), as_callable(quantised)(x))
    assert agreement.same_top1 >= 0.9
    assert 0 < agreement.largest_difference < 0.15 * agreement.largest_logit
    assert len(quantised) < 0.5 * len(network_as_onnx())


def test_more_images_than_a_batch_count_all(calibration):
    """The range is that of the last image too: calibrated on a fraction, the scale of the input is another."""

    def input_scale(x: torch.Tensor) -> float:
        content = quantise_onnx(network_as_onnx(), x)
        (name,) = [n.input[1] for n in onnx.load_from_string(content).graph.node if n.input[0] == "images"]
        return float(constants(content)[name])

    louder = torch.cat([calibration, 10 * calibration[:1]])
    assert input_scale(louder) > 3 * input_scale(calibration)


def test_input_output_and_metadata_stay(quantised):
    before, after = onnx.load_from_string(network_as_onnx()), onnx.load_from_string(quantised)
    onnx.checker.check_model(after)
    assert [one.name for one in after.graph.input] == ["images"]
    assert [one.name for one in after.graph.output] == ["logits"]
    assert after.graph.input[0].type == before.graph.input[0].type
    assert list(after.metadata_props) == list(before.metadata_props)
    assert str(describe_use(network(), CLASSES, MEAN, STD)["classes"][0]) in after.metadata_props[0].value


def test_nothing_is_left_or_said(calibration, monkeypatch, tmp_path, capfd, caplog):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    content, handlers = network_as_onnx(), list(logging.getLogger().handlers)
    copy = bytes(content)
    quantise_onnx(content, calibration[:2])
    assert content == copy
    assert list(tmp_path.iterdir()) == []
    assert logging.getLogger().handlers == handlers and not caplog.records
    assert capfd.readouterr() == ("", "")


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="no images to calibrate 8-bit quantisation on"):
        quantise_onnx(network_as_onnx(), torch.zeros(0, 3, SIZE, SIZE))


def test_the_calibration_part_is_drawn_once_and_from_the_training_part_only():
    train = torch.arange(1000) * 3
    part = calibration_part(train)
    assert len(part) == len(set(part.tolist())) == CALIBRATION_IMAGES
    assert set(part.tolist()) <= set(train.tolist())
    assert torch.equal(part, calibration_part(train)) and not torch.equal(part, calibration_part(train, seed=1))
    assert part.tolist() != train[:CALIBRATION_IMAGES].tolist()  # the training part is sorted by class
    assert sorted(calibration_part(train[:5]).tolist()) == train[:5].tolist()
