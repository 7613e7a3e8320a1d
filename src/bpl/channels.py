"""Which modules share which channels: the one analysis that growing, masking and slimming rest on.

A convolution's output channels do not belong to it alone. Its batch normalisation scales them, a depthwise convolution
carries them on, an addition ties them to another convolution's, and the next convolution reads them. Removing a channel
is exact only if it goes from all of these at once. This module traces a network with ``torch.fx`` and collects each such
set of modules in one `Channels`.

A masked channel is one whose filters, biases and batch normalisation parameters are zero, so that it emits exactly 0.
The analysis also follows where that zero survives: through ReLU it does, through a sigmoid it does not, and then a
reader would see a constant, so these channels are marked frozen, with the reason.
"""

import operator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import fx, nn

from bpl.partner_conv import PartnerConv2d

# Functions f with f(0) = 0, channel by channel: a masked channel stays zero through them.
_KEEP_ZERO_MODULES = (
    nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish, nn.Hardtanh, nn.Tanh, nn.Dropout, nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d, nn.Upsample, nn.ZeroPad2d,
)  # fmt: skip
_KEEP_ZERO_CALLS = {
    F.relu, torch.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.mish, F.hardswish, torch.tanh, F.dropout,
    F.dropout2d, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.interpolate, F.pad,
    "relu", "relu_", "tanh", "contiguous", "clone", "float", "to",
}  # fmt: skip
# Channel by channel too, but f(0) != 0.
_LOSE_ZERO_MODULES = (nn.Sigmoid, nn.Hardsigmoid, nn.Softplus)
_LOSE_ZERO_CALLS = {torch.sigmoid, F.sigmoid, F.hardsigmoid, F.softplus, "sigmoid", "sigmoid_"}
_ADDITIONS = {operator.add, operator.iadd, operator.sub, torch.add, torch.sub, "add", "add_", "sub"}
_PRODUCTS = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}
_SHAPE_QUERIES = {"size", "dim", "numel", getattr, operator.getitem, operator.floordiv, len}


@dataclass(eq=False)
class Channels:
    """One channel dimension that several modules share: a channel goes from all of them or from none.

    Attributes:
        size: number of channels.
        convs: names of the convolutions that produce these channels. A depthwise convolution carries its input
            channels on, so it stands in the same list as the convolution before it.
        norms: names of the batch normalisations that scale them.
        readers: names of the convolutions and linear layers that read them, with the number of input features that
            one channel stands for (more than 1 where a map is flattened before a linear layer).
        tied: whether an addition ties them to another convolution's channels.
        frozen: why no channel of this set may be removed; None where channels may be.
    """

    size: int
    convs: list[str] = field(default_factory=list)
    norms: list[str] = field(default_factory=list)
    readers: list[tuple[str, int]] = field(default_factory=list)
    tied: bool = False
    frozen: str | None = None


@dataclass(frozen=True)
class ConvSite:
    """Where a convolution stands: the batch normalisation applied to its output, and the stride of that output.

    Attributes:
        norm: name of the one BatchNorm2d that alone reads the convolution's output; None where there is none.
        stride: input pixels per output pixel, along height. Convolutions of one output stride form a *stage*.
    """

    norm: str | None
    stride: int


@dataclass
class _Value:
    """A tensor in the traced graph: its channels, and whether a masked channel of it is exactly 0."""

    channels: Channels
    zero: bool
    stride: int


class _Tracer(fx.Tracer):
    """Leaves convolutions, normalisations, linear layers (and their subclasses) and partner blocks whole."""

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        whole = (nn.Conv2d, nn.BatchNorm2d, nn.Linear, PartnerConv2d)
        return isinstance(module, whole) or super().is_leaf_module(module, qualified_name)


class ChannelGraph:
    """The channel sets of a network.

    Args:
        model: any network that ``torch.fx`` can trace, with or without partners.

    Attributes:
        sets: all `Channels`, in the order of the forward pass.
        of_conv: conv name -> the `Channels` it produces.
        sites: conv name -> its `ConvSite`.

    Raises:
        ValueError: the network cannot be traced (its forward branches on data).
    """

    def __init__(self, model: nn.Module):
        self.model = model
        try:
            self._nodes = list(_Tracer().trace(model).nodes)
        except Exception as error:  # torch.fx raises whatever the traced code raises on a proxy
            raise ValueError(
                f"cannot trace {type(model).__name__}: its forward pass must not branch on tensor values "
                f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'})"
            ) from error
        self._modules = dict(model.named_modules())
        self._merged_into: dict[int, Channels] = {}
        self._all: list[Channels] = []
        self._value_of_conv: dict[str, Channels] = {}
        self.sites: dict[str, ConvSite] = {}
        self._walk()
        self.of_conv = {name: self._find(channels) for name, channels in self._value_of_conv.items()}
        self.sets = [channels for channels in self._all if id(channels) not in self._merged_into]

    # -- union-find over channel sets -----------------------------------------------------------------------------
    def _new(self, size: int, frozen: str | None = None) -> Channels:
        channels = Channels(size, frozen=frozen)
        self._all.append(channels)
        return channels

    def _find(self, channels: Channels) -> Channels:
        while id(channels) in self._merged_into:
            channels = self._merged_into[id(channels)]
        return channels

    def _merge(self, first: Channels, second: Channels) -> Channels:
        first, second = self._find(first), self._find(second)
        if first is second:
            return first
        if first.size != second.size:  # broadcasting over channels: neither side can lose one
            first.frozen = second.frozen = "it is broadcast against another number of channels"
            return first
        first.convs += second.convs
        first.norms += second.norms
        first.readers += second.readers
        first.tied |= second.tied
        first.frozen = first.frozen or second.frozen
        self._merged_into[id(second)] = first
        return first

    # -- the walk -------------------------------------------------------------------------------------------------
    def _walk(self) -> None:
        calls: dict[str, int] = {}
        for node in self._nodes:
            if node.op == "call_module" and any(True for _ in self._modules[node.target].parameters()):
                calls[node.target] = calls.get(node.target, 0) + 1
        values: dict[fx.Node, _Value] = {}
        for node in self._nodes:
            inputs = [values[n] for n in node.all_input_nodes if n in values]
            value = self._visit(node, inputs, values)
            if value is not None:
                if node.op == "call_module" and calls.get(node.target, 0) > 1:
                    self._freeze([*inputs, value], f"module {node.target!r} is called {calls[node.target]} times")
                values[node] = value

    def _freeze(self, values: list[_Value], reason: str) -> None:
        for value in values:
            channels = self._find(value.channels)
            channels.frozen = channels.frozen or reason

    def _visit(self, node: fx.Node, inputs: list[_Value], values: dict[fx.Node, _Value]) -> _Value | None:
        """The value of one node, or None where it is no feature map."""
        if node.op == "placeholder":
            return _Value(self._new(0, "it is the network's input"), zero=False, stride=1)
        if node.op == "output":
            self._freeze(inputs, "it is the network's output")
            return None
        if node.op == "call_module":
            module = self._modules[node.target]
            if isinstance(module, nn.Conv2d | PartnerConv2d):
                return self._conv(node, module, inputs[0])
            if isinstance(module, nn.BatchNorm2d):
                return self._norm(node, module, inputs[0])
            if isinstance(module, nn.Linear):
                self._read(node.target, inputs[0], module.in_features)
                return _Value(self._new(module.out_features, "a linear layer produces it"), False, inputs[0].stride)
            if isinstance(module, nn.Flatten) and module.start_dim == 1:
                return inputs[0]
            if isinstance(module, _KEEP_ZERO_MODULES):
                step = module.stride if isinstance(module, nn.MaxPool2d | nn.AvgPool2d) else 1
                step = step if isinstance(step, int) else step[0]
                return _Value(inputs[0].channels, inputs[0].zero, inputs[0].stride * step)
            if isinstance(module, _LOSE_ZERO_MODULES):
                return _Value(inputs[0].channels, False, inputs[0].stride)
            what = type(module).__name__
        else:
            what = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
            if not inputs or node.target in _SHAPE_QUERIES:
                return None
            first = node.args[0] if node.args else None
            if node.target in _KEEP_ZERO_CALLS:
                return inputs[0]
            if node.target in _LOSE_ZERO_CALLS:
                return _Value(inputs[0].channels, False, inputs[0].stride)
            if node.target in _ADDITIONS or node.target in _PRODUCTS:
                return self._combine(node, inputs, added=node.target in _ADDITIONS)
            if isinstance(first, fx.Node) and first in values and self._keeps_channels_apart(node):
                return values[first]
        self._freeze(inputs, f"{what} reads it, and what that does to single channels is not known")
        return _Value(self._new(0, f"{what} produces it"), False, max((v.stride for v in inputs), default=1))

    @staticmethod
    def _keeps_channels_apart(node: fx.Node) -> bool:
        """Whether a call only flattens or averages the spatial dimensions of its first argument."""
        rest = node.args[1:]
        if node.target in (torch.flatten, "flatten"):
            return (node.kwargs.get("start_dim", rest[0] if rest else 0)) == 1
        if node.target in (torch.mean, "mean"):
            dims = node.kwargs.get("dim", rest[0] if rest else None)
            dims = [dims] if isinstance(dims, int) else dims
            return dims is not None and set(dims) <= {2, 3, -1, -2}
        if node.target in (torch.reshape, "reshape", "view"):
            shape = rest[0] if len(rest) == 1 and isinstance(rest[0], tuple | list) else rest
            return len(shape) == 2 and shape[1] == -1
        return False

    def _conv(self, node: fx.Node, conv: nn.Conv2d | PartnerConv2d, value: _Value) -> _Value:
        name = node.target
        stride = value.stride * conv.stride[0]
        follower = next(iter(node.users)) if len(node.users) == 1 else None
        norm = None
        if follower is not None and follower.op == "call_module":
            module = self._modules[follower.target]
            norm = follower.target if isinstance(module, nn.BatchNorm2d) else None
        self.sites[name] = ConvSite(norm, stride)
        if conv.groups == 1:
            self._read(name, value, conv.in_channels)
            channels = self._new(conv.out_channels)
        elif conv.groups == conv.in_channels == conv.out_channels:
            channels = self._find(value.channels)  # depthwise: the same channels go on
            if not value.zero:
                self._freeze([value], f"depthwise {name!r} would read a masked channel that is not 0")
        else:
            self._freeze([value], f"grouped convolution {name!r} reads it")
            channels = self._new(conv.out_channels, f"{name!r} is a grouped convolution")
        channels.convs.append(name)
        self._value_of_conv[name] = channels
        return _Value(channels, zero=True, stride=stride)

    def _norm(self, node: fx.Node, norm: nn.BatchNorm2d, value: _Value) -> _Value:
        channels = self._find(value.channels)
        channels.norms.append(node.target)
        if not norm.affine:
            self._freeze([value], f"batch normalisation {node.target!r} has no gamma and beta to hold at zero")
        return _Value(channels, zero=True, stride=value.stride)  # gamma and beta are masked with the channel

    def _read(self, name: str, value: _Value, in_features: int) -> None:
        channels = self._find(value.channels)
        if channels.size and in_features % channels.size == 0:
            channels.readers.append((name, in_features // channels.size))
        else:
            self._freeze([value], f"{name!r} reads it in an order that is not channel by channel")
        if not value.zero:
            self._freeze([value], f"{name!r} would read a masked channel that is not 0")

    def _combine(self, node: fx.Node, inputs: list[_Value], added: bool) -> _Value:
        stride = max(value.stride for value in inputs)
        if len(inputs) == 1:  # with a number or a parameter: a sum with it is not 0
            return _Value(inputs[0].channels, inputs[0].zero and not added, stride)
        if len(inputs) != 2:
            self._freeze(inputs, f"{node.name!r} combines {len(inputs)} maps")
            return _Value(self._new(0, f"{node.name!r} produces it"), False, stride)
        one, other = inputs
        channels = self._merge(one.channels, other.channels)
        channels.tied |= added
        zero = (one.zero and other.zero) if added else (one.zero or other.zero)
        return _Value(channels, zero, stride)
