"""The knobs of one run. Only `dataset` and `method` are required; what is left None is filled by the tier.

A key that does not exist, or a value that is not allowed, is an error that names the allowed ones.
"""

import dataclasses
import hashlib
import json
import os
import shlex
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from bpl.budget import COSTS, TARGETS, Budget
from bpl.data.batches import POLICIES as AUGMENTATIONS
from bpl.data.catalog import CARDS, LARGEST_IMAGE
from bpl.defaults import (
    BY_METHOD,
    CRITERIA_OF,
    DEVICES,
    FINE_TUNES,
    IDLE,
    KERNEL_NORMS,
    LARGEST_SEED,
    MASKS,
    METHODS,
    ONLY_FOR,
    PRECISIONS,
    PULL,
    SCHEDULES,
    SLIM_AT,
    SPLITS,
    STRENGTHS,
    TIERS,
    USUAL,
)
from bpl.diversity import FORMS
from bpl.machine.compiled import MODES as COMPILE_MODES
from bpl.models import NAMES as ARCHITECTURES
from bpl.partner_shapes import KINDS as PARTNERS
from bpl.paths import is_there
from bpl.pretrain import Pretraining
from bpl.pruning.masks import SCOPES
from bpl.shown import check_whole, shown

_FLOATS = (
    "ratio", "learning_rate", "momentum", "weight_decay", "label_smoothing", "freeze_at", "diversity_weight",
    "distill_weight", "temperature", "feature_weight", "sparsity", "rho",
)  # fmt: skip

_CHOICES = {
    "arch": ARCHITECTURES, "split": SPLITS, "schedule": SCHEDULES, "augmentation": AUGMENTATIONS,
    "precision": PRECISIONS, "device": DEVICES, "compile": COMPILE_MODES, "mask": MASKS, "partner": PARTNERS,
    "kernel_norm": KERNEL_NORMS, "fine_tune": FINE_TUNES, "strengths": STRENGTHS, "scope": SCOPES,
    "diversity_form": tuple(FORMS),
}  # fmt: skip
_WORDS = {"arch": "network", "diversity_form": "diversity form"}

_NOT_IDENTITY = ("device", "compile")  # where and how a run was computed is in its record, but makes it no other run


# What whole numbers may be at the most: beyond it no network can be built, and a mistyped digit is to say so at once.
_LARGEST = {
    "width": 4096, "copies": 64, "image_size": LARGEST_IMAGE, "stored_size": LARGEST_IMAGE, "round_to": 4096,
}  # fmt: skip
_MOST = 10_000_000
_MOST_REMOVED = 0.999999  # as a ratio, which is below 1: a smaller target is refused where it cannot be met


@dataclass(frozen=True)
class RunConfig:
    """One run.

    Attributes:
        dataset: a data set's name (ucm, nwpu-21, aid, synthetic, ...) or the path of a class-folder tree.
        method: a name of `bpl.defaults.METHODS`: dense, scratch (the narrow network from scratch), bpl, and the others.
        arch: network, a name of `bpl.models.NAMES`.
        ratio: share of the filters removed per layer, in [0, 1); 0 for dense. Methods that are steered to a budget take
            the MACs of the network pruned so as theirs. Not read where a `target`, a `budget` or oed's `sparsity`
            decides the size: then it is what the target or budget removes, or 0.
        seed: seed of the split, the weights, the order of the batches and the augmentation.
        tier: quick, cpu or paper: what the fields left None are filled from.
        epochs: passes over the training part.
        data: auto (real images where found, else drawn scenes), real, synthetic, or the folder of the data sets.
        split: protocol (70 % training, 10 % validation, 20 % test), paper (80/20) or aitlas (60/20/20 from files).
        image_size: height and width in pixels.
        stored_size: height and width in pixels of the kept training images, from which random crops are sampled;
            image_size where neither config nor tier says otherwise.
        width: filters of the first stage; None for the tier's, or, with another network than its, the published one.
        batch_size: images a step.
        schedule: one-cycle, or released (a tenth of the rate at half and at three quarters of the epochs).
        learning_rate: the highest rate of the schedule.
        momentum: of SGD.
        weight_decay: L2 penalty on all parameters.
        label_smoothing: share of the target spread over all classes, in [0, 1).
        augmentation: none, flip, released, crop-flip or nadir.
        precision: float32, or bf16 (autocast; weights stay float32).
        criterion: how filters are ranked: a key of `bpl.pruning.CRITERIA`; for fcs_mlft fcs, kernel-norm or
            feature-norm; for hrank rank.
        scope: inner, or all (groups tied by additions too).
        round_to: multiple that kept widths are rounded to.
        mask: soft (re-ranked until the freeze, pruned filters may come back), hard (ranked once, at the freeze),
            released (close to the released BPL code: ranked after every `mask_every` epochs, the partner's gradients
            and the batch normalisation not masked) or leaking (the same with the partner's gradients masked).
        mask_every: epochs between two rankings of a mask that is ranked again (soft, released, leaking).
        freeze_at: share of the epochs after which masks no longer change, in (0, 1]; at least one epoch.
        slim_at: when training goes on with the physically smaller network (the same function, cheaper): freeze, none
            (masked channels are computed to the end), or the number of an epoch, not before the freeze.
        diversity_weight: factor of the diversity loss; 0.01 in the released code.
        diversity_form: a key of `bpl.diversity.FORMS`.
        partner: shape of BPL's partners: same, acnet (1 x k and k x 1) or dbb (1 x 1, 1 x 1 before k x k, and
            1 x 1 before an average).
        kernel_norm: fixed holds the norm of every kernel of a block and its partners at what it was before the step, so
            that all such runs have nearly one effective learning rate; None lets it go where training takes it.
        pretrain: data set and epochs on which the dense network was trained before, such as aid:20; its weights but the
            classifier's are where the run starts, or its dense network. None for fresh weights. That training is a
            dense run of the same recipe, with seed 0 and the protocol's split.
        teacher_epochs: epochs of the dense network that teaches, or that is pruned; the run's own epochs where None.
        distill_weight: factor of the distillation loss.
        temperature: softens the logits in the distillation loss.
        feature_weight: factor of the distillation of block outputs.
        target: share of the dense network's cost that may stay, with widths chosen layer by layer (`bpl.hardware`) in
            place of one ratio: latency:0.3 (measured under onnxruntime on this machine), macs:0.3 or params:0.3; the
            ratio is then what the target removes. None for the ratio.
        budget: share of the dense network's cost that may stay, such as macs:0.26 or params:0.3; None for the MACs of
            the uniformly pruned network at `ratio`.
        sparsity: strength of the penalty that makes a network sparse; None to steer it to the budget. With oed it
            decides the size too.
        copies: networks trained side by side.
        samples: training images whose feature maps are looked at.
        bins: clusters per layer.
        fine_tune: mlft (two peers teach each other) or tft (labels only).
        rho: penalty of the alternating direction method of multipliers (ADMM) at its start, above 0; 0.01 over the
            learning rate where None, so that a step goes the same share of the way whatever the recipe.
        strengths: who sets how strongly to distil and to prune: dean (learnt) or fixed.
        device: auto, cpu or cuda.
        compile: off, or a mode of torch.compile for the training steps (default, reduce-overhead, max-autotune);
            changes rounding and speed only.

    Raises:
        ValueError: a value that is not allowed, with those that are.
    """

    dataset: str
    method: str
    arch: str | None = None
    ratio: float = 0.7
    seed: int = 0
    tier: str = "cpu"
    epochs: int | None = None
    data: str = "auto"
    split: str = "protocol"
    image_size: int | None = None
    stored_size: int | None = None
    width: int | None = None
    batch_size: int | None = None
    schedule: str | None = None
    learning_rate: float | None = None
    momentum: float = 0.9
    weight_decay: float | None = None
    label_smoothing: float | None = None
    augmentation: str | None = None
    precision: str | None = None
    criterion: str | None = None
    scope: str | None = "inner"
    round_to: int | None = 1
    mask: str | None = None
    mask_every: int | None = 1
    freeze_at: float | None = None
    slim_at: int | str | None = "freeze"
    diversity_weight: float | None = None
    diversity_form: str | None = "stage-cosine"
    partner: str | None = "same"
    kernel_norm: str | None = None
    pretrain: str | None = None
    teacher_epochs: int | None = None
    distill_weight: float | None = None
    temperature: float | None = None
    feature_weight: float | None = None
    target: str | None = None
    budget: str | None = None
    sparsity: float | None = None
    copies: int | None = None
    samples: int | None = None
    bins: int | None = None
    fine_tune: str | None = None
    rho: float | None = None
    strengths: str | None = None
    device: str = "auto"
    compile: str = "off"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _plain(getattr(self, field.name)))
        if isinstance(self.dataset, str):
            object.__setattr__(self, "dataset", _data_set(self.dataset))
        _one_of("tier", self.tier, tuple(TIERS))
        _one_of("method", self.method, METHODS)
        filled = USUAL | TIERS[self.tier] | BY_METHOD.get(self.method, {})
        if self.arch not in (None, filled["arch"]):
            filled = filled | {"width": None}  # a tier's width belongs to its own network
        if self.image_size not in (None, filled["image_size"]):
            filled = filled | {"stored_size": None}  # and so does the size that its crops are sampled from
        for name, value in filled.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.stored_size is None:
            object.__setattr__(self, "stored_size", self.image_size)
        if self.teacher_epochs is None:
            object.__setattr__(self, "teacher_epochs", self.epochs)
        self._check_size_is_read()
        if self.rho is None:
            rate = self.learning_rate if _is_number(self.learning_rate) and self.learning_rate > 0 else 1.0
            object.__setattr__(self, "rho", float(f"{PULL / rate:.6g}"))
        for name, methods in ONLY_FOR.items():
            if self.method not in methods:
                object.__setattr__(self, name, None)
        if self.method == "dense":
            object.__setattr__(self, "ratio", 0.0)
        for name, costs in (("target", TARGETS), ("budget", COSTS)):
            if getattr(self, name) is not None:
                asked = Budget.parse(getattr(self, name), name, costs)
                object.__setattr__(self, name, f"{asked.cost}:{asked.share!r}")  # 0.3 and .30 are one run
                object.__setattr__(self, "ratio", min(round(1 - asked.share, 6), _MOST_REMOVED))
        if self.pretrain is not None:
            before = Pretraining.parse(self.pretrain, tuple(CARDS))
            if _overlap(before.dataset, self.dataset):
                raise ValueError(
                    f"pretrain is {shown(self.pretrain)}: {before.dataset} and {self.dataset} have images in common, "
                    "and it would train on test images of this run; name another data set"
                )
            object.__setattr__(self, "pretrain", f"{_data_set(before.dataset)}:{before.epochs}")
        if self.method == "oed" and self.sparsity is not None:
            object.__setattr__(self, "ratio", 0.0)  # the strength alone decides what goes
        self._check()
        for name, (other, values) in IDLE.items():
            if getattr(self, other) in values:
                object.__setattr__(self, name, filled[name])
        for name in _FLOATS:  # 0 and 0.0 are one run
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else float(value) + 0.0)  # and so is -0.0

    def _check_size_is_read(self) -> None:
        """Refuse a size that the method does not read, where other knobs of other methods are only left out."""
        for name in ("target", "budget"):
            readers = ONLY_FOR[name]
            if getattr(self, name) is not None and self.method not in (*readers, "dense"):  # dense ignores a ratio too
                other = "target" if name == "budget" else "budget"
                own = f"{other} or ratio" if self.method in ONLY_FOR[other] else "ratio"
                raise ValueError(
                    f"{name} is {shown(getattr(self, name))}: {self.method} does not read it, its size is set by "
                    f"{own}; {name} is for {', '.join(readers)}"
                )

    def _check(self) -> None:
        for name in ("dataset", "data"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} is {shown(getattr(self, name))}: it must be a name or the path of a folder")
        if self.dataset not in CARDS and not (self.dataset and is_there(self.dataset, Path.is_dir)):
            raise ValueError(
                f"unknown data set {shown(self.dataset)}: allowed are {', '.join(CARDS)}, or a folder of class folders"
            )
        if self.data not in ("auto", "real", "synthetic") and not is_there(self.data, Path.exists):
            raise ValueError(
                f"data is {shown(self.data)}: allowed are auto, real, synthetic, or an existing folder or packed .zip "
                "file"
            )
        for name, allowed in _CHOICES.items():
            if getattr(self, name) is not None or name not in ONLY_FOR:  # None: not read by the method
                _one_of(_WORDS.get(name, name), getattr(self, name), allowed)
        if self.criterion is not None:
            _one_of("criterion", self.criterion, CRITERIA_OF[self.method])
        _within("ratio", self.ratio, 0, 1)
        _within("label_smoothing", self.label_smoothing, 0, 1)
        _within("momentum", self.momentum, 0, 1)
        if self.freeze_at is not None and not (_is_number(self.freeze_at) and 0 < self.freeze_at <= 1):
            raise ValueError(f"freeze_at is {shown(self.freeze_at)}: it must be more than 0 and at most 1")
        for name, least in (("epochs", 1), ("batch_size", 2), ("image_size", 32), ("stored_size", 32), ("seed", 0)):
            _whole(name, getattr(self, name), least, LARGEST_SEED if name == "seed" else _LARGEST.get(name, _MOST))
        for name, least in (
            ("width", 1), ("round_to", 1), ("mask_every", 1),
            ("teacher_epochs", 1), ("copies", 2), ("samples", 2), ("bins", 1),
        ):  # fmt: skip
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), least, _LARGEST.get(name, _MOST))
        if self.slim_at not in (None, *SLIM_AT):
            _epoch_of_slimming(self.slim_at, self.freeze_epoch, self.epochs)
        for name in ("temperature", "rho"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0 < value < float("inf")):
                raise ValueError(f"{name} is {shown(value)}: it must be a number above 0")
        for name in (
            "learning_rate", "weight_decay", "diversity_weight", "distill_weight", "feature_weight", "sparsity",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0 <= value < float("inf")):
                raise ValueError(f"{name} is {shown(value)}: it must be a number of at least 0")

    @property
    def freeze_epoch(self) -> int:
        """Number of epochs after which masks no longer change, of a method that has masks."""
        return max(1, round(self.freeze_at * self.epochs))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RunConfig":
        """A config from a mapping, as in a grid file or a record.

        Raises:
            ValueError: an unknown key (the allowed ones are named), a missing one, or a value that is not allowed.
        """
        names = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in names:
                raise ValueError(
                    f"unknown key {shown(key)} with value {shown(values[key])}: allowed are {', '.join(names)}"
                )
        for key in ("dataset", "method"):
            if key not in values:
                raise ValueError(f"the config {shown(values)} lacks the key {key!r}")
        return cls(**values)

    def dense(self) -> "RunConfig":
        """The run of the dense network that this one learns from or starts from: the same data and recipe."""
        shared = (
            "dataset", "arch", "seed", "tier", "data", "split", "image_size", "stored_size", "width", "batch_size",
            "schedule", "learning_rate", "momentum", "weight_decay", "label_smoothing", "augmentation", "precision",
            "pretrain", "device", "compile",
        )  # fmt: skip
        values = {name: getattr(self, name) for name in shared}
        return RunConfig(method="dense", epochs=self.teacher_epochs, **values)

    def pretraining(self) -> "RunConfig":
        """The dense run whose network this one starts from, where `pretrain` names one: another data set's seed 0."""
        before = Pretraining.parse(self.pretrain, tuple(CARDS))
        teacher = dataclasses.replace(self.dense(), dataset=before.dataset, epochs=before.epochs, pretrain=None)
        if _is_one_set(before.dataset, self.dataset):
            return teacher  # of this run's own split and seed: any other would train on its test images
        return dataclasses.replace(teacher, seed=0, split="protocol")

    def to_dict(self) -> dict[str, Any]:
        """All fields, by name, as in a record."""
        return dataclasses.asdict(self)

    def identity(self, source: str) -> str:
        """Hash of all that makes this run the run it is.

        Args:
            source: "real" or "synthetic": what images the run used.

        Returns:
            8 hex digits. Two runs with the same identity give the same numbers up to rounding.
        """
        unread = (*_NOT_IDENTITY, "data", "tier")
        # None is left out, so that a knob that is added later renames no run that does not read it
        fields = {k: v for k, v in self.to_dict().items() if k not in unread and v is not None}
        text = json.dumps(fields | {"source": source}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def run_name(self, source: str) -> str:
        """File name of the run's record without its ending, such as ``bpl-resnet18-r0.70-s0-1a2b3c4d``."""
        return f"{readable_name(self.method, self.arch, self.ratio, self.seed)}-{self.identity(source)}"

    def command(self) -> str:
        """The command that makes this run: what differs from the tier's and method's defaults."""
        plain = {"dataset": self.dataset, "method": self.method, "tier": self.tier}
        # what other defaults follow from is held as it is here: they are read from a command line that names it
        leading = ("arch", "epochs", "image_size", "learning_rate")
        usual = RunConfig(**plain, **{name: getattr(self, name) for name in leading}).to_dict()
        usual |= {name: getattr(RunConfig(**plain), name) for name in leading}
        tier = f" --tier {self.tier}" if self.tier != RunConfig.tier else ""
        words = [f"bpl run --dataset {shlex.quote(self.dataset)} --method {self.method}{tier}"]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            always = field.name in ("ratio", "seed") and not (field.name == "ratio" and self.method == "dense")
            if field.name in ("dataset", "method", "tier", *_NOT_IDENTITY) or value is None:
                continue
            if always or value != usual[field.name]:
                words.append(f"--{field.name.replace('_', '-')} {shlex.quote(str(value))}")
        return " ".join(words)


def readable_name(method: str, arch: str, ratio: float, seed: int) -> str:
    """The part of a run's name that says something to a reader."""
    return f"{method}-{arch}-r{ratio:.2f}-s{seed}"


def _data_set(name: str) -> str:
    """A data set's name, or its folder in one spelling, so that ``images/``, ``./images`` and ``images`` are one."""
    if name in ("", *CARDS):
        return name
    plain = os.path.normpath(whole := os.path.expanduser(name))
    if ".." in Path(whole).parts:  # what lies above a link is not what is written before it
        real = os.path.realpath(whole)
        plain = real if os.path.isabs(whole) else os.path.relpath(real)
    return os.path.join(".", plain) if plain in CARDS else plain  # a folder ./ucm is not the data set ucm


def _is_one_set(one: str, other: str) -> bool:
    """Whether two names or folders are the same data set."""
    return one == other or not {one, other} & CARDS.keys() and _place(one) == _place(other)


def _place(folder: str) -> Path:
    return Path(folder).expanduser().resolve()


def _overlap(one: str, other: str) -> bool:
    """Whether two names are of different shares of one data set."""
    cards = [CARDS[name] for name in (one, other) if name in CARDS]
    return len(cards) == 2 and one != other and bool(set(cards[0].folders) & set(cards[1].folders))


def _one_of(what: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"unknown {what} {shown(value)}: allowed are {', '.join(allowed)}")


def _plain(value: Any) -> Any:
    """Paths as text, and the numbers of other libraries (NumPy's) as Python's: a record holds plain values only."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(str(value))  # in float32 too 0.7 is 0.7


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _within(what: str, value: Any, low: float, high: float) -> None:
    if not (_is_number(value) and low <= value < high):
        number = "" if _is_number(value) else "a number of "
        raise ValueError(f"{what} is {shown(value)}: it must be {number}at least {low} and less than {high}")


def _whole(what: str, value: Any, least: int, most: int) -> None:
    check_whole(what, value, least)
    if value > most:
        raise ValueError(f"{what} is {shown(value)}: it must be at most {most}")


def _epoch_of_slimming(value: Any, freeze: int, epochs: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not freeze <= value <= epochs:
        raise ValueError(
            f"slim_at is {shown(value)}: allowed are {', '.join(SLIM_AT)} and a whole number of epochs from {freeze}, "
            f"where the masks freeze, to {epochs}"
        )
