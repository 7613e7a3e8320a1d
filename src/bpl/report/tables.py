"""Tables made from rows, as Markdown: narrow enough for a phone, each with its commands and records behind a toggle."""

import math
import re
from collections.abc import Sequence

from bpl.report.controls import control, find
from bpl.report.display import Markdown
from bpl.report.numbers import NBSP, interval, percent_change, spread, with_interval
from bpl.report.rows import Row

MISSING = "–"
TRAINING = "Training MACs, × dense"
PER_CLASS = "Mean per class, %"
# A number in bold, with a sign or in brackets; "3x3" is none.
_NUMBER = re.compile(r"[^\w]*\d[\d.,]*(e[+-]?\d+)?(?!\w)")


def accuracy_table(
    rows: list[Row], caption: str, name: str, *, training: bool = False, sources: bool = True
) -> Markdown:
    """Accuracy against cost, one line a row; what a phone shows without scrolling comes first.

    Where classes have unequally many images, and all records have it, top-1 averaged over classes stands beside top-1.

    Args:
        rows: the rows of one table.
        caption: what the table shows.
        name: label for cross-references, such as "tab-ucm-accuracy"; it must be unique in the book.
        training: add what the training cost, relative to the dense network's.
        sources: add the commands and records behind a toggle.

    Returns:
        The table; one sentence where there is no row.
    """
    per_class = [row.summary("mean_per_class") for row in rows]
    columns = {
        "Method": [row.label for row in rows],
        "Ratio": [_ratio(row) for row in rows],
        "Top-1, %": [spread(row.accuracy) for row in rows],
        PER_CLASS: [spread(mean) for mean in per_class],
        "Against scratch, points": [
            MISSING if row.method == "dense" else _difference(rows, row, control(rows, row, "scratch")) for row in rows
        ],
        "Against dense, points": [_difference(rows, row, control(rows, row, "dense")) for row in rows],
        "n": [str(row.accuracy.n) for row in rows],
        "MACs, %": [percent_change(-row.macs_reduction) for row in rows],
        TRAINING: [training_cost(row, find(rows, "dense")) for row in rows],
        "Top-1, bootstrap": [interval(row.accuracy.low, row.accuracy.high) for row in rows],
    }
    if not training:
        del columns[TRAINING]
    if None in per_class or all(
        math.isclose(mean.mean, row.accuracy.mean) for mean, row in zip(per_class, rows, strict=True)
    ):
        del columns[PER_CLASS]  # not measured, or the same: all classes have equally many images
    return _finish(rows, columns, caption, name, sources)


def cost_table(rows: list[Row], caption: str, name: str, *, sources: bool = True) -> Markdown:
    """What a row costs, and its accuracy by three ways of choosing the epoch, all measured as the curves are.

    Args:
        rows: the rows of one table.
        caption: what the table shows.
        name: label for cross-references, unique in the book.
        sources: add the commands and records behind a toggle.

    Returns:
        The table; one sentence where there is no row.
    """
    columns = {
        "Method": [row.label for row in rows],
        "Ratio": [_ratio(row) for row in rows],
        "Parameters, %": [percent_change(-row.params_reduction) for row in rows],
        TRAINING: [training_cost(row, find(rows, "dense")) for row in rows],
        "Last epoch": [spread(row.last_epoch) for row in rows],
        "Best validation": [spread(row.summary("test_at_best_validation")) for row in rows],
        "Best test": [spread(row.summary("best_test")) for row in rows],
    }
    return _finish(rows, columns, caption, name, sources)


def sources_of(rows: list[Row]) -> str:
    """The command that makes each row, and links to its records, as Markdown behind a toggle.

    Args:
        rows: the rows of one table.

    Returns:
        Markdown.
    """
    parts = ["<details>", "<summary>The command and the records of each row</summary>", ""]
    for row in rows:
        ratio = "" if row.method == "dense" else f", ratio {_ratio(row)}"
        parts += [f"{row.label}{ratio}: {row.links()}", "", "```bash", row.command(), "```", ""]
    return "\n".join([*parts, _provenance(rows), "", "</details>"])


def _provenance(rows: list[Row]) -> str:
    """Versions and machines behind the rows, in one sentence."""
    records = [record for row in rows for record in row.records]

    def all_of(key: str) -> str:
        return ", ".join(sorted({str(record.environment[key]) for record in records}))

    return (
        f"Made with Python {all_of('python')}, torch {all_of('torch')} on {all_of('device')} ({all_of('machine')}, "
        f"{all_of('threads')} threads); digest of the library's source: {all_of('source')}; of the images: "
        f"{', '.join(sorted({record.data['digest'][:16] for record in records}))}."
    )


def training_cost(row: Row, dense: Row | None) -> str:
    """Multiply-accumulates of a row's training, however long it was, as a multiple of the dense network's.

    Args:
        row: the row.
        dense: the dense network's; None where it is not recorded.
    """
    return MISSING if dense is None else f"{row.training_macs / dense.training_macs:.2f}"


def _ratio(row: Row) -> str:
    return MISSING if row.method == "dense" else f"{row.ratio:g}"


def _difference(rows: list[Row], row: Row, other: Row | None) -> str:
    """Mean difference with its interval, in bold where that of three pairs or more leaves zero outside.

    The number of pairs is said where one of the two has more seeds: the means in the table are then not of the pairs.
    """
    difference = row.difference(other)
    if difference is None:
        return MISSING
    text = with_interval(difference)
    if difference.beyond_chance:
        text = f"**{text}**"
    if difference.n == row.accuracy.n == other.accuracy.n:
        return text
    return f"{text} ({difference.n}{NBSP}{'pair' if difference.n == 1 else 'pairs'})"


def _finish(rows: list[Row], columns: dict[str, list[str]], caption: str, name: str, sources: bool) -> Markdown:
    """The table of columns; a ratio that all pruned rows share is said in the caption, not in a column."""
    if not rows:
        return Markdown("No run of this table is recorded yet.")
    ratios = set(columns["Ratio"]) - {MISSING}
    if len(ratios) <= 1:
        del columns["Ratio"]
        unsaid = [f" Pruning ratio {ratio}." for ratio in ratios if f"ratio {ratio}" not in caption]
        caption += "".join(unsaid)
    text = numbered_table(list(columns), list(zip(*columns.values(), strict=True)), caption, name)
    return Markdown(f"{text}\n\n{sources_of(rows)}" if sources else text)


def numbered_table(header: Sequence[str], lines: Sequence[Sequence[str]], caption: str, name: str) -> str:
    """A table that the book numbers and a viewer of Markdown shows all the same, as Markdown.

    Args:
        header: names of the columns; the first and those of words are set at the left, those of numbers at the right.
        lines: the cells of each line.
        caption: what the table shows.
        name: label for cross-references, unique in the book.
    """
    words = [any(map(_is_words, cells)) for cells in zip(*lines, strict=True)] or [False] * len(header)
    rule = [":---" if place == 0 or words[place] else "---:" for place in range(len(header))]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *lines))
    return f":::{{table}} {caption}\n:name: {name}\n:class: wide\n\n{table}\n\n:::"


def _is_words(cell: str) -> bool:
    """Whether a cell is read as words: it has letters, and does not begin with a number."""
    return any(map(str.isalpha, cell)) and not _NUMBER.match(cell)
