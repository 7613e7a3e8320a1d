"""What was tried for methods that do not beat the narrow network from scratch, judged on the validation part alone."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bpl.report.controls import find
from bpl.report.display import Markdown
from bpl.report.numbers import with_interval
from bpl.report.rows import LABELS, Row
from bpl.report.statistics import Difference, paired_difference
from bpl.report.tables import MISSING, numbered_table, sources_of

LAST = 10  # epochs, averaged: one look at a small validation part is coarse, and the best of many is luck
NOTHING = "No run of this search is recorded yet."


def on_validation(row: Row) -> dict[int, float]:
    """Top-1 on the validation part by seed, percent: the mean over the last ten epochs.

    Args:
        row: a row whose runs have a validation part.
    """
    return {record.config["seed"]: statistics.fmean(record.curves["validation"][-LAST:]) for record in row.records}


@dataclass(frozen=True)
class _Tried:
    """One line: a setting of a method, on the seeds that were searched.

    Attributes:
        row: the runs.
        setting: what differs from the method's own.
        validation: by seed.
        own: the method's own setting, by seed; None for itself, or where it is not recorded.
        scratch: the narrow network from scratch, by seed; None where it is not recorded.
    """

    row: Row
    setting: str
    validation: dict[int, float]
    own: dict[int, float] | None
    scratch: dict[int, float] | None

    @property
    def mean(self) -> float:
        return statistics.fmean(self.validation.values())

    def to_own(self) -> Difference | None:
        return paired_difference(self.validation, self.own) if self.own is not None else None

    def to_scratch(self) -> Difference | None:
        return paired_difference(self.validation, self.scratch) if self.scratch is not None else None


def _lines(rows: list[Row], tried: Sequence[Row]) -> list[list[_Tried]]:
    """For each method its own setting, where that is recorded at a searched seed, then the others, the best first."""
    methods = sorted({row.method for row in tried}, key=list(LABELS).index)
    found = []
    for method in methods:
        members = [row for row in tried if row.method == method]
        seeds = {seed for row in members for seed in row.seeds}
        usual, scratch = (find(rows, name, members[0].ratio) for name in (method, "scratch"))
        own, control = (
            None if row is None else {seed: value for seed, value in on_validation(row).items() if seed in seeds}
            for row in (usual, scratch)
        )
        first = [_Tried(usual, "as it is", own, None, control)] if own else []
        others = [_Tried(row, _setting(row), on_validation(row), own, control) for row in members]
        found.append(first + sorted(others, key=lambda line: -line.mean))
    return found


def _setting(row: Row) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in row.knobs.items())


def search_table(rows: list[Row], tried: Sequence[Row], caption: str, name: str) -> Markdown:
    """Settings that were tried beside the methods' own, one line each, with no number of the test part.

    Args:
        rows: the methods as they are, and the narrow network from scratch.
        tried: the rows of the search.
        caption: what the table shows.
        name: label for cross-references, unique in the book.

    Returns:
        The table, with commands and records behind a toggle; one sentence where nothing is recorded.
    """
    lines = [line for method in _lines(rows, tried) for line in method]
    if not lines:
        return Markdown(NOTHING)
    cells = [
        [
            f"{LABELS[line.row.method]}, {line.setting}",
            f"{line.mean:.2f}",
            _points(line.to_own()),
            _points(line.to_scratch()),
            str(len(line.validation)),
        ]
        for line in lines
    ]
    table = numbered_table(
        ["Setting", "Validation, %", "Against its own, points", "Against scratch, points", "n"], cells, caption, name
    )
    return Markdown(f"{table}\n\n{sources_of([line.row for line in lines])}")


def search_answer(rows: list[Row], tried: Sequence[Row]) -> Markdown:
    """Method by method, what the best setting of the search is worth on the validation part.

    Args:
        rows: the methods as they are, and the narrow network from scratch.
        tried: the rows of the search.

    Returns:
        Markdown, one item a method; one sentence where nothing is recorded.
    """
    items = []
    for lines in _lines(rows, tried):
        best = max(lines, key=lambda line: line.mean)
        others = sum(line.setting != "as it is" for line in lines)
        text = f"- {LABELS[best.row.method]}: {others} tried; best on the validation part is *{best.setting}*"
        value = best.to_scratch()
        if value is not None:
            verdict = "above" if value.mean > 0 else "not above"
            text += f", {verdict} the narrow network from scratch ({_points(value)} points, n = {value.n})"
        items.append(f"{text}.")
    return Markdown("\n".join(items) or NOTHING)


def _points(value: Difference | None) -> str:
    return MISSING if value is None else with_interval(value)
