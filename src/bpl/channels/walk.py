"""One walk through a traced network: which channels each of its operations reads, makes and ties together.

It also follows where a masked channel's zero survives: through ReLU it does, through a sigmoid it does not, and then a
reader would see a constant, so these channels are frozen, with the reason.
"""

import operator
from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import fx, nn

from bpl.channels.operations import (
    ADDITIONS,
    CLIP_CALLS,
    DIVISIONS,
    HARMLESS_ATTRIBUTES,
    KEEP_ZERO_CALLS,
    KEEP_ZERO_MODULES,
    LOSE_ZERO_CALLS,
    LOSE_ZERO_MODULES,
    MAKER_METHODS,
    MAKERS,
    MAP_CALLS,
    MAP_MODULES,
    POOL_CALLS,
    POOL_MODULES,
    PRODUCTS,
    SHAPE_QUERIES,
    along_height,
    argument,
    clips_to_zero,
    holds_width,
    is_in_place,
    is_number,
    makes_a_number_for_each_image,
    may_share_memory,
    pads_space_with_zeros,
    pool_step,
    rank_after,
)
from bpl.channels.ordinary import (
    is_channel_wise,
    is_identity_in_evaluation,
    is_ordinary_conv,
    is_ordinary_linear,
    is_ordinary_norm,
    is_patched,
)
from bpl.channels.sets import Channels, ChannelSets
from bpl.partner_conv import NORMS, PartnerConv2d, has_forward_hooks


@dataclass(frozen=True)
class ConvSite:
    """Where a convolution stands: the batch normalisation applied to its output, and the stride of that output.

    Attributes:
        norm: name of the one batch normalisation that alone reads the convolution's output; None where there is none.
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


class Walk:
    """What one traced forward pass does to channels.

    Args:
        model: the network.
        graph: its traced forward pass; convolutions, normalisations and linear layers are one operation each.
        closed: names of the modules that the trace leaves whole because they cannot be traced.
        twin: what was traced: a copy of the network, which also holds the constants of the forward pass.
        sets: where to put the channels; those of other walks through the same network may be there.

    Attributes:
        sites: conv name -> its `ConvSite`, in the order of the forward pass.
        calls: name of a normalisation or a module with parameters -> how many times the forward pass uses it or,
            through another module that has the same parameter, its weights.
        hooked: names of the layers with forward hooks.
    """

    def __init__(self, model: nn.Module, twin: nn.Module, graph: fx.Graph, closed: Collection[str], sets: ChannelSets):
        self.twin, self.graph, self.closed, self.sets = twin, graph, closed, sets
        self.modules = dict(model.named_modules())
        layers = dict.fromkeys(node.target for node in graph.nodes if node.op == "call_module")
        self.hooked = [name for name in layers if has_forward_hooks(self.modules[name])]
        self.calls = self._count_calls()
        self.sites: dict[str, ConvSite] = {}
        self._walk()

    def _count_calls(self) -> dict[str, int]:
        calls: dict[str, int] = {}
        names = {id(module): name for name, module in self.modules.items()}
        for node in self.graph.nodes:
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
        return isinstance(module, NORMS) or any(True for _ in module.parameters())

    def _walk(self) -> None:
        values: dict[fx.Node, _Value] = {}
        memory: dict[fx.Node, fx.Node] = {}  # -> the node whose memory it may share, itself where its own is new
        for node in self.graph.nodes:
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
            self.sets.freeze(value.channels, reason)

    def _visit(self, node: fx.Node, inputs: list[_Value], values: dict[fx.Node, _Value]) -> _Value | None:
        """The value of one node, or None where it is no feature map."""
        if node.op == "placeholder":
            return _Value(self.sets.new(0, "it is the network's input"), zero=False, stride=1)
        if node.op == "output":
            self._freeze(inputs, "it is the network's output")
            return None
        if node.op == "get_attr":
            return self._constant(node)
        if node.target in (MAKERS if node.op == "call_function" else MAKER_METHODS if node.op == "call_method" else ()):
            if makes_a_number_for_each_image(node):
                return None
            return _Value(self.sets.new(0, f"{node.name!r} is a tensor that the forward pass makes"), False, stride=1)
        if not inputs:
            return None if node.op != "call_module" else self._unknown(node.target, inputs)
        if node.op == "call_module":
            return self._module(node, self.modules[node.target], inputs)
        return self._call(node, inputs, values)

    def _unknown(self, what: str, inputs: list[_Value], does: str = "") -> _Value:
        does = does or "reads it, and what that does to single channels is not known"
        self._freeze(inputs, f"{what} {does}")
        return _Value(self.sets.new(0, f"{what} produces it"), False, max((v.stride for v in inputs), default=1))

    def _unknown_reader(self, what: str, name: str, inputs: list[_Value]) -> _Value:
        self._keep_inputs(name, inputs, f"{what} reads it, and what that does to single channels is not known")
        return self._unknown(what, inputs)

    def _keep_inputs(self, name: str, inputs: list[_Value], reason: str) -> None:
        """Let a layer keep what it reads, also where another walk finds it somewhere that could lose channels."""
        self._freeze(inputs, reason)
        self.sets.add_reader(self.sets.new(0, reason), name, 1)

    def _constant(self, node: fx.Node) -> _Value | None:
        """A parameter, buffer or constant of the network's own: it cannot lose channels; None for a single number."""
        value = self.twin
        for name in node.target.split("."):
            value = getattr(value, name)
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            return None
        return _Value(self.sets.new(0, f"{node.target} is a tensor of the network's own"), zero=False, stride=1)

    def _module(self, node: fx.Node, module: nn.Module, inputs: list[_Value]) -> _Value:
        value = inputs[0]
        if isinstance(module, nn.Conv2d | PartnerConv2d):
            return self._conv(node, module, value)
        if node.target in self.hooked:
            return self._unknown(f"{node.target!r}, which has forward hooks,", inputs)
        if isinstance(module, NORMS) and value.rank == 4:
            return self._norm(node, module, value)
        if isinstance(module, nn.Linear):
            if value.rank != 2 or not is_ordinary_linear(module):  # it reads the last dimension, here not the channels
                return self._unknown_reader(f"linear layer {node.target!r}", node.target, inputs)
            self._read(node.target, value, module.in_features)
            return _Value(self.sets.new(module.out_features, "a linear layer produces it"), False, value.stride, rank=2)
        if len(inputs) != 1:
            return self._unknown(f"{node.target!r}, with {len(inputs)} inputs,", inputs)
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
        if is_identity_in_evaluation(module):
            return value
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
        if node.target in LOSE_ZERO_CALLS or node.target in CLIP_CALLS:
            return replace(first, zero=first.zero and node.target in CLIP_CALLS and clips_to_zero(node))
        rank = rank_after(node, first.rank)
        return self._unknown(what, inputs) if rank is None else replace(first, rank=rank)

    def _asks_for_width(self, node: fx.Node, rank: int) -> bool:
        """Whether a shape query's answer is used for the number of channels: x.size(1), b, c, h, w = x.shape, ...

        A whole shape says it too: y.view(x.shape), x.shape.numel().
        """
        if node.target == "size" and (dim := argument(node, 1, "dim")) is not None:
            return holds_width(dim, rank) and bool(node.users)
        if node.target not in ("size", getattr) or node.target is getattr and node.args[1] != "shape":
            return False  # len(x), x.dim(), x.device
        used = [user for user in node.users if user.users]
        return any(user.target is not operator.getitem or holds_width(user.args[1], rank) for user in used)

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
            plain = isinstance(module, NORMS) and not is_patched(module)
            norm = follower.target if plain and follower.target not in self.hooked else None
        self.sites[name] = ConvSite(norm, stride)
        if reason is not None:
            self._freeze([value], reason)
            channels = self.sets.new(conv.out_channels, reason)
        elif conv.groups == 1:
            self._read(name, value, conv.in_channels)
            channels = self.sets.new(conv.out_channels)
        elif conv.groups == conv.in_channels == conv.out_channels:
            channels = self.sets.find(value.channels)  # depthwise: the same channels go on
            if not channels.size:  # of the network's input, or of something not known
                channels = self.sets.new(conv.out_channels, channels.frozen)
            if not value.zero:
                self._freeze([value], f"depthwise {name!r} would read a masked channel that is not 0")
        else:
            self._freeze([value], f"grouped convolution {name!r} reads it")
            channels = self.sets.new(conv.out_channels, f"{name!r} is a grouped convolution")
        return _Value(self.sets.add_conv(channels, name), zero=True, stride=stride)

    def _norm(self, node: fx.Node, norm: nn.BatchNorm2d, value: _Value) -> _Value:
        self.sets.add_norm(value.channels, node.target)
        if not norm.affine:
            self._freeze([value], f"batch normalisation {node.target!r} has no gamma and beta to hold at zero")
        elif not is_ordinary_norm(norm):
            self._freeze([value], f"batch normalisation {node.target!r} is not 0 where gamma and beta are")
        return _Value(value.channels, zero=True, stride=value.stride)  # gamma and beta are masked with the channel

    def _read(self, name: str, value: _Value, in_features: int) -> None:
        channels = self.sets.find(value.channels)
        if channels.size and in_features % channels.size == 0:
            self.sets.add_reader(channels, name, in_features // channels.size)
        else:
            self._keep_inputs(name, [value], f"{name!r} reads it in an order that is not channel by channel")
        if not value.zero:
            self._freeze([value], f"{name!r} would read a masked channel that is not 0")

    def _combine(self, node: fx.Node, inputs: list[_Value], values: dict[fx.Node, _Value]) -> _Value:
        added = node.target in ADDITIONS
        if len(inputs) == 1:  # with a number or with itself: a sum with a number other than 0 is not 0
            operands = (*node.args, *node.kwargs.values())
            neutral = all(x in values if isinstance(x, fx.Node) else is_number(x) and x == 0 for x in operands)
            return replace(inputs[0], zero=inputs[0].zero and (neutral or not added))
        if len(inputs) != 2:
            return self._unknown(f"{node.name!r}", inputs, f"combines {len(inputs)} maps")
        one, other = inputs
        if one.rank != other.rank:
            unknown = self._unknown(f"{node.name!r}", inputs, "combines maps of different numbers of dimensions")
            return replace(unknown, rank=max(one.rank, other.rank))
        apart = self.sets.find(one.channels) is not self.sets.find(other.channels)
        channels = self.sets.merge(one.channels, other.channels)
        channels.tied |= added and apart
        zero = (one.zero and other.zero) if added else (one.zero or other.zero)
        return _Value(channels, zero, max(one.stride, other.stride), one.rank)
