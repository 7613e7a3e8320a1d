"""Which modules share which channels: the one analysis that growing, masking and slimming rest on.

A convolution's output channels do not belong to it alone. Its batch normalisation scales them, a depthwise convolution
carries them on, an addition ties them to another convolution's, and the next convolution reads them. Removing a channel
is exact only if it goes from all of these at once. This module traces a network with ``torch.fx`` and collects each
such set of modules in one `Channels`.

A masked channel is one whose filters, biases and batch normalisation parameters are zero, so that it emits exactly 0.
The analysis also follows where that zero survives: through ReLU it does, through a sigmoid it does not, and then a
reader would see a constant, so these channels are marked frozen, with the reason.
"""

import inspect
import operator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from bpl.copies import attributes_kept
from bpl.operations import (
    ADDITIONS,
    DIVISIONS,
    HARMLESS_ATTRIBUTES,
    KEEP_ZERO_CALLS,
    KEEP_ZERO_MODULES,
    LOSE_ZERO_CALLS,
    LOSE_ZERO_MODULES,
    MAP_CALLS,
    MAP_MODULES,
    POOL_CALLS,
    POOL_MODULES,
    PRODUCTS,
    SHAPE_QUERIES,
    along_height,
    argument,
    holds_width,
    is_in_place,
    is_number,
    may_share_memory,
    pads_space_with_zeros,
    pool_step,
    rank_after,
)
from bpl.ordinary import is_channel_wise, is_ordinary_conv, is_ordinary_linear, is_ordinary_norm, is_patched
from bpl.partner_conv import PartnerConv2d, has_forward_hooks
from bpl.tracing import Tracer, in_one_line


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
    """A tensor in the traced graph.

    Attributes:
        channels: its channels.
        zero: whether a masked channel of it is exactly 0.
        stride: input pixels per pixel, along height.
        rank: number of dimensions: 4 for a map (B, C, H, W), 2 once it is flattened or averaged to (B, C ...).
    """

    channels: Channels
    zero: bool
    stride: int
    rank: int = 4


def _defaults(model: nn.Module) -> dict[str, Any]:
    """What the forward pass takes beside its input where nobody says otherwise: it may branch on that."""
    optional = list(inspect.signature(type(model).forward).parameters.values())[2:]  # after self and the input
    return {
        parameter.name: parameter.default
        for parameter in optional
        if parameter.default is None or isinstance(parameter.default, bool | int | float)
    }


class ChannelGraph:
    """The channel sets of a network.

    Args:
        model: any network that ``torch.fx`` can trace, with or without partners. What its forward pass takes beside the
            images is taken at its default.

    Attributes:
        sets: all `Channels`, in the order of the forward pass.
        of_conv: conv name -> the `Channels` it produces.
        sites: conv name -> its `ConvSite`.
        traced: the operations of the forward pass; convolutions, normalisations and linear layers are one each.
        modules: name -> module of the network.
        calls: name of a normalisation or a module with parameters -> how many times the forward pass uses it or,
            through another module that has the same parameter, its weights.
        closed: name of a module whose own forward pass cannot be traced -> why: it is left as it is.
        hooked: names of the layers with forward hooks, which may do anything: they are left as they are.

    Raises:
        ValueError: the network cannot be traced (its forward branches on data, or was replaced on the object).
    """

    def __init__(self, model: nn.Module):
        self.model = model
        if is_patched(model):  # torch.fx would trace the forward pass of its class
            raise ValueError(
                f"cannot trace this {type(model).__name__}: its forward pass was replaced on the object; "
                "put it into a class"
            )
        tracer = Tracer()
        try:
            with attributes_kept(model):
                self.traced = tracer.trace(model, _defaults(model))
        except Exception as error:  # torch.fx raises whatever the traced code raises on a proxy
            raise ValueError(
                f"cannot trace {type(model).__name__}: its forward pass must not branch on tensor values "
                f"({in_one_line(error)})"
            ) from error
        self.closed = tracer.closed
        self.modules = dict(model.named_modules())
        self._merged_into: dict[int, Channels] = {}
        self._all: list[Channels] = []
        self._value_of_conv: dict[str, Channels] = {}
        self.sites: dict[str, ConvSite] = {}
        self.calls = self._count_calls()
        layers = dict.fromkeys(node.target for node in self.traced.nodes if node.op == "call_module")
        self.hooked = [name for name in layers if has_forward_hooks(self.modules[name])]
        self._walk()
        self.of_conv = {name: self._find(channels) for name, channels in self._value_of_conv.items()}
        self.sets = [channels for channels in self._all if id(channels) not in self._merged_into]

    def what_is_closed(self) -> str:
        """The end of an error message that says which parts could not be looked into; empty where there are none."""
        parts = [f"{name!r} cannot be traced ({why})" for name, why in self.closed.items()]
        parts += [f"{name!r} has forward hooks" for name in self.hooked]
        return "; " + ", ".join(parts) if parts else ""

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
        if first.size != second.size:  # neither side can lose a channel
            reason = "it is broadcast against another number of channels"
            if not (first.size and second.size):
                reason = "it is combined with something whose channels are not known"
            first.frozen, second.frozen = first.frozen or reason, second.frozen or reason
            return max(first, second, key=lambda channels: channels.size)
        first.convs += second.convs
        first.norms += second.norms
        first.readers += second.readers
        first.tied |= second.tied
        first.frozen = first.frozen or second.frozen
        self._merged_into[id(second)] = first
        return first

    # -- the walk -------------------------------------------------------------------------------------------------
    def _count_calls(self) -> dict[str, int]:
        calls: dict[str, int] = {}
        names = {id(module): name for name, module in self.modules.items()}
        for node in self.traced.nodes:
            if node.op == "call_module":  # with what is in it: a part that cannot be traced may share a layer
                for module in self.modules[node.target].modules():
                    if self._belongs_to_one_place(module):
                        calls[names[id(module)]] = calls.get(names[id(module)], 0) + 1
            elif node.op == "get_attr":  # a parameter used past its module, or one of the network's own
                owner = node.target.rpartition(".")[0]
                calls[owner] = calls.get(owner, 0) + 1
        owners: dict[int, list[str]] = {}
        for name, module in self.modules.items():
            for parameter in module.parameters(recurse=False):
                owners.setdefault(id(parameter), []).append(name)
        for name in {name for names in owners.values() if len(names) > 1 for name in names}:
            calls[name] = calls.get(name, 0) + 1  # by the module that has the same parameter
        return calls

    @staticmethod
    def _belongs_to_one_place(module: nn.Module) -> bool:
        """Whether a second call of a module would tie what it is called on; an activation may be called anywhere."""
        if isinstance(module, nn.PReLU) and module.num_parameters == 1:
            return False
        return isinstance(module, nn.BatchNorm2d) or any(True for _ in module.parameters())

    def _walk(self) -> None:
        values: dict[fx.Node, _Value] = {}
        memory: dict[fx.Node, fx.Node] = {}  # -> the node whose memory it may share, itself where its own is new
        for node in self.traced.nodes:
            inputs = [values[n] for n in node.all_input_nodes if n in values]
            value = self._visit(node, inputs, values)
            if value is not None:
                module = self.modules[node.target] if node.op == "call_module" else None
                source = next((n for n in node.all_input_nodes if n in values), node)
                in_place = is_in_place(node, module)
                memory[node] = memory[source] if in_place or may_share_memory(node, module) else node
                if in_place and not value.zero:  # whoever reads what was overwritten does not read zeros either
                    values |= {n: replace(v, zero=False) for n, v in values.items() if memory[n] is memory[node]}
                if node.op == "call_module" and self.calls.get(node.target, 0) > 1:
                    self._freeze([*inputs, value], f"module {node.target!r} is used {self.calls[node.target]} times")
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
        if node.op == "get_attr":
            return self._constant(node)
        if not inputs:
            return None if node.op != "call_module" else self._unknown(node.target, inputs)
        if node.op == "call_module":
            return self._module(node, self.modules[node.target], inputs)
        return self._call(node, inputs, values)

    def _unknown(self, what: str, inputs: list[_Value]) -> _Value:
        self._freeze(inputs, f"{what} reads it, and what that does to single channels is not known")
        return _Value(self._new(0, f"{what} produces it"), False, max((v.stride for v in inputs), default=1))

    def _constant(self, node: fx.Node) -> _Value | None:
        """A parameter or buffer of the network's own: it cannot lose channels; None for a single number."""
        value = self.model
        for name in node.target.split("."):
            value = getattr(value, name)
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            return None
        return _Value(self._new(0, f"{node.target} is a tensor of the network's own"), zero=False, stride=1)

    def _module(self, node: fx.Node, module: nn.Module, inputs: list[_Value]) -> _Value:
        value = inputs[0]
        if isinstance(module, nn.Conv2d | PartnerConv2d):
            return self._conv(node, module, value)
        if node.target in self.hooked:
            return self._unknown(f"{node.target!r}, which has forward hooks,", inputs)
        if isinstance(module, nn.BatchNorm2d):
            return self._norm(node, module, value)
        if isinstance(module, nn.Linear):
            if value.rank != 2 or not is_ordinary_linear(module):  # it reads the last dimension, here not the channels
                return self._unknown(f"linear layer {node.target!r}", inputs)
            self._read(node.target, value, module.in_features)
            return _Value(self._new(module.out_features, "a linear layer produces it"), False, value.stride, rank=2)
        if isinstance(module, nn.Flatten) and module.start_dim == 1 and module.end_dim in (-1, value.rank - 1):
            return replace(value, rank=2)
        if (node.target in self.closed or is_patched(module)) and not is_channel_wise(module):
            replaced = f"{node.target!r}, whose forward pass was replaced,"
            return self._unknown(replaced if is_patched(module) else type(module).__name__, inputs)
        if isinstance(module, MAP_MODULES) and value.rank != 4:
            return self._unknown(f"{node.target!r}, on what is no map,", inputs)
        if isinstance(module, nn.PReLU) and module.num_parameters > 1:
            return self._unknown(f"{node.target!r}, with a slope per channel,", inputs)
        if isinstance(module, nn.Hardtanh) and not module.min_val <= 0 <= module.max_val:
            return replace(value, zero=False)
        if isinstance(module, KEEP_ZERO_MODULES):
            step = along_height(module.stride) if isinstance(module, POOL_MODULES) else 1
            return replace(value, stride=value.stride * step)
        if isinstance(module, LOSE_ZERO_MODULES):
            return replace(value, zero=False)
        return self._unknown(type(module).__name__, inputs)

    def _call(self, node: fx.Node, inputs: list[_Value], values: dict[fx.Node, _Value]) -> _Value | None:
        what = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        if node.target is getattr and node.args[1] not in HARMLESS_ATTRIBUTES:
            return self._unknown(f"attribute {node.args[1]!r}", inputs)
        if node.target in SHAPE_QUERIES:
            if self._asks_for_width(node, inputs[0].rank):
                self._freeze(inputs, "the forward pass computes with its number of channels")
            return None
        first = values.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
        if "out" in node.kwargs:
            return self._unknown(f"{what} into a given tensor", inputs)
        if node.target in ADDITIONS or node.target in PRODUCTS:
            return self._combine(node, inputs, values)
        if node.target in DIVISIONS and first is not None and is_number(argument(node, 1, "other")):
            return first
        if first is None or len(inputs) > 1:
            return self._unknown(what, inputs)
        if node.target in MAP_CALLS and first.rank != 4:
            return self._unknown(f"{what} on what is no map", inputs)
        if node.target is F.pad and not pads_space_with_zeros(node):
            return self._unknown("pad", inputs)
        if node.target in KEEP_ZERO_CALLS:
            return replace(first, stride=first.stride * (pool_step(node) if node.target in POOL_CALLS else 1))
        if node.target in LOSE_ZERO_CALLS:
            return replace(first, zero=False)
        rank = rank_after(node, first.rank)
        return self._unknown(what, inputs) if rank is None else replace(first, rank=rank)

    def _asks_for_width(self, node: fx.Node, rank: int) -> bool:
        """Whether a shape query's answer is used for the number of channels: x.size(1), x.shape[1], b, c, h, w = ..."""
        if node.target == "size" and (dim := argument(node, 1, "dim")) is not None:
            return holds_width(dim, rank) and bool(node.users)
        if any(user.target == "numel" and user.users for user in node.users):  # x.shape.numel()
            return True
        asked = [user for user in node.users if user.target is operator.getitem and user.users]
        return any(holds_width(user.args[1], rank) for user in asked)

    def _conv(self, node: fx.Node, conv: nn.Conv2d | PartnerConv2d, value: _Value) -> _Value:
        name = node.target
        stride = value.stride * conv.stride[0]
        ordinary = isinstance(conv, PartnerConv2d) or is_ordinary_conv(conv)
        reason = None if ordinary else f"{name!r} computes its weights from others"
        if ordinary and name in self.hooked:
            reason = f"{name!r} has forward hooks, and what they do is not known"
        follower = next(iter(node.users)) if len(node.users) == 1 else None
        norm = None
        if reason is None and follower is not None and follower.op == "call_module":
            module = self.modules[follower.target]
            plain = isinstance(module, nn.BatchNorm2d) and not is_patched(module)
            norm = follower.target if plain and follower.target not in self.hooked else None
        self.sites[name] = ConvSite(norm, stride)
        if reason is not None:
            self._freeze([value], reason)
            channels = self._new(conv.out_channels, reason)
        elif conv.groups == 1:
            self._read(name, value, conv.in_channels)
            channels = self._new(conv.out_channels)
        elif conv.groups == conv.in_channels == conv.out_channels:
            channels = self._find(value.channels)  # depthwise: the same channels go on
            if not channels.size:  # of the network's input, or of something not known
                channels = self._new(conv.out_channels, channels.frozen)
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
        elif not is_ordinary_norm(norm):
            self._freeze([value], f"batch normalisation {node.target!r} is not 0 where gamma and beta are")
        return _Value(channels, zero=True, stride=value.stride)  # gamma and beta are masked with the channel

    def _read(self, name: str, value: _Value, in_features: int) -> None:
        channels = self._find(value.channels)
        if channels.size and in_features % channels.size == 0:
            channels.readers.append((name, in_features // channels.size))
        else:
            self._freeze([value], f"{name!r} reads it in an order that is not channel by channel")
        if not value.zero:
            self._freeze([value], f"{name!r} would read a masked channel that is not 0")

    def _combine(self, node: fx.Node, inputs: list[_Value], values: dict[fx.Node, _Value]) -> _Value:
        added = node.target in ADDITIONS
        stride = max(value.stride for value in inputs)
        if len(inputs) == 1:  # with a number or with itself: a sum with a number other than 0 is not 0
            operands = (*node.args, *node.kwargs.values())
            neutral = all(x in values if isinstance(x, fx.Node) else is_number(x) and x == 0 for x in operands)
            return replace(inputs[0], zero=inputs[0].zero and (neutral or not added))
        if len(inputs) != 2:
            self._freeze(inputs, f"{node.name!r} combines {len(inputs)} maps")
            return _Value(self._new(0, f"{node.name!r} produces it"), False, stride)
        one, other = inputs
        channels = self._merge(one.channels, other.channels)
        channels.tied |= added
        zero = (one.zero and other.zero) if added else (one.zero or other.zero)
        return _Value(channels, zero, stride, max(one.rank, other.rank))
