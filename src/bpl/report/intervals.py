"""Differences side by side: one line an arm, its mean difference to a common control with the interval."""

from collections.abc import Mapping, Sequence

from bpl.report.display import Drawing, Markdown
from bpl.report.numbers import p_value, points, spread, with_interval
from bpl.report.rows import Row
from bpl.report.sentences import NO_RECORDS, difference, seeds
from bpl.report.statistics import CONFIDENCE, Difference, left_together
from bpl.report.style import GREY, colour_of, drawing, new_axes
from bpl.report.tables import MISSING, TRAINING, numbered_table, sources_of, training_cost

Pair = tuple[str, Row | None, Row | None]


def contrasts(pairs: Sequence[Pair]) -> Markdown:
    """What differences between arms say, one numbered item each, and what is left when all are tested at once.

    Args:
        pairs: the question, the arm and its control; None for an arm that is not recorded.

    Returns:
        Markdown; a pair without runs at common seeds says so.
    """
    items, tested, significant = [], {}, []
    for number, (question, row, other) in enumerate(pairs, 1):
        value = None if row is None else row.difference(other)
        if value is None:
            said = "Not recorded yet"
        elif value.low is None:
            said = f"{points(value.mean)} points, {value.why_undecided}"
        else:
            shown = value.why_undecided or "significant at the 5 % level as a single test"
            said = f"{difference(value)}, {seeds(value.n)}: {shown}"
        items.append(f"{number}. **{question}** {said}.")
        if value is not None and value.testable:
            tested[number] = value.p
            significant += [number] if value.beyond_chance else []
    corrected = after_holm(tested, significant)
    return Markdown("\n".join(items) + (f"\n\n{corrected}" if corrected else ""))


def after_holm(p_values: Mapping[int, float], claimed: Sequence[int]) -> str:
    """Which of several findings stand when all comparisons, one a line, are tested at once.

    Args:
        p_values: number of a line -> its p, of all that were tested.
        claimed: the numbers of those that are findings by themselves.

    Returns:
        A sentence; empty where nothing was found, or only one comparison was tested.
    """
    if not claimed or len(p_values) == 1:
        return ""
    left = standing(p_values, claimed)
    start = f"After Holm's correction for {len(p_values)} tests, "
    if not left:
        return f"{start}no single line is significant."
    stand = f"line {left[0]} is"
    if len(left) > 1:
        stand = f"lines {', '.join(map(str, left[:-1]))} and {left[-1]} are"
    others = "" if len(left) == len(claimed) else ", the others are not"
    return f"{start}{stand} significant{others}."


def standing(p_values: Mapping[int, float], claimed: Sequence[int]) -> list[int]:
    """The numbers of the findings that are left after Holm's correction; arguments as of `after_holm`."""
    left = dict(zip(p_values, left_together(list(p_values.values())), strict=True))
    return [number for number in claimed if left[number]]


def together(claims: Sequence[tuple[str, Sequence[tuple[Row | None, Row | None]]]]) -> Markdown:
    """What differences that ask the same on several data sets say together, one item a claim.

    Independent tests of one direction are combined by Fisher's method, in both directions; p is two-sided.

    Args:
        claims: the claim, and the arm and the control on each data set; None for what is not recorded.

    Returns:
        Markdown, the differences in the order of the data sets; a claim with fewer than two tested ones says so.
    """
    from scipy import stats

    items, tested = [], {}
    for number, (claim, pairs) in enumerate(claims, 1):
        found = [None if row is None else row.difference(other) for row, other in pairs]
        values = [value for value in found if value is not None and value.testable]
        if len(values) < 2:
            items.append(f"{number}. **{claim}** Not recorded yet on two data sets.")
            continue
        above = [value.p / 2 if value.mean > 0 else 1 - value.p / 2 for value in values]
        sides = [stats.combine_pvalues(p).pvalue for p in (above, [1 - p for p in above])]
        tested[number] = min(1.0, 2 * float(min(sides)))
        means = ", ".join(map(_mean_or_why_none, found))
        items.append(f"{number}. **{claim}** {means} points; together p {p_value(tested[number], '= ')}.")
    corrected = after_holm(tested, [number for number, p in tested.items() if p <= 1 - CONFIDENCE])
    return Markdown("\n".join(items) + (f"\n\n{corrected}" if corrected else ""))


def _mean_or_why_none(value: Difference | None) -> str:
    if value is None:
        return "not recorded"
    return points(value.mean) if value.testable else "too few pairs"


def difference_table(pairs: Sequence[Pair], caption: str, name: str, dense: Row | None = None) -> Markdown:
    """Arms with their accuracies and their differences to a control, one line each.

    Args:
        pairs: the arm's name, the arm and its control; arms that are not recorded are left out.
        caption: what the table shows.
        name: label for cross-references, unique in the book.
        dense: the dense network, where the table is to say what the training of each arm cost relative to its own.

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
        unpaired = ""  # seeds that only one of the two has: the means are then not those of the pairs
        if value is not None and value.n != row.accuracy.n:
            unpaired = f" ({value.n} in pairs)"
        elif value is not None and value.n != other.accuracy.n:
            unpaired = f" (control {other.accuracy.n})"
        lines.append(
            [label, spread(row.accuracy), points(row.best_epoch_gain.mean), *cells, f"{row.accuracy.n}{unpaired}"]
        )
    header = ["Arm", "Top-1, %", "Best test epoch adds", "Difference", "p", "n"]
    if dense is not None:
        header.append(TRAINING)
        for line, (_, row, _) in zip(lines, recorded, strict=True):
            line.append(training_cost(row, dense))
    rows = list({id(row): row for _, row, _ in recorded}.values())
    return Markdown(f"{numbered_table(header, lines, caption, name)}\n\n{sources_of(rows)}")


def difference_chart(pairs: Sequence[Pair], against: str) -> Drawing | Markdown:
    """Mean differences with their 95 % t intervals, one line an arm.

    Args:
        pairs: the arm's name, the arm and its control; arms without three seeds in common are left out.
        against: what the control is, for the axis.

    Returns:
        The figure; one sentence where nothing can be drawn.
    """
    drawn = []
    for label, row, other in pairs:
        value = None if row is None else row.difference(other)
        if value is not None and value.low is not None:
            drawn.append((f"{label} (n = {value.n})", value, colour_of(row)))
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
