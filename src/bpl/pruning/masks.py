"""Masks: which filters of a network are kept.

Mask keys are the convolutions' names in the plain network; they stay the same after growing partners and after fusing
them. A mask is a bool tensor with one entry per filter, True = kept.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from numbers import Real

import torch
from torch import Tensor, nn

from bpl.channels import ChannelGraph, Channels
from bpl.copies import check_has_values
from bpl.partner_conv import PartnerConv2d, fold_norm
from bpl.pruning.criteria import CRITERIA, Filters
from bpl.shown import check_whole, shown

SCOPES = ("inner", "all")


def convs_of(module: nn.Module) -> list[nn.Conv2d]:
    """The convolutions whose filters a mask key marks: one, or those of a partner block's branches."""
    return module.filters if isinstance(module, PartnerConv2d) else [module]


def readers_of(module: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    """The layers that read a module's input channels: itself, or the first ones of a partner block's branches."""
    return module.readers if isinstance(module, PartnerConv2d) else [module]


def norms_of(module: nn.Module) -> list[nn.BatchNorm2d]:
    """The batch normalisations of a partner block's output channels; none inside a plain convolution."""
    return module.norms if isinstance(module, PartnerConv2d) else []


def kept_filters(filters: int, ratio: float, round_to: int = 1) -> int:
    """How many of a layer's filters stay.

    Args:
        filters: the layer's number of filters N.
        ratio: share of filters removed, in [0, 1).
        round_to: width to round to the nearest multiple of, so that the hardware's vectors are filled.

    Returns:
        N - int(N * ratio), then rounded; at least 1 and at most N.
    """
    kept = filters - int(filters * ratio)
    if round_to > 1:
        kept = max(round_to, round(kept / round_to) * round_to)
    return min(kept, filters)


def prunable_sets(graph: ChannelGraph, scope: str = "inner") -> list[Channels]:
    """The channel sets that may lose channels.

    Args:
        graph: the network's channel analysis.
        scope: ``inner`` leaves out every set that an addition ties together; ``all`` includes them.

    Returns:
        The sets, in forward order. Frozen sets (the output, grouped convolutions, concatenations) are never in it.

    Raises:
        ValueError: unknown scope.
    """
    if scope not in SCOPES:
        raise ValueError(f"unknown scope {scope!r}: allowed are {', '.join(SCOPES)}")
    return [s for s in graph.sets if s.convs and s.frozen is None and (scope == "all" or not s.tied)]


def _filters_of(graph: ChannelGraph, name: str, generator: torch.Generator) -> Filters:
    """What the criteria may look at in one convolution, in float64 on the CPU."""
    module = graph.model.get_submodule(name)
    norm_name = graph.sites[name].norm
    conv = convs_of(module)[0]
    if isinstance(module, PartnerConv2d):
        norm = module.branches[0].norm
        folded = sum(branch.kernel_and_bias()[0] for branch in module.branches)
    elif norm_name is not None:
        norm = graph.model.get_submodule(norm_name)
        folded = fold_norm(conv, norm)[0] if norm.track_running_stats else conv.weight  # no statistics, nothing to fold
    else:
        norm, folded = None, conv.weight

    def exact(tensor: Tensor) -> Tensor:
        return tensor.detach().to("cpu", torch.float64)

    gamma = None if norm is None or norm.weight is None else exact(norm.weight)
    return Filters(exact(conv.weight).flatten(1), exact(folded).flatten(1), gamma, generator)


@torch.no_grad()
def prune_masks(
    model: nn.Module,
    ratio: float,
    criterion: str = "l2",
    scope: str = "inner",
    round_to: int = 1,
    *,
    seed: int = 0,
    widths: Mapping[str, int] | None = None,
) -> dict[str, Tensor]:
    """Rank the filters of every layer and mark the least important ones as pruned.

    Args:
        model: a network, with or without partners.
        ratio: share of filters removed per layer, in [0, 1): int(N * ratio) of N, never all.
        criterion: a key of `bpl.pruning.CRITERIA`.
        scope: ``inner`` = every conv whose output channels no addition or concatenation ties to others; ``all`` =
            groups tied by additions are pruned together as well, by the mean of their members' normalised scores.
        round_to: round the kept widths to the nearest multiple of this.
        seed: seed of the ``random`` criterion.
        widths: conv name -> how many of its filters stay, for widths that differ from layer to layer
            (`bpl.hardware.widths_for`); ratio and round_to are then not read.

    Returns:
        Conv name in the plain network -> bool tensor (N,) on the CPU, True = kept. A depthwise conv shares the mask of
        the conv before it.

    Raises:
        TypeError: the model is no network.
        ValueError: ratio outside [0, 1), round_to below 1, unknown criterion or scope, widths that do not fit, nothing
            that can be pruned, weights without values, or a forward pass that cannot be traced.
    """
    if criterion not in tuple(CRITERIA):  # a tuple, since a value that has no hash is to be named too
        raise ValueError(f"unknown criterion {criterion!r}: allowed are {', '.join(CRITERIA)}")
    graph = ChannelGraph(model)
    check_has_values(model)
    generator = torch.Generator().manual_seed(seed)

    def choose(channels: Channels, kept: int) -> Tensor:
        return highest(scores_of(graph, channels, criterion, generator), kept)

    return choose_masks(graph, ratio, scope, round_to, choose, widths)


def scores_of(graph: ChannelGraph, channels: Channels, criterion: str, generator: torch.Generator) -> list[Tensor]:
    """A criterion's scores of a channel set's channels, (N,) in float64 for each convolution that produces them.

    Args:
        graph: the network's channel analysis.
        channels: one of its sets.
        criterion: a key of `bpl.pruning.CRITERIA`.
        generator: source of chance for the random criterion.

    Raises:
        ValueError: a convolution that the criterion cannot rank, or whose scores are not finite.
    """
    scores = []
    for name in channels.convs:
        try:
            score = CRITERIA[criterion](_filters_of(graph, name, generator))
        except ValueError as error:
            raise ValueError(f"criterion {criterion!r} cannot rank convolution {name!r}: {error}") from error
        if not score.isfinite().all():
            raise ValueError(
                f"criterion {criterion!r} cannot rank convolution {name!r}: its weights, or those of its batch "
                "normalisation, are not all finite numbers"
            )
        scores.append(score)
    return scores


def joint_score(scores: list[Tensor]) -> Tensor:
    """One score (N,) for each channel of a set: the mean over its convolutions, each normalised to mean 1.

    Args:
        scores: one tensor (N,) for each convolution of a channel set, none negative.
    """
    return torch.stack([s / s.mean().clamp_min(1e-30) for s in scores]).mean(0)  # (N,)


def highest(scores: list[Tensor], kept: int) -> Tensor:
    """Keep the channels of highest score.

    Args:
        scores: one tensor (N,) for each convolution of a channel set, none negative (`joint_score`).
        kept: how many channels stay; of equal ones the first.

    Returns:
        Bool tensor (N,), True = kept.
    """
    score = joint_score(scores)
    mask = torch.zeros(len(score), dtype=torch.bool)
    mask[score.argsort(descending=True, stable=True)[:kept]] = True
    return mask


def choose_masks(
    graph: ChannelGraph,
    ratio: float,
    scope: str,
    round_to: int,
    choose: Callable[[Channels, int], Tensor],
    widths: Mapping[str, int] | None = None,
) -> dict[str, Tensor]:
    """Masks of every prunable layer: how many filters stay is the same for all methods, which ones `choose` says.

    Args:
        graph: the network's channel analysis.
        ratio: share of filters removed per layer, in [0, 1).
        scope: ``inner`` or ``all``.
        round_to: round the kept widths to the nearest multiple of this.
        choose: from a channel set and the number of its channels that stay to a bool tensor (N,) on the CPU.
        widths: conv name -> how many of its filters stay, in place of ratio and round_to.

    Returns:
        Conv name in the plain network -> bool tensor (N,), in forward order; the convs of a set have the same mask.

    Raises:
        ValueError: ratio outside [0, 1), round_to below 1, unknown scope, widths that do not fit, or nothing that can
            be pruned.
    """
    if not (isinstance(ratio, Real) and 0 <= ratio < 1):
        raise ValueError(f"ratio is {shown(ratio)}: the share of filters removed must be at least 0 and less than 1")
    check_whole("round_to", round_to, 1)
    sets = prunable_sets(graph, scope)
    if not sets:
        raise ValueError(_nothing_to_prune(graph, scope))
    if widths is not None:
        _check_names(graph, widths)
        _check_scope(graph, sets, scope, widths)
    masks: dict[str, Tensor] = {}
    for channels in sets:
        uniform = kept_filters(channels.size, ratio, round_to)
        mask = choose(channels, uniform if widths is None else _given_width(channels, widths))
        masks |= {name: mask.clone() for name in channels.convs}
    return {name: masks[name] for name in graph.sites if name in masks}


def _nothing_to_prune(graph: ChannelGraph, scope: str) -> str:
    """What to say where no channel set may lose channels: how many convolutions are out of reach, and why."""
    whole = len(graph.of_conv)
    tied = sum(len(channels.convs) for channels in prunable_sets(graph, "all"))  # those that scope inner leaves out
    reasons = Counter(s.frozen for s in graph.sets if s.frozen is not None for _ in s.convs)
    parts = [f"{tied} of its {whole} convolutions are tied by additions (scope 'all' prunes them too)"] if tied else []
    if reasons:
        often = " most often" if len(reasons) > 1 else ""
        why, _ = reasons.most_common(1)[0]
        parts.append(f"{reasons.total()} of its {whole} convolutions keep all filters,{often} because {why}")
    return f"nothing to prune in {type(graph.model).__name__} with scope {scope!r}: " + (
        "; ".join(parts or ["its forward pass uses no convolution"]) + graph.what_is_closed()
    )


def _check_names(graph: ChannelGraph, widths: Mapping[str, int]) -> None:
    if not isinstance(widths, Mapping):
        raise ValueError(f"the widths are {shown(widths)}: they must be a number of filters for a conv's name")
    for name in widths:
        _check_is_conv(graph, name)


def _check_scope(graph: ChannelGraph, sets: Sequence[Channels], scope: str, widths: Mapping[str, int]) -> None:
    """Refuse a width that would be passed over: of a convolution that keeps all of its filters."""
    pruned = {name for channels in sets for name in channels.convs}
    for name, width in widths.items():
        size = graph.of_conv[name].size
        if name not in pruned and width != size:
            raise ValueError(
                f"the width of {name!r} is {shown(width)}: with scope {scope!r} it keeps all of its {size} filters"
            )


def _check_is_conv(graph: ChannelGraph, name: str) -> None:
    if name not in graph.of_conv:
        raise ValueError(f"no convolution is called {shown(name)}: the model's are {', '.join(graph.of_conv)}")


def _given_width(channels: Channels, widths: Mapping[str, int]) -> int:
    """The width that a set's convolutions are given; a ValueError where there is none, or none that they can have."""
    given = {name: widths[name] for name in channels.convs if name in widths}
    for name, width in (given or {channels.convs[0]: None}).items():
        if isinstance(width, bool) or not isinstance(width, int) or not 1 <= width <= channels.size:
            raise ValueError(f"the width of {name!r} is {width!r}: it must be a whole number of 1 to {channels.size}")
    if len(set(given.values())) > 1:
        said = ", ".join(f"{name!r} {width}" for name, width in given.items())
        raise ValueError(f"the widths of convolutions that share their channels differ: {said}")
    return next(iter(given.values()))


def check_masks(graph: ChannelGraph, masks: dict[str, Tensor]) -> None:
    """Raise a ValueError for a mask of an unknown conv, of the wrong size or type, or that keeps nothing."""
    if not isinstance(masks, Mapping):
        raise ValueError(
            f"the masks are {shown(masks)}: they must be what prune_masks gives, one mask for a conv's name"
        )
    for name, mask in masks.items():
        if name not in graph.of_conv and isinstance(graph.modules.get(name), nn.Conv2d | PartnerConv2d):
            raise ValueError(
                f"convolution {name!r} cannot be masked: the forward pass, as far as it was traced, does "
                "not use it" + graph.what_is_closed()
            )
        _check_is_conv(graph, name)
        filters = graph.of_conv[name].size
        what = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != (filters,):
            raise ValueError(f"the mask of {name!r} is {what}: it must be a bool tensor of shape ({filters},)")
        if any("weight" not in conv._parameters for conv in convs_of(graph.model.get_submodule(name))):
            raise ValueError(f"{name!r} computes its weight from other parameters: it cannot be masked")
        if not mask.any():
            raise ValueError(f"the mask of {name!r} keeps none of its {filters} filters: at least one must stay")


def removable(channels: Channels, masks: dict[str, Tensor]) -> Tensor | None:
    """The channels of a set that may go: those that every producer masks, if none of the set is frozen.

    Returns:
        Bool tensor (N,), True = kept; None where nothing goes.
    """
    if channels.frozen is not None or any(name not in masks for name in channels.convs):
        return None
    kept = torch.stack([masks[name].cpu() for name in channels.convs]).any(0)
    return None if kept.all() else kept
