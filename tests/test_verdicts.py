"""Verdicts on claims: the whole interval decides, and what is not known is said to be open."""

import math
from types import SimpleNamespace

import pytest

from bpl import report
from bpl.report.statistics import paired_difference
from bpl.report.verdicts import Question, seeds_needed, verdict_of, verdict_table


class Arm(SimpleNamespace):
    """As much of a row as a verdict reads: a name, top-1 by seed."""

    def by_seed(self) -> dict[int, float]:
        return self.top1

    def difference(self, other: "Arm | None"):
        return None if other is None else paired_difference(self.top1, other.top1)


def arm(*top1: float, label: str = "Arm") -> Arm:
    return Arm(label=label, top1=dict(enumerate(top1)))


@pytest.mark.parametrize(
    ("low", "high", "may_lose", "verdict"),
    [
        (0.1, 0.5, None, "holds"),
        (-0.1, 0.5, None, "open"),
        (-0.5, -0.1, None, "does not hold"),
        (-0.2, 0.5, 0.24, "holds"),  # may lose a little, and does not lose more
        (-0.24, 0.5, 0.24, "holds"),
        (-0.3, 0.5, 0.24, "open"),
        (-0.9, -0.3, 0.24, "does not hold"),
        (-0.9, -0.2, 0.24, "open"),
    ],
)
def test_a_claim_holds_or_fails_only_by_the_whole_interval(low, high, may_lose, verdict):
    assert verdict_of(report.Difference(3, (low + high) / 2, low, high, 0.5), may_lose) == verdict


def test_one_pair_is_open_however_large_and_none_is_not_recorded():
    assert verdict_of(report.Difference(1, 30.0, None, None, None)) == "open"
    assert verdict_of(None) == "not recorded"


def test_the_table_says_of_each_claim_what_its_difference_says(monkeypatch):
    monkeypatch.setattr("bpl.report.verdicts.sources_of", lambda rows: f"{len(rows)} rows behind it")
    good, bad = arm(90.0, 91.0, 92.0), arm(80.0, 81.1, 81.9)
    questions = [
        Question("Up", "here", good, bad),
        Question("Down", "here", bad, good),
        Question("Nothing", "there", None, good),
        Question("Nobody", "there", good, None),
    ]
    text = repr(verdict_table(questions, "Claims.", "tab-x"))
    lines = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert [line.split("|")[-2].strip() for line in lines] == [
        "**holds**", "**does not hold**", "**not recorded**", "**not recorded**",
    ]  # fmt: skip
    assert "+10.00 [+9.8," in lines[0] and "−10.00" in lines[1]
    assert "2 rows behind it" in text  # each once, and only those that are shown


def test_the_seeds_that_it_takes_give_an_interval_of_the_size_asked_for():
    ours, theirs = arm(1.0, 3.0, 2.0, 6.0, label="A"), arm(0.0, 0.0, 0.0, 0.0, label="B")
    deviation = math.sqrt(sum((x - 3) ** 2 for x in (1, 3, 2, 6)) / 3)
    text = repr(seeds_needed(ours, theirs, 0.5))
    needed = int(text.split("about ")[1].split()[0])
    assert 1.96 * deviation / math.sqrt(needed) <= 0.5 < 1.96 * deviation / math.sqrt(needed - 1)
    assert f"{deviation:.2f} points (n = 4)" in text


def test_the_seeds_are_not_guessed_from_one_pair():
    assert "cannot be said" in repr(seeds_needed(arm(1.0), arm(2.0), 0.24))
    assert "cannot be said" in repr(seeds_needed(None, arm(2.0), 0.24))
    with pytest.raises(ValueError, match="size is 0: it must be above 0"):
        seeds_needed(arm(1.0), arm(2.0), 0)
