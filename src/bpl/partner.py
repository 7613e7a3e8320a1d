"""Extension and fusion on whole networks: every k x k conv block gets a partner, and gives it back exactly."""

from collections import Counter

from torch import nn

from bpl.channels import ChannelGraph
from bpl.copies import check_is_bare, copy_of
from bpl.norm_act import take_apart
from bpl.partner_conv import PartnerConv2d
from bpl.partner_shapes import KINDS, SHAPES, fits

_OWN_TABLES = vars(nn.Module()).keys()  # in which torch keeps submodules, parameters, hooks
_CONTAINERS = (list, tuple, set, dict)
# Why a block that would do is left alone, as the end of "of its 7 convolutions 3 ..."
_SHARED = "are used more than once (the shared part can be grown by itself, such as grow_partners(model.encoder))"
_FROZEN = "are frozen (requires_grad of their weights is False)"
_IN_LISTS = (
    "are held in a plain list too, through which the forward pass may call them (nn.ModuleList or nn.Sequential in its "
    "place would do)"
)
LARGEST_KERNEL = 6  # the released code grows partners for 1 < k < 7: a 7 x 7 stem has none


def partner_blocks(model: nn.Module) -> dict[str, PartnerConv2d]:
    """The partner blocks of a network.

    Args:
        model: any network.

    Returns:
        Conv name in the plain network -> its partner block, in the network's order.
    """
    return {name: module for name, module in model.named_modules() if isinstance(module, PartnerConv2d)}


def refuse_unfused(model: nn.Module) -> None:
    """Refuse a network with partners, or inside a wrapper, under whose names no other network has its layers.

    Args:
        model: the network.

    Raises:
        ValueError: it has partners, or is a wrapper.
    """
    check_is_bare(model)
    if blocks := partner_blocks(model):
        raise ValueError(f"{next(iter(blocks))!r} still has a partner: call bpl.fuse_partners before this")


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` where the submodule `name` (dotted) of `model` is, under every name that the network has for it."""
    old = model.get_submodule(name)
    for parent in list(model.modules()):
        for child in [key for key, value in parent._modules.items() if value is old]:
            setattr(parent, child, module)


def _held_elsewhere(model: nn.Module) -> set[int]:
    """Ids of the layers that a module also holds in a plain list, tuple, set or dict.

    A forward pass that goes through such a container would still call them when others stand in their places.
    """
    found: set[int] = set()
    for owner in model.modules():
        waiting = [value for name, value in vars(owner).items() if name not in _OWN_TABLES]
        seen: set[int] = set()
        while waiting:
            value = waiting.pop()
            if isinstance(value, nn.Module):
                found.add(id(value))
            elif isinstance(value, _CONTAINERS) and id(value) not in seen:
                seen.add(id(value))
                waiting += value.values() if isinstance(value, dict) else value
    return found


def _may_have_partner(conv: nn.Module, norm: nn.BatchNorm2d, kind: str) -> bool:
    """Whether a conv and the plain batch normalisation behind it make a k x k block that fuses with such partners."""
    return (
        isinstance(conv, nn.Conv2d)
        and 1 < max(conv.kernel_size) <= LARGEST_KERNEL
        and norm.affine
        and norm.track_running_stats
        and fits(conv, kind)
    )


def _nothing_to_grow(graph: ChannelGraph, kind: str, left: Counter[str], strange: set[str]) -> str:
    """What to say where no block may have a partner: what a block needs, why those that would do were left alone."""
    which = f"none of its {len(graph.sites)} convolutions"
    if left:
        known = "; ".join(f"{count} {why}" for why, count in left.items())
        which = f"of its {len(graph.sites)} convolutions {known}; no other one"
    others = ", ".join(sorted(strange))
    return (
        f"nothing to grow in {type(graph.model).__name__}: {which} has a kernel of more "
        f"than 1 and less than {LARGEST_KERNEL + 1} and is followed by one BatchNorm2d of its own"
        + ("" if kind == "same" else f", with the odd size and the padding that {kind} partners need")
        + (f" ({others} is not a batch normalisation and other layers after it)" if others else "")
        + graph.what_is_closed()
    )


def grow_partners(model: nn.Module, kind: str = "same") -> nn.Module:
    """Give every k x k convolution that a batch normalisation follows a partner (BPL, extension step).

    A partner is a second convolution of the same shape with its own batch normalisation, whose output is added to the
    original's before the activation. Convolutions with 1 < k < 7 get one, as in the released code. Blocks that have a
    partner keep it. Left alone are other convolutions and

    - those whose output something other than one BatchNorm2d reads (DenseNet's pre-activation order);
    - those that the forward pass uses more than once: the shared part of a network can be grown by itself;
    - frozen ones (``requires_grad`` is False): a fresh partner would change what they compute;
    - those with forward hooks, or whose normalisation has any: what a hook changes could not be fused;
    - those that a module also holds in a plain list, through which it may call them.

    A normalisation that holds its activation (timm's BatchNormAct2d) is taken apart.

    Args:
        model: any network that ``torch.fx`` can trace. It is changed in place.
        kind: shape of the partners, a key of `bpl.partner_shapes.SHAPES`: ``same``, ``acnet`` or ``dbb``. The last two
            leave even kernels alone, and those padded by less than half their size: nothing sits in their middle.

    Returns:
        The model.

    Raises:
        ValueError: unknown kind, nothing in the model can have a partner, or it cannot be traced.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of partner {kind!r}: allowed are {', '.join(KINDS)}")
    graph = ChannelGraph(model)
    modules = dict(model.named_modules())
    held = _held_elsewhere(model)
    left: Counter[str] = Counter()  # why blocks that would do are left alone -> how many
    strange: set[str] = set()  # classes of normalisations that are not what a block can be made of
    for name, site in graph.sites.items():
        if site.norm is None:
            continue
        conv, parts = modules[name], take_apart(modules[site.norm])
        if parts is None:
            strange.add(type(modules[site.norm]).__name__)
            continue
        norm, rest = parts
        if _may_have_partner(conv, norm, kind):
            if max(graph.calls[name], graph.calls[site.norm]) > 1:  # it belongs to no single block
                left[_SHARED] += 1
                continue
            if not conv.weight.requires_grad:
                left[_FROZEN] += 1
                continue
            if not held.isdisjoint((id(conv), id(modules[site.norm]))):
                left[_IN_LISTS] += 1
                continue
            partners = SHAPES[kind](conv, norm)
            # in this order: the block holds the norm, and would lose it to what is put in its place
            replace_module(model, site.norm, rest)
            replace_module(model, name, PartnerConv2d(conv, norm, stage=site.stride, partners=partners))
    if not partner_blocks(model):
        raise ValueError(_nothing_to_grow(graph, kind, left, strange))
    return model


def fuse_partners(model: nn.Module) -> nn.Module:
    """Merge every block with its partner into one convolution (BPL, fusion step).

    W = sum_i (gamma_i / s_i) W_i,  b = sum_i (beta_i - mu_i gamma_i / s_i),  s_i = sqrt(var_i + eps): PAPERS section
    1.2. Works on a network with or without masks, since a masked channel has gamma_i = beta_i = 0 in both branches.

    Args:
        model: a network with partners; one without comes back as a copy.

    Returns:
        A new plain network that computes the same in evaluation mode. The fused convolutions have a bias, and an
        `nn.Identity` stands where their batch normalisation was.

    Raises:
        ValueError: a layer inside a block has forward hooks, which nothing could call after fusing.
    """
    fused = copy_of(model)
    for name, block in partner_blocks(fused).items():
        try:
            replace_module(fused, name, block.fuse())
        except ValueError as error:
            raise ValueError(f"cannot fuse {name!r}: {error}") from None
    return fused
