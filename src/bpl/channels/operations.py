"""What single operations do to channels: which keep a channel of zeros zero, which write in place, which flatten.

The tables and questions that `bpl.channels.walk` walks a traced network with.
"""

import operator

import torch
import torch.nn.functional as F
from torch import fx, nn
from torchvision.ops import stochastic_depth

from bpl.channels.ordinary import is_identity_in_evaluation

# Functions f with f(0) = 0, channel by channel: a masked channel stays zero through them.
ZERO_ACTIVATION_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish, nn.Hardtanh, nn.Hardshrink, nn.Softshrink, nn.Softsign, nn.Tanh, nn.Tanhshrink,
)  # fmt: skip
ZERO_ACTIVATION_CALLS = {
    F.relu, torch.relu, F.relu6, F.leaky_relu, F.rrelu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.hardswish,
    F.hardshrink, F.softshrink, F.softsign, torch.tanh, F.tanhshrink,
    F.relu_, F.leaky_relu_, F.elu_, F.selu_, "relu", "relu_", "tanh",
}  # fmt: skip
POOL_MODULES = (nn.MaxPool2d, nn.AvgPool2d)
POOL_CALLS = {F.max_pool2d, F.avg_pool2d}
# What takes the last two dimensions for space, and the one before them for channels; zero stays zero there too.
MAP_MODULES = (*POOL_MODULES, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample, nn.ZeroPad2d)
MAP_CALLS = POOL_CALLS | {F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.interpolate, F.pad}
KEEP_ZERO_MODULES = (*ZERO_ACTIVATION_MODULES, *MAP_MODULES, nn.Identity, nn.Dropout, nn.Dropout2d)
KEEP_ZERO_CALLS = ZERO_ACTIVATION_CALLS | MAP_CALLS | {
    F.dropout, F.dropout2d, stochastic_depth, "contiguous", "clone", "float", "to",
}  # fmt: skip
# Channel by channel too, but f(0) != 0.
LOSE_ZERO_MODULES = (nn.Sigmoid, nn.Hardsigmoid, nn.Softplus)
LOSE_ZERO_CALLS = {torch.sigmoid, F.sigmoid, F.hardsigmoid, F.softplus, "sigmoid", "sigmoid_"}
CLIP_CALLS = {F.hardtanh, torch.clamp, torch.clip, "clamp", "clamp_", "clip", "clip_"}  # 0 where that is in the range
ACTIVATION_MODULES = (*ZERO_ACTIVATION_MODULES, *LOSE_ZERO_MODULES)
ACTIVATION_CALLS = ZERO_ACTIVATION_CALLS | LOSE_ZERO_CALLS | CLIP_CALLS
ADDITIONS = {
    operator.add, operator.iadd, operator.sub, operator.isub, torch.add, torch.sub, "add", "add_", "sub", "sub_",
}  # fmt: skip
DIVISIONS = {operator.truediv, torch.div, "div"}
PRODUCTS = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}
MAKERS = (torch.rand, torch.randn, torch.empty, torch.ones, torch.zeros)  # of tensors, by their size
MAKER_METHODS = ("new_empty", "new_ones", "new_zeros")  # of tensors like another, by their size
IN_PLACE_OPERATORS = (operator.iadd, operator.isub, operator.imul)
SHAPE_QUERIES = {"size", "dim", getattr, len}
HARMLESS_ATTRIBUTES = {"shape", "ndim", "dtype", "device", "layout", "is_cuda", "requires_grad"}
# What gives back its input, or another view of it, or may do so: whatever writes into the one writes into the other.
_SAME_MEMORY_MODULES = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Upsample, nn.ZeroPad2d, nn.Flatten)
_SAME_MEMORY_CALLS = {
    F.dropout, F.dropout2d, F.interpolate, F.pad, stochastic_depth, "contiguous", "float", "to", torch.flatten,
    "flatten", torch.reshape, "reshape", "view", operator.getitem,
}  # fmt: skip


def is_in_place(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether an operation writes, or may write, its result into its first input; `module` is what it calls."""
    if module is not None:
        return bool(getattr(module, "inplace", False))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if name.endswith("_") or node.target in IN_PLACE_OPERATORS:
        return True
    return bool(node.kwargs.get("inplace")) or any(value is True for value in node.args)  # F.relu(x, True)


def may_share_memory(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether an operation's result may be its first input, or a view of it; `module` is what it calls."""
    if module is None:
        return node.target in _SAME_MEMORY_CALLS
    return isinstance(module, _SAME_MEMORY_MODULES) or is_identity_in_evaluation(module)


def is_number(value: object) -> bool:
    """Whether an argument is a number that is written in the code, not one that is computed."""
    return isinstance(value, int | float)


def holds_width(index: object, rank: int) -> bool:
    """Whether an index into the shape of a map, (B, C, ...), takes its number of channels or may take it."""
    if isinstance(index, int):
        return index % rank == 1
    if not isinstance(index, slice):
        return True  # computed: it may
    bounds = (index.start, index.stop, index.step)
    return any(isinstance(bound, fx.Node) for bound in bounds) or 1 in range(rank)[index]


def along_height(number: int | tuple[int, ...]) -> int:
    return number if isinstance(number, int) else number[0]


def argument(node: fx.Node, position: int, name: str, default: object = None) -> object:
    """An argument of a call, given by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def pool_step(node: fx.Node) -> int:
    """Stride of a pooling call along height: its kernel's size where no stride is given."""
    step = argument(node, 2, "stride") or argument(node, 1, "kernel_size", 1)
    step = step[0] if isinstance(step, tuple | list) and step else step
    return step if isinstance(step, int) else 1


def makes_a_number_for_each_image(node: fx.Node) -> bool:
    """Whether a call of `MAKERS` or `MAKER_METHODS` makes a tensor of size (B, 1, 1, 1): the same for all channels."""
    rest = node.args[1:] if node.target in MAKER_METHODS else node.args
    size = node.kwargs.get("size", rest[0] if rest and isinstance(rest[0], list | tuple) else rest)
    lengths = size if isinstance(size, list | tuple) else ()
    # what is computed may be a whole shape: torch.rand(x.shape)
    known = len(lengths) > 1 or len(lengths) == 1 and not isinstance(lengths[0], fx.Node)
    return known and all(length == 1 for length in lengths[1:])


def clips_to_zero(node: fx.Node) -> bool:
    """Whether a call of `CLIP_CALLS` leaves 0 at 0: both of its bounds are numbers, or one is left out."""
    usual = (-1.0, 1.0) if node.target is F.hardtanh else (None, None)
    names = ("min_val", "max_val") if node.target is F.hardtanh else ("min", "max")
    low, high = (argument(node, 1 + place, names[place], usual[place]) for place in (0, 1))
    return (low is None or is_number(low) and low <= 0) and (high is None or is_number(high) and high >= 0)


def pads_space_with_zeros(node: fx.Node) -> bool:
    """Whether a call of `F.pad` leaves the channels alone, and a channel of zeros zero."""
    pad = argument(node, 1, "pad")
    constant = argument(node, 2, "mode", "constant") == "constant"
    return isinstance(pad, tuple | list) and len(pad) <= 4 and not (constant and argument(node, 3, "value"))


def rank_after(node: fx.Node, rank: int) -> int | None:
    """Rank of the result where a call only flattens, averages or cuts the spatial dimensions; None where it may not."""
    rest = node.args[1:]
    if node.target in (torch.flatten, "flatten"):
        whole = argument(node, 1, "start_dim", 0) == 1 and argument(node, 2, "end_dim", -1) in (-1, rank - 1)
        return 2 if whole else None
    if node.target in (torch.mean, "mean"):
        dims = argument(node, 1, "dim")
        dims = [dims] if isinstance(dims, int) else dims
        if dims is None or not {dim % rank for dim in dims} <= set(range(2, rank)):
            return None
        return rank if argument(node, 2, "keepdim", False) else rank - len(dims)
    if node.target in (torch.reshape, "reshape", "view"):
        shape = rest[0] if len(rest) == 1 and isinstance(rest[0], tuple | list) else rest
        batch = isinstance(shape[0], fx.Node) and shape[0].target in ("size", operator.getitem) if shape else False
        return 2 if batch and len(shape) == 2 and shape[1] == -1 else None
    if node.target is operator.getitem:
        index = rest[0] if isinstance(rest[0], tuple) else (rest[0],)
        if Ellipsis in index:
            at = index.index(Ellipsis)
            index = index[:at] + (slice(None),) * (rank - len(index) + 1) + index[at + 1 :]
        kept = all(isinstance(part, slice) for part in index) and all(part == slice(None) for part in index[:2])
        return rank if kept else None
    return None
