"""Claims beside what recorded runs can say about them: it holds here, it does not, or it is open and how wide open."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bpl.report.display import Markdown
from bpl.report.numbers import interval, points
from bpl.report.rows import Row
from bpl.report.statistics import Difference, paired_values
from bpl.report.tables import MISSING, numbered_table, sources_of

_REACH = 1.96  # standard errors on either side of a 95 % interval, many seeds taken for granted


@dataclass(frozen=True)
class Question:
    """A claim, and the two rows whose difference speaks to it.

    Attributes:
        claim: the claim, as a sentence without its full stop.
        where: data set and network on which it is asked.
        arm: the row that is claimed to be better, or as good; None where it is not recorded.
        control: the row that it is held against.
        may_lose: points that the arm may lose and the claim still hold; None where it is to be better.
    """

    claim: str
    where: str
    arm: Row | None
    control: Row | None
    may_lose: float | None = None


def verdict_of(value: Difference | None, may_lose: float | None = None) -> str:
    """What a difference says of a claim: "holds", "does not hold", "open" or "not recorded".

    A claim holds or fails where the whole 95 % interval of the difference lies on one side of the claim's limit.

    Args:
        value: arm minus control, in points; None where there are no runs at common seeds.
        may_lose: as of `Question`.
    """
    if value is None:
        return "not recorded"
    if value.low is None:
        return "open"
    limit = 0.0 if may_lose is None else -may_lose
    if value.low > limit or (may_lose is not None and value.low == limit):
        return "holds"
    return "does not hold" if value.high < limit else "open"


def verdict_table(questions: Sequence[Question], caption: str, name: str) -> Markdown:
    """One line a claim: where it was asked, the difference that speaks to it, and what that says.

    Args:
        questions: the claims.
        caption: what the table shows.
        name: label for cross-references, unique in the book.

    Returns:
        The table, with commands and records behind a toggle.
    """
    lines, rows = [], {}
    for question in questions:
        value = None if question.arm is None else question.arm.difference(question.control)
        shown, n = MISSING, MISSING
        if value is not None:
            shown = f"{points(value.mean)} {interval(value.low, value.high, signed=True)}".strip()
            n = str(value.n)
            rows |= {id(row): row for row in (question.arm, question.control)}
        lines.append([question.claim, question.where, shown, n, f"**{verdict_of(value, question.may_lose)}**"])
    table = numbered_table(["Claim", "Asked on", "Difference, points", "n", "Verdict"], lines, caption, name)
    return Markdown(f"{table}\n\n{sources_of(list(rows.values()))}" if rows else table)


def seeds_needed(arm: Row | None, control: Row | None, size: float) -> Markdown:
    """How many seeds it takes to see a difference of a given size, by the scatter of the recorded pairs.

    Args:
        arm: a row.
        control: what it is held against.
        size: the difference, in points, above 0.

    Returns:
        A sentence; another one where fewer than two pairs are recorded.

    Raises:
        ValueError: a size that is not above 0.
    """
    if size <= 0:
        raise ValueError(f"size is {size}: it must be above 0")
    pairs = [] if arm is None or control is None else paired_values(arm.by_seed(), control.by_seed())
    if len(pairs) < 2:
        return Markdown("How many seeds it would take cannot be said before two pairs of runs are recorded.")
    mean = sum(pairs) / len(pairs)
    deviation = math.sqrt(sum((pair - mean) ** 2 for pair in pairs) / (len(pairs) - 1))
    needed = max(2, math.ceil((_REACH * deviation / size) ** 2))
    return Markdown(
        f"The difference between “{arm.label}” and “{control.label}” scatters from seed to seed with a standard "
        f"deviation of {deviation:.2f} points (n = {len(pairs)}). An interval that reaches {size:g} points to either "
        f"side of the mean, and so tells a difference of that size from none, would take about {needed} seeds."
    )
