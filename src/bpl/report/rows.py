"""Rows: records that differ in their seed only, and how a row is named, subtracted and made again."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from bpl.config import RunConfig
from bpl.defaults import USUAL
from bpl.records import Record, record_path
from bpl.report.statistics import Difference, Scatter, Summary, paired_difference, scatter_of, summarise

LABELS = {
    "dense": "Dense",
    "scratch": "Narrow, from scratch",
    "bpl": "BPL",
    "compact_kd": "Compact KD",
    "oed": "OED",
    "fcs_mlft": "FCS-MLFT",
    "ddsl": "DDSL",
    "kd": "Plain KD",
    "self_kd": "Self-distillation",
    "sfp": "SFP",
    "fpgm": "FPGM",
    "l1": "L1 norm",
    "hrank": "HRank",
    "random": "Random filters",
}
_NOT_VARIANT = ("seed", "device", "data", "tier")  # of these a row's records may differ
# Of these all rows of one table must agree: numbers from other images or another network are not comparable.
COMMON = ("dataset", "split", "arch", "width", "image_size")
# Of these a row and its control must agree: they say how long and how a network was trained.
PROTOCOL = (
    "epochs", "stored_size", "batch_size", "schedule", "learning_rate", "momentum", "weight_decay", "label_smoothing",
    "augmentation", "precision",
)  # fmt: skip
_UNSAID = {name: USUAL[name] for name in ("diversity_form", "partner")}  # only what departs from the paper's is said
_SAID = {"arch": "{}", "epochs": "{} epochs", "diversity_form": "form {}", "partner": "{} partners"}
_COUNTS = ("train", "validation", "test")  # images of each part, as a record has them


class ReportError(ValueError):
    """Records that cannot be shown together; the message says which and why."""


@dataclass(frozen=True)
class Row:
    """Runs that differ in their seed only.

    Attributes:
        config: the config's fields, those that may differ within a row left out.
        said: what sets it apart from other rows of its method: knobs, each in words, such as "diversity weight 0.01".
        records: one record a seed, in the order of the seeds.
        scatter: that of all runs of the same images and network that the row was read with; None where it is not known.
    """

    config: dict[str, Any]
    said: dict[str, str]
    records: tuple[Record, ...]
    scatter: Scatter | None = None

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.config["method"]

    @property
    def ratio(self) -> float:
        """Share of filters removed."""
        return self.config["ratio"]

    @property
    def variant(self) -> str:
        """What sets it apart from other rows of its method, in words; may be empty."""
        return ", ".join(self.said.values())

    @property
    def label(self) -> str:
        """Method and variant, for readers."""
        return ", ".join([LABELS[self.method], *self.said.values()])

    @property
    def source(self) -> str:
        """Where the images came from: "real" or "synthetic"."""
        return self.records[0].data["source"]

    @property
    def place(self) -> tuple[Any, ...]:
        """Images and network."""
        return tuple(self.config[name] for name in COMMON)

    @property
    def seeds(self) -> list[int]:
        """Seeds that are recorded."""
        return [record.config["seed"] for record in self.records]

    @property
    def macs_reduction(self) -> float:
        """Multiply-accumulates removed, percent of the dense network's."""
        return fmean(100 * (1 - r.cost["macs"] / r.cost["dense_macs"]) for r in self.records)

    @property
    def params_reduction(self) -> float:
        """Parameters removed, percent of the dense network's."""
        return fmean(100 * (1 - r.cost["params"] / r.cost["dense_params"]) for r in self.records)

    @property
    def training_macs(self) -> float:
        """Multiply-accumulates of the whole training, mean over seeds."""
        return fmean(record.cost["training_macs"] for record in self.records)

    @cached_property
    def accuracy(self) -> Summary:
        """Top-1 on the test part with the last epoch's weights, percent."""
        return self.summary("test")

    @property
    def last_epoch(self) -> Summary:
        """Top-1 on the test part after the last epoch, percent, in the training's precision, as the curves are."""
        return summarise([record.curves["test"][-1] for record in self.records])

    @property
    def best_epoch_gain(self) -> Summary:
        """What choosing the best epoch on the test part adds to the last epoch, points, of the curves."""
        return summarise([record.accuracy["best_test"] - record.curves["test"][-1] for record in self.records])

    @property
    def is_default(self) -> bool:
        """Whether every knob has the value that the method and the tier give it."""
        return not self.knobs

    @property
    def is_default_method(self) -> bool:
        """Whether every knob of the method has its default value, however long and however it was trained."""
        return self.knobs.keys() <= {*PROTOCOL, *COMMON, "teacher_epochs", "rho"}

    @property
    def knobs(self) -> dict[str, Any]:
        """The knobs that differ from what the method and the tier give them, with their values."""
        plain = RunConfig(
            dataset=self.config["dataset"], method=self.method, ratio=self.ratio, tier=self.records[0].config["tier"]
        ).to_dict()
        return {name: value for name, value in self.config.items() if value != plain[name]}

    def summary(self, name: str) -> Summary | None:
        """Summary over seeds of one of a record's accuracies; None where one of the records lacks it.

        Args:
            name: a key of `Record.accuracy`.
        """
        values = [record.accuracy.get(name) for record in self.records]
        return None if None in values else summarise(values)

    def by_seed(self) -> dict[int, float]:
        """Top-1 on the test part, last epoch, percent, of every seed."""
        return {record.config["seed"]: record.accuracy["test"] for record in self.records}

    def only(self, seeds: Iterable[int]) -> "Row | None":
        """The row of these seeds alone; None where none of them is recorded."""
        wanted = set(seeds)
        records = tuple(record for record in self.records if record.config["seed"] in wanted)
        return dataclasses.replace(self, records=records) if records else None

    def difference(self, control: "Row | None", *, new_images: bool = False) -> Difference | None:
        """Top-1 of this row minus the control's, seed by seed; None without a control or a seed in common.

        Args:
            control: the row that is taken away; with few pairs the rows' `scatter` counts where both are of the same
                images and network (`paired_difference`).
            new_images: with the interval and p of what the difference says of images that no seed has dealt.
        """
        if control is None or control is self:
            return None
        data = self.records[0].data
        dealt = data["test"] / data["train"] if new_images else 0.0
        scatter = self.scatter if control.place == self.place else None
        return paired_difference(self.by_seed(), control.by_seed(), dealt, scatter)

    def command(self) -> str:
        """The one line of shell that makes all runs of this row."""
        data = "synthetic" if self.source == "synthetic" and self.config["dataset"] != "synthetic" else "auto"
        tier = self.records[0].config["tier"]
        seeds = self.seeds
        config = RunConfig.from_dict(self.config | {"seed": seeds[0], "data": data, "tier": tier})
        command = config.command()
        if len(seeds) == 1:
            return command
        one = command.replace(f"--seed {seeds[0]}", "--seed $seed")
        return f"for seed in {' '.join(map(str, seeds))}; do {one}; done"

    def links(self) -> str:
        """The row's record files as Markdown links from a page of the book, one a seed."""
        links = []
        for record in self.records:
            file = record_path(_config_of(record), self.source, Path())
            links.append(f"[seed {record.config['seed']}](../data/results/{file.parent.name}/{record.name}.json)")
        return ", ".join(links)


def _config_of(record: Record) -> RunConfig:
    """The record's config; the folder its images lay in is nobody else's."""
    data = record.config["data"] if record.config["data"] in ("auto", "real", "synthetic") else "auto"
    return RunConfig.from_dict(record.config | {"data": data})


def images_of(record: Record) -> tuple[int, ...]:
    """How many images a record's run trained on, was validated and tested with."""
    return tuple(record.data[part] for part in _COUNTS)


def variant_of(record: Record) -> tuple[tuple[str, Any], ...]:
    """The config's fields that all seeds of a row share, with their values: what tells rows apart."""
    # Through RunConfig: a record from before a knob existed has that knob's default.
    return tuple((k, v) for k, v in _config_of(record).to_dict().items() if k not in _NOT_VARIANT)


def group(records: Iterable[Record]) -> list[Row]:
    """Group records into rows.

    Args:
        records: records of one data set, source, split and network.

    Returns:
        The rows, in the order of a table; their scatter is that of all of them.

    Raises:
        ReportError: records of several data sets, sources, splits or networks, or seeds of different widths.
    """
    records = list(records)
    for name in (*COMMON, "source"):
        values = sorted({str(r.data["source"] if name == "source" else r.config[name]) for r in records})
        if len(values) > 1:
            raise ReportError(f"one table cannot mix {name} {' and '.join(values)}: choose one")
    counted = {images_of(record) for record in records}
    if len(counted) > 1:
        few, more = sorted(counted)[:2]
        raise ReportError(
            f"one table cannot mix sets of {few} and {more} images ({', '.join(_COUNTS)}): one of them is no whole copy"
        )
    groups: dict[tuple, list[Record]] = {}
    for record in records:
        groups.setdefault(variant_of(record), []).append(record)
    rows = []
    for key, members in groups.items():
        config = dict(key)
        ordered = tuple(sorted(members, key=lambda r: r.config["seed"]))
        if config["target"] is not None and len({tuple(record.widths.items()) for record in members}) > 1:
            raise ReportError(
                f"the seeds of target {config['target']} are networks of different widths, so they are no one row: the "
                "widths were measured more than once; make all seeds on one machine with one work folder"
            )
        rows.append(Row(config, {}, ordered))
    scatter = scatter_of([row.by_seed() for row in rows])
    methods = list(LABELS)

    def place(row: Row) -> tuple:
        weight = row.config["diversity_weight"] or 0.0
        return row.method != "dense", row.ratio, methods.index(row.method), weight, row.variant

    return sorted(named_among([dataclasses.replace(row, scatter=scatter) for row in rows]), key=place)


def _apart(config: dict[str, Any], others: list[dict[str, Any]]) -> dict[str, str]:
    """The knobs that set a config apart from others of its method, the ratio aside, each with its words."""
    said = {}
    for name, value in config.items():
        shared = len({other[name] for other in others}) == 1
        without_loss = name == "diversity_weight" and value == 0  # BPL without its loss is never plain "BPL"
        if name == "ratio" or value is None or (shared and not without_loss):
            continue
        if name == "diversity_form" and config["diversity_weight"] == 0:  # of a loss that is not there
            continue
        if name == "diversity_weight":
            said[name] = "no diversity loss" if value == 0 else f"diversity weight {value:g}"
        elif value != _UNSAID.get(name):
            said[name] = _SAID.get(name, f"{name.replace('_', ' ')} {{}}").format(value)
    return said


def named_among(rows: list[Row]) -> list[Row]:
    """The same rows, each named by no more than what sets it apart from the others of its method among them.

    Args:
        rows: some rows of a larger table, whose names tell them apart from rows that are not here.

    Returns:
        The rows in their order.
    """
    configs = [row.config for row in rows]
    return [
        dataclasses.replace(row, said=_apart(row.config, [other for other in configs if other["method"] == row.method]))
        for row in rows
    ]


def select(rows: Iterable[Row], **where: Any) -> Row | None:
    """The row whose config has these values, and its method's and tier's own values in all fields not named.

    Args:
        rows: the rows of one table.
        **where: config fields; ``method`` must be among them.

    Returns:
        The row, or None where there is none.

    Raises:
        ValueError: an unknown field, or a value that is not allowed.
    """
    for row in rows:
        table = {name: row.config[name] for name in COMMON} | {"tier": row.records[0].config["tier"]}
        wanted = RunConfig.from_dict(table | where).to_dict()
        if all(wanted[name] == value for name, value in row.config.items()):
            return row
    return None
