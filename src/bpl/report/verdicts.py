"""Claims beside what recorded runs can say about them: it holds here, it does not, or it is open and how wide open."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bpl.report.display import Markdown
from bpl.report.intervals import after_holm, standing
from bpl.report.numbers import points, with_interval
from bpl.report.rows import Row
from bpl.report.statistics import CONFIDENCE, FEWEST, Difference, paired_values
from bpl.report.tables import MISSING, numbered_table, sources_of

_REACH = 1.96  # standard errors on either side of a 95 % interval, many seeds taken for granted
_POWER = 0.84  # standard errors more, for four tests in five to find what is there
_MOST_SEEDS = 10_000


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
    """What a difference says of a claim: "holds", "contradicted", "open", "too few runs" or "not recorded".

    A claim holds or is contradicted where there are three pairs or more, and the whole 95 % interval of their
    difference lies on one side of the claim's limit.

    Args:
        value: arm minus control, in points; None where there are no runs at common seeds.
        may_lose: as of `Question`.
    """
    if value is None:
        return "not recorded"
    if value.n < FEWEST:
        return "too few runs"
    if not value.testable:
        return "open"
    limit = _limit(may_lose)
    if value.low > limit or (may_lose is not None and value.low == limit):
        return "holds"
    return "contradicted" if value.high < limit else "open"


def _limit(may_lose: float | None) -> float:
    return 0.0 if may_lose is None else -may_lose


def verdict_table(questions: Sequence[Question], caption: str, name: str) -> Markdown:
    """One line a claim: where it was asked, the difference that speaks to it, and what that says.

    With fewer than five pairs a line's interval has the scatter of all recorded runs of its images and network, if that
    is larger than its own. A verdict in bold is left when all lines are tested at once. The last column is the
    verdict with the interval that holds for new images, which is wider.

    Args:
        questions: the claims.
        caption: what the table shows.
        name: label for cross-references, unique in the book.

    Returns:
        The table, what is left of its verdicts when all its lines are tested at once, and commands and records behind a
        toggle.
    """
    lines, rows, decided, tested = [], {}, [], {}
    for number, question in enumerate(questions, 1):
        value = wider = None
        if question.arm is not None:
            value = question.arm.difference(question.control)
            wider = question.arm.difference(question.control, new_images=True)
        shown, n = MISSING, MISSING
        verdict = verdict_of(value, question.may_lose)
        if value is not None:
            shown = with_interval(value)
            n = str(value.n)
            rows |= {id(row): row for row in (question.arm, question.control)}
            if value.testable:
                tested[number] = value.p_against(_limit(question.may_lose))
        if verdict in ("holds", "contradicted"):
            decided.append(number)
        lines.append(
            [
                f"{number}. {question.claim}",
                question.where,
                shown,
                n,
                verdict,
                verdict_of(wider, question.may_lose),
            ]
        )
    for number in standing(tested, decided):
        lines[number - 1][4] = f"**{lines[number - 1][4]}**"
    header = ["Claim", "Asked on", "Difference, points", "n", "Verdict", "For new images"]
    table = numbered_table(header, lines, caption, name)
    parts = [table, after_holm(tested, decided)] + ([sources_of(list(rows.values()))] if rows else [])
    return Markdown("\n\n".join(part for part in parts if part))


def seeds_needed(arm: Row | None, control: Row | None, size: float) -> Markdown:
    """How many seeds it takes to decide on a loss of a given size, by the scatter of the recorded pairs.

    Args:
        arm: a row.
        control: what it is held against.
        size: the loss that a claim allows, in points, above 0.

    Returns:
        Sentences; another one where fewer than three pairs are recorded, or they do not scatter.

    Raises:
        ValueError: a size that is not above 0.
    """
    if size <= 0:
        raise ValueError(f"size is {size}: it must be above 0")
    pairs = [] if arm is None or control is None else paired_values(arm.by_seed(), control.by_seed())
    deviation = statistics.stdev(pairs) if len(pairs) >= FEWEST else 0.0
    if not deviation:
        return Markdown(
            f"How many seeds it takes cannot be said before {FEWEST} pairs of runs are recorded that differ."
        )
    told_apart = math.ceil(((_REACH + _POWER) * deviation / size) ** 2)
    mean = statistics.fmean(pairs)
    return Markdown(
        f"The difference between “{arm.label}” and “{control.label}” scatters from seed to seed with a standard "
        f"deviation of {deviation:.2f} points (n = {len(pairs)}, mean {points(mean)}). To tell a true loss of {size:g} "
        f"points from none, four times out of five, would take about {told_apart:,} pairs of runs. "
        f"{_one_side(mean, deviation, -size, len(pairs))}"
    )


def _one_side(mean: float, deviation: float, limit: float, recorded: int) -> str:
    """From how many pairs on the whole interval lies on one side of a limit, if mean and scatter stay as they are."""
    from scipy import stats

    side = "below" if mean < limit else "above"
    for n in range(FEWEST, _MOST_SEEDS):
        if float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * deviation / math.sqrt(n) < abs(mean - limit):
            reach = f"{n} pairs put the whole interval {side} {points(limit)}"
            return f"If mean and scatter stayed as they are, {reach}; we have {recorded}."
    return f"The mean lies so near {points(limit)} that no number of runs one could make would decide on which side."
