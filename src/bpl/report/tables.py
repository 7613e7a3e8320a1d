"""Tables made from rows, as Markdown: narrow enough for a phone, each with its commands and records behind a toggle."""

from collections.abc import Sequence

from bpl.report.display import Markdown
from bpl.report.numbers import interval, percent_change, spread, with_interval
from bpl.report.rows import Row, control, find
from bpl.report.statistics import Difference

MISSING = "–"


def accuracy_table(
    rows: list[Row], caption: str, name: str, *, training: bool = False, sources: bool = True
) -> Markdown:
    """Accuracy against cost, one line a row.

    Args:
        rows: the rows of one table.
        caption: what the table shows.
        name: label for cross-references, such as "tab-ucm-accuracy"; it must be unique in the book.
        training: add what the training cost, relative to the dense network's.
        sources: add the commands and records behind a toggle.

    Returns:
        The table; one sentence where there is no row.
    """
    header = ["Method", "Ratio", "MACs, %", "Top-1, %", "Interval", "To scratch", "To dense", "n"]
    lines = [
        [
            row.label,
            _ratio(row),
            percent_change(-row.macs_reduction),
            spread(row.accuracy),
            interval(row.accuracy.low, row.accuracy.high),
            _difference(None if row.method == "dense" else row.difference(control(rows, row, "scratch"))),
            _difference(row.difference(control(rows, row, "dense"))),
            str(row.accuracy.n),
        ]
        for row in rows
    ]
    if training:
        header.insert(3, "Training")
        for row, line in zip(rows, lines, strict=True):
            line.insert(3, _training(rows, row))
    return _finish(rows, header, lines, caption, name, sources)


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
    header = ["Method", "Ratio", "Parameters, %", "Training MACs", "Last epoch", "Best validation", "Best test"]
    lines = []
    for row in rows:
        lines.append(
            [
                row.label,
                _ratio(row),
                percent_change(-row.params_reduction),
                _training(rows, row),
                spread(row.last_epoch),
                spread(row.summary("test_at_best_validation")),
                spread(row.summary("best_test")),
            ]
        )
    return _finish(rows, header, lines, caption, name, sources)


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


def _training(rows: list[Row], row: Row) -> str:
    """Multiply-accumulates of the row's training, however long it was, as a multiple of the dense network's."""
    dense = find(rows, "dense")
    return MISSING if dense is None else f"{row.training_macs / dense.training_macs:.2f} ×"


def _ratio(row: Row) -> str:
    return MISSING if row.method == "dense" else f"{row.ratio:g}"


def _difference(difference: Difference | None) -> str:
    """Mean difference with its interval; in bold where that of three pairs or more leaves zero outside."""
    if difference is None:
        return MISSING
    text = with_interval(difference)
    return f"**{text}**" if difference.beyond_chance else text


def _finish(
    rows: list[Row], header: Sequence[str], lines: list[list[str]], caption: str, name: str, sources: bool
) -> Markdown:
    if not rows:
        return Markdown("No run of this table is recorded yet.")
    text = numbered_table(header, lines, caption, name)
    return Markdown(f"{text}\n\n{sources_of(rows)}" if sources else text)


def numbered_table(header: Sequence[str], lines: Sequence[Sequence[str]], caption: str, name: str) -> str:
    """A table that the book numbers and a viewer of Markdown shows all the same, as Markdown.

    Args:
        header: names of the columns; the first is set at the left, the others at the right.
        lines: the cells of each line.
        caption: what the table shows.
        name: label for cross-references, unique in the book.
    """
    table = "\n".join(
        "| " + " | ".join(cells) + " |" for cells in (header, [":---", *["---:"] * (len(header) - 1)], *lines)
    )
    return f":::{{table}} {caption}\n:name: {name}\n:class: wide\n\n{table}\n\n:::"
