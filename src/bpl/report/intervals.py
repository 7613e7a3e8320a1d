"""Differences side by side: one line an arm, its mean difference to a common control with the interval."""

from collections.abc import Sequence

from bpl.report.display import Drawing, Markdown
from bpl.report.numbers import p_value, points, spread, with_interval
from bpl.report.rows import Row
from bpl.report.sentences import NO_RECORDS, difference, from_pairs, seeds
from bpl.report.style import COLOURS, GREY, drawing, new_axes
from bpl.report.tables import MISSING, numbered_table, sources_of

Pair = tuple[str, Row | None, Row | None]


def contrasts(pairs: Sequence[Pair]) -> Markdown:
    """What differences between arms say, one item each.

    Args:
        pairs: the question, the arm and its control; None for an arm that is not recorded.

    Returns:
        Markdown; a pair without runs at common seeds says so.
    """
    items = []
    for question, row, other in pairs:
        value = None if row is None else row.difference(other)
        if value is None:
            items.append(f"- **{question}** Not recorded yet.")
        elif value.low is None:
            items.append(f"- **{question}** {points(value.mean)} points, {from_pairs(value.n)}, which shows little.")
        else:
            shown = (
                "beyond chance, taken by itself" if value.beyond_chance else "no difference that these seeds can show"
            )
            items.append(f"- **{question}** {difference(value)}, {seeds(value.n)}: {shown}.")
    return Markdown("\n".join(items))


def difference_table(pairs: Sequence[Pair], caption: str, name: str) -> Markdown:
    """Arms with their accuracies and their differences to a control, one line each.

    Args:
        pairs: the arm's name, the arm and its control; arms that are not recorded are left out.
        caption: what the table shows.
        name: label for cross-references, unique in the book.

    Returns:
        The table, with commands and records behind a toggle; one sentence where no arm is recorded.
    """
    recorded = [(label, row, other) for label, row, other in pairs if row is not None]
    if not recorded:
        return Markdown("No run of this table is recorded yet.")
    lines = []
    for label, row, other in recorded:
        value = row.difference(other)
        cells = [MISSING, MISSING]
        if value is not None:
            cells = [with_interval(value), MISSING if value.p is None else p_value(value.p)]
        unpaired = "" if value is None or value.n == row.accuracy.n else f" ({value.n} in pairs)"
        lines.append(
            [label, spread(row.accuracy), points(row.best_epoch_gain.mean), *cells, f"{row.accuracy.n}{unpaired}"]
        )
    header = ["Arm", "Top-1, %", "Best test epoch adds", "Difference", "p", "n"]
    rows = list({id(row): row for _, row, _ in recorded}.values())
    return Markdown(f"{numbered_table(header, lines, caption, name)}\n\n{sources_of(rows)}")


def difference_chart(pairs: Sequence[Pair], against: str) -> Drawing | Markdown:
    """Mean differences with their 95 % t intervals, one line an arm.

    Args:
        pairs: the arm's name, the arm and its control; arms without two seeds in common are left out.
        against: what the control is, for the axis.

    Returns:
        The figure; one sentence where nothing can be drawn.
    """
    drawn = []
    for label, row, other in pairs:
        value = None if row is None else row.difference(other)
        if value is not None and value.low is not None:
            drawn.append((f"{label} (n = {value.n})", value, COLOURS.get(row.method, GREY)))
    if not drawn:
        return Markdown(NO_RECORDS)
    figure, axes = new_axes(height=0.8 + 0.34 * len(drawn))
    for place, (_, value, colour) in enumerate(drawn):
        axes.plot([value.low, value.high], [place, place], color=colour, linewidth=1.6, solid_capstyle="butt")
        axes.plot(value.mean, place, "o", color=colour, markersize=6)
    axes.axvline(0, color=GREY, linestyle="--", linewidth=1.0)
    axes.set_yticks(range(len(drawn)), [label for label, *_ in drawn])
    axes.set_ylim(len(drawn) - 0.5, -0.5)
    axes.set_xlabel(f"Top-1 against {against}, points")
    return drawing(figure, f"differences in top-1 against {against}, with 95 % intervals")
