"""How long each convolution of a network takes, measured alone, at any widths.

A layer runs as the only one of an ONNX graph, with the ReLU behind it, and onnxruntime's own profile says how long its
kernel took: neither the call nor the change of memory layout at the ends, which inside a network neighbours share, is
in the number. The fastest of some passes counts, since other work on the machine only ever adds time.
"""

import json
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bpl.channels import ChannelGraph, Channels
from bpl.measure import image_channels, on_meta, pass_shapes

SECONDS = 0.02  # spent on a layer at one width; at least 5 passes are made


@dataclass(frozen=True)
class Layer:
    """A convolution, with all that its time depends on; a linear layer is a 1 x 1 convolution of one pixel.

    Attributes:
        inputs: input channels.
        outputs: filters.
        kernel: height and width of the kernel.
        stride: along height and width.
        padding: along height and width, the same on both sides.
        dilation: along height and width.
        groups: 1, or the number of channels of a depthwise convolution.
        pixels: height and width of the input map.
    """

    inputs: int
    outputs: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    pixels: tuple[int, int]

    @property
    def output_pixels(self) -> int:
        """Pixels of the output map."""
        ends = zip(self.pixels, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return math.prod((size + 2 * pad - dil * (k - 1) - 1) // step + 1 for size, k, step, pad, dil in ends)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return self.outputs * (self.inputs // self.groups) * math.prod(self.kernel) * self.output_pixels

    @property
    def traffic(self) -> int:
        """Bytes in float32 that must at least be moved for one image: input, weights and output once each."""
        weights = self.outputs * (self.inputs // self.groups) * math.prod(self.kernel)
        return 4 * (self.inputs * math.prod(self.pixels) + weights + self.outputs * self.output_pixels)

    def at(self, inputs: int, outputs: int) -> "Layer":
        """The layer at other widths."""
        return replace(self, inputs=inputs, outputs=outputs, groups=1 if self.groups == 1 else inputs)


def layers_of(model: nn.Module, image_size: int) -> list[tuple[str, Layer]]:
    """The convolutions and linear layers that one image goes through.

    Args:
        model: a network without partners; it is not changed, and nothing is computed.
        image_size: height and width of the images in pixels.

    Returns:
        Name and layer of every call, in the order of the forward pass: a layer that is called twice stands there twice.
    """
    shapes = on_meta(model)
    channels = image_channels(shapes, image_size)
    found: list[tuple[str, Layer]] = []

    def look(name: str, module: nn.Module, x: torch.Tensor) -> None:
        if isinstance(module, nn.Linear):
            one = (1, 1)
            found.append((name, Layer(module.in_features, module.out_features, one, one, (0, 0), one, 1, one)))
            return
        if isinstance(module.padding, str) or module.groups not in (1, module.in_channels):
            raise ValueError(f"{name!r} has {module.groups} groups and padding {module.padding!r}: it is not timed")
        sizes = (module.kernel_size, module.stride, module.padding, module.dilation)
        layer = Layer(module.in_channels, module.out_channels, *sizes, module.groups, tuple(x.shape[2:]))
        found.append((name, layer))

    for name, module in shapes.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda module, inputs, _, name=name: look(name, module, inputs[0]))
    pass_shapes(shapes, channels, image_size)
    return found


class LayerTimes:
    """A table of times, filled as it is asked; no layer is measured twice.

    Args:
        batch_size: images in a pass.
        seconds: time to spend on a layer at one width.
    """

    def __init__(self, batch_size: int = 1, seconds: float = SECONDS):
        self.batch_size, self.seconds = batch_size, seconds
        self.measured: dict[Layer, float] = {}

    def __call__(self, layer: Layer) -> float:
        """Milliseconds of one pass over a batch."""
        if layer not in self.measured:
            self.measured[layer] = time_layer(layer, self.batch_size, self.seconds)
        return self.measured[layer]


def time_layer(layer: Layer, batch_size: int, seconds: float = SECONDS) -> float:
    """Milliseconds of a layer's kernel under onnxruntime, on as many threads as torch uses.

    Args:
        layer: the layer.
        batch_size: images in a pass.
        seconds: time to spend on it.

    Raises:
        ValueError: onnxruntime or onnx is not installed.
    """
    try:
        import onnxruntime
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as error:
        raise ValueError(
            f"layers are timed under onnxruntime: install {error.name} (pip install -e '.[export]' in the repository)"
        ) from None

    chance = np.random.default_rng(0)
    weight = chance.standard_normal((layer.outputs, layer.inputs // layer.groups, *layer.kernel), dtype=np.float32)
    bias = np.zeros(layer.outputs, np.float32)
    shape = (batch_size, layer.inputs, *layer.pixels)
    convolution = helper.make_node(
        "Conv", ["x", "weight", "bias"], ["sum"], strides=layer.stride, pads=[*layer.padding, *layer.padding],
        dilations=layer.dilation, group=layer.groups,
    )  # fmt: skip
    graph = helper.make_graph(
        [convolution, helper.make_node("Relu", ["sum"], ["y"])],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        images = {"x": chance.standard_normal(shape, dtype=np.float32)}
        end, passes = time.process_time() + seconds, 0  # of computing: a busy machine counts as many
        while passes < 5 or time.process_time() < end:
            session.run(None, images)
            passes += 1
        events = json.loads(Path(session.end_profiling()).read_text())
    kernels = [event["dur"] for event in events if event.get("args", {}).get("op_name") in ("Conv", "FusedConv")]
    return min(kernels) / 1e3  # the profile counts microseconds


class LatencyCost:
    """The time of a network's convolutions and linear layers as a function of its widths, from a table of times.

    Args:
        graph: the channel analysis of the network at its full widths, without partners.
        sets: the channel sets that may lose channels (`bpl.pruning.masks.prunable_sets`).
        image_size: height and width of the images in pixels.
        times: the table.
    """

    def __init__(self, graph: ChannelGraph, sets: Sequence[Channels], image_size: int, times: LayerTimes):
        self.times = times
        self.sizes = [channels.size for channels in sets]
        produced = {name: s for s, channels in enumerate(sets) for name in channels.convs}
        read = {name: (s, features) for s, channels in enumerate(sets) for name, features in channels.readers}
        self._layers = [
            (layer, produced.get(name), *read.get(name, (None, 1)))
            for name, layer in layers_of(graph.model, image_size)
        ]
        self._known: dict[tuple[int, int, int], float] = {}  # index of a layer, inputs, outputs -> milliseconds
        self.full = self.total(self.sizes)

    def total(self, widths: Sequence[int]) -> float:
        """Milliseconds of one pass with these widths, one for each set."""
        total = 0.0
        for index, (layer, produced, read, features) in enumerate(self._layers):
            outputs = layer.outputs if produced is None else widths[produced]
            inputs = layer.inputs if read is None else widths[read] * features
            if layer.groups > 1 and layer.inputs == layer.outputs:
                inputs = outputs  # a depthwise convolution carries its channels on; one with a multiplier keeps its own
            key = (index, inputs, outputs)
            if key not in self._known:
                self._known[key] = self.times(layer.at(inputs, outputs))
            total += self._known[key]
        return total
