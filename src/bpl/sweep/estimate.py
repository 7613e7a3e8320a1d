"""How much computation a campaign is, by arithmetic, before anything is run; time and cost follow under an assumption.

Counted are multiply-accumulates of convolutions and linear layers, forward and backward (3 x forward). A record's
``training_macs`` has those of the dense network that the run learns from or prunes, too; here that is a run of its own,
counted once however many runs need it. What the methods compute is stated here a second time, by networks instead of by
code; a test holds the two against each other.
"""

import copy
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import nn

from bpl.budget import TARGETS, Budget
from bpl.channels import ChannelGraph
from bpl.config import RunConfig
from bpl.data import CARDS
from bpl.defaults import LEAKING_MASKS
from bpl.measure import count_macs
from bpl.models import build_model
from bpl.partner import grow_partners
from bpl.pruning import slim
from bpl.pruning.masks import kept_filters, prunable_sets
from bpl.schedule import images_an_epoch
from bpl.sweep.chips import BF16_PEAK

UTILISATION = 0.05  # assumed share of the chip's bf16 rate; ResNets wait for memory, and narrow layers more so

# Share of the images that a split trains on.
_TRAINED_ON = {"paper": 0.8, "protocol": 0.7, "aitlas": 0.6}

# Multiply-accumulates of an image before and after the network shrinks, by those of a forward pass of four networks:
# the dense (d), the narrow (n), the dense with partners (p), the narrow with partners (s). At most, where a method
# decides by itself how small its network becomes. The training of a teacher is not in it: it is a run of its own.
_STEP: dict[str, Callable[[int, int, int, int], tuple[int, int]]] = {
    "dense": lambda d, n, p, s: (3 * d, 3 * d),
    "scratch": lambda d, n, p, s: (3 * n, 3 * n),
    "bpl": lambda d, n, p, s: (3 * p, 3 * s),
    **dict.fromkeys(("l1", "sfp", "fpgm", "random"), lambda d, n, p, s: (3 * d, 3 * n)),
    "hrank": lambda d, n, p, s: (3 * n, 3 * n),
    "kd": lambda d, n, p, s: (3 * n + d, 3 * n + d),
    "self_kd": lambda d, n, p, s: (4 * n, 4 * n),  # shallow classifiers included
    "compact_kd": lambda d, n, p, s: (4 * d, 4 * d),
    "oed": lambda d, n, p, s: (3 * d, 3 * d),  # of each copy
    "fcs_mlft": lambda d, n, p, s: (6 * n, 6 * n),  # two peers
    "ddsl": lambda d, n, p, s: (6 * d, 6 * d),
}


def training_macs(config: RunConfig, images: int, classes: int) -> int:
    """Multiply-accumulates of all training steps of a run, forward and backward; at most, for methods that search.

    With a target, its share of the dense network's cost is taken for that of the multiply-accumulates.

    Args:
        config: the run.
        images: of the training part.
        classes: of the data set.
    """
    dense, narrow, partners, slimmed = _forward(
        config.arch, config.width, config.image_size, classes, config.ratio, config.scope or "inner",
        config.round_to or 1, config.partner or "same",
    )  # fmt: skip
    if config.target is not None:
        share = Budget.parse(config.target, "target", TARGETS).share
        narrow, slimmed = round(share * dense), round(share * partners)
    step = _STEP[config.method](dense, narrow, partners, slimmed)
    before, after = (macs * (config.copies or 1) for macs in step)
    seen = images_an_epoch(images, config.batch_size)
    shrunk = config.epochs if config.slim_at in (None, "none") or config.mask in LEAKING_MASKS else config.slim_at
    shrunk = config.freeze_epoch if shrunk == "freeze" else shrunk
    return seen * (shrunk * before + (config.epochs - shrunk) * after)


def runs_before(config: RunConfig) -> list[RunConfig]:
    """The runs whose networks a run asks for: its dense network, and what it starts from."""
    teachers = [config.dense()] if config.teacher_epochs is not None else []
    return teachers + ([config.pretraining()] if config.pretrain is not None else [])


def _with_what_they_need(stages: Sequence[Sequence[RunConfig]]) -> list[list[RunConfig]]:
    """The stages with the runs that theirs ask for and no stage has, each once, in the first stage that asks."""
    known = {config for stage in stages for config in stage}
    whole = []
    for stage in stages:
        grown = list(stage)
        for config in grown:  # it grows: what a run needs may need another
            missing = [before for before in runs_before(config) if before not in known]
            grown += missing
            known.update(missing)
        whole.append(grown)
    return whole


@lru_cache(maxsize=64)
def _forward(
    arch: str, width: int | None, image_size: int, classes: int, ratio: float, scope: str, round_to: int, partner: str
) -> tuple[int, int, int, int]:
    """Multiply-accumulates of one image in the dense, the narrow, and the two networks with partners."""

    def narrow(model: nn.Module) -> nn.Module:
        sets = prunable_sets(ChannelGraph(model), scope)  # which filters go has no bearing on the cost
        masks = {name: torch.arange(s.size) < kept_filters(s.size, ratio, round_to) for s in sets for name in s.convs}
        return slim(model, masks)

    with torch.device("meta"):  # shapes, no weights
        dense = build_model(arch, classes, image_size, width)
        grown = grow_partners(copy.deepcopy(dense), partner)
    return tuple(count_macs(model, image_size) for model in (dense, narrow(dense), grown, narrow(grown)))


def estimate(stages: Sequence[Sequence[RunConfig]], chip: str = "H200", price: float | None = None) -> str:
    """What a grid takes, stage by stage, as a table in text.

    Args:
        stages: the runs.
        chip: a key of `BF16_PEAK`.
        price: of an hour of it, in any currency; None to leave the cost out.

    Returns:
        A line for each stage and one for all: runs, with the dense networks that they need and no stage has; FLOPs
        (two a multiply-accumulate), hours, cost.

    Raises:
        ValueError: an unknown chip, a price below 0, or a data set whose size is not known before it is looked at.
    """
    if chip not in BF16_PEAK:
        raise ValueError(f"unknown chip {chip!r}: allowed are {', '.join(BF16_PEAK)}")
    if price is not None and not 0 <= price < float("inf"):
        raise ValueError(f"price is {price}: it must be at least 0")
    stages = _with_what_they_need(stages)
    per_second = BF16_PEAK[chip] * UTILISATION
    flops = [2 * sum(training_macs(config, *size_of(config)) for config in stage) for stage in stages]
    rows = [(str(number), len(stage), work) for number, (stage, work) in enumerate(zip(stages, flops, strict=True), 1)]
    rows.append(("all", sum(map(len, stages)), sum(flops)))
    lines = [
        f"an estimate: {chip} at {100 * UTILISATION:g} % of its {BF16_PEAK[chip] / 1e12:g} TFLOP/s in bf16 (assumed), "
        "without compiling, evaluation and start",
        f"{'stage':>6}{'runs':>7}{'PFLOP':>10}{'hours':>9}" + ("" if price is None else f"{'cost':>10}"),
    ]
    for name, runs, work in rows:
        hours = work / per_second / 3600
        cost = "" if price is None else f"{hours * price:10.2f}"
        lines.append(f"{name:>6}{runs:7d}{work / 1e15:10.1f}{hours:9.2f}{cost}")
    return "\n".join(lines)


def size_of(config: RunConfig) -> tuple[int, int]:
    """Images that a run trains on, and classes, by the data set's card.

    Args:
        config: the run.

    Raises:
        ValueError: the card does not say, as of a folder of one's own.
    """
    card = CARDS.get(config.dataset)
    if card is None or card.images_total is None:
        known = ", ".join(name for name, other in CARDS.items() if other.images_total is not None)
        raise ValueError(f"the size of {config.dataset!r} is not known beforehand: an estimate can be had for {known}")
    if card.classes is None:
        from bpl.data.synthetic import CLASSES

        return round(card.images_total * _TRAINED_ON[config.split]), len(CLASSES)
    return round(card.images_total * _TRAINED_ON[config.split]), len(card.classes)
