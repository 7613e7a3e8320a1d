"""Verdicts on claims: the whole interval decides, and what is not known is said to be open."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from bpl import report
from bpl.report.statistics import paired_difference
from bpl.report.verdicts import Question, seeds_needed, verdict_of, verdict_table


class Arm(SimpleNamespace):
    """As much of a row as a verdict reads: a name, top-1 by seed."""

    def by_seed(self) -> dict[int, float]:
        return self.top1

    def difference(self, other: "Arm | None", new_images: bool = False):
        return None if other is None else paired_difference(self.top1, other.top1, 0.5 if new_images else 0.0)


def arm(*top1: float, label: str = "Arm") -> Arm:
    return Arm(label=label, top1=dict(enumerate(top1)))


@pytest.mark.parametrize(
    ("low", "high", "may_lose", "verdict"),
    [
        (0.1, 0.5, None, "holds"),
        (-0.1, 0.5, None, "open"),
        (-0.5, -0.1, None, "contradicted"),
        (-0.2, 0.5, 0.24, "holds"),  # may lose a little, and does not lose more
        (-0.24, 0.5, 0.24, "holds"),
        (-0.3, 0.5, 0.24, "open"),
        (-0.9, -0.3, 0.24, "contradicted"),
        (-0.9, -0.2, 0.24, "open"),
    ],
)
def test_a_claim_holds_or_fails_only_by_the_whole_interval(low, high, may_lose, verdict):
    assert verdict_of(report.Difference(3, (low + high) / 2, low, high, 0.5), may_lose) == verdict


def test_too_few_pairs_are_open_however_large_and_none_is_not_recorded():
    assert verdict_of(report.Difference(1, 30.0, None, None, None)) == "too few runs"
    assert verdict_of(paired_difference({0: 90, 1: 91}, {0: 60, 1: 60})) == "too few runs"
    assert (
        verdict_of(paired_difference({0: 88, 1: 90, 2: 91}, {0: 87, 1: 89, 2: 90})) == "open"
    )  # equal: no scatter known
    assert verdict_of(None) == "not recorded"


def verdicts(text: str) -> list[tuple[str, str]]:
    lines = [line.split("|") for line in text.splitlines() if line.startswith("| ")][2:]
    return [(cells[-3].strip(), cells[-2].strip()) for cells in lines]


def test_the_table_says_of_each_claim_what_its_difference_says(monkeypatch):
    monkeypatch.setattr("bpl.report.verdicts.sources_of", lambda rows: f"{len(rows)} rows behind it")
    good, bad, near = arm(90.0, 91.0, 92.0), arm(80.0, 81.1, 81.9), arm(89.83, 90.77, 91.88)
    questions = [
        Question("Up", "here", good, bad),
        Question("Down", "here", bad, good),
        Question("Nothing", "there", None, good),
        Question("Nobody", "there", good, None),
        Question("Just", "here", good, near),
    ]
    text = repr(verdict_table(questions, "Claims.", "tab-x"))
    assert verdicts(text) == [
        ("**holds**", "holds"),
        ("**contradicted**", "contradicted"),
        ("not recorded", "not recorded"),
        ("not recorded", "not recorded"),
        ("**holds**", "open"),  # of these images dealt once more, but not of new ones
    ]
    assert "+10.00 [+9.8," in text and "−10.00" in text
    assert "3 rows behind it" in text  # each once, and only those that are shown


def test_verdicts_of_many_lines_are_corrected_for_their_number(monkeypatch):
    monkeypatch.setattr("bpl.report.verdicts.sources_of", lambda rows: "")
    sure, barely, none = arm(10.0, 10.1, 9.9), arm(0.8, 1.3, 1.8), arm(0.0, 0.0, 0.0)
    p = paired_difference(barely.top1, none.top1).p
    assert p < 0.05 < 5 * p
    one = repr(verdict_table([Question("Barely", "here", barely, none)], "Claims.", "tab-x"))
    assert verdicts(one)[0][0] == "**holds**" and "Holm" not in one
    many = [Question("Sure", "here", sure, none)] + [Question("Barely", "here", barely, none)] * 5
    text = repr(verdict_table(many, "Claims.", "tab-x"))
    assert [verdict for verdict, _ in verdicts(text)] == ["**holds**"] + ["holds"] * 5  # bold: left of all together
    assert "After Holm's correction for 6 tests, line 1 is significant, the others are not." in text
    nothing = repr(verdict_table([Question("Open", "here", arm(1.0), none)], "Claims.", "tab-x"))
    assert "Holm" not in nothing


def test_the_seeds_that_it_takes_are_those_of_a_test_that_finds_it_four_times_in_five():
    ours, theirs = arm(1.0, 3.0, 2.0, 6.0, label="A"), arm(0.0, 0.0, 0.0, 0.0, label="B")
    deviation = math.sqrt(sum((x - 3) ** 2 for x in (1, 3, 2, 6)) / 3)
    text = repr(seeds_needed(ours, theirs, 0.5))
    needed = int(text.split("take about ")[1].split()[0])
    assert f"{deviation:.2f} points (n = 4, mean +3.00)" in text
    rng = np.random.default_rng(0)
    for n, share in ((needed, 0.8), (needed // 4, 0.3)):
        draws = rng.normal(-0.5, deviation, size=(4000, n))
        found = abs(draws.mean(1)) > 1.96 * draws.std(1, ddof=1) / math.sqrt(n)
        assert found.mean() == pytest.approx(share, abs=0.03)


def test_a_mean_that_stays_decides_from_the_first_number_of_pairs_whose_interval_is_on_one_side():
    ours, theirs = arm(1.0, 3.0, 2.0, 6.0, label="A"), arm(0.0, 0.0, 0.0, 0.0, label="B")
    deviation = math.sqrt(sum((x - 3) ** 2 for x in (1, 3, 2, 6)) / 3)
    text = repr(seeds_needed(ours, theirs, 0.5))
    first = int(text.split(" pairs put the whole interval")[0].split()[-1])
    reach = [stats.t.ppf(0.975, n - 1) * deviation / math.sqrt(n) for n in (first - 1, first)]
    assert reach[1] < 3.5 <= reach[0] and "interval above −0.50" in text
    near = repr(seeds_needed(arm(-0.5, 0.5, -1.5), arm(0.0, 0.0, 0.0), 0.5))
    assert "no number of runs one could make" in near


def test_the_seeds_are_not_guessed_from_fewer_than_three_pairs():
    assert "cannot be said" in repr(seeds_needed(arm(1.0, 2.0), arm(2.0, 2.5), 0.24))
    assert "cannot be said" in repr(seeds_needed(arm(1.0, 2.0, 3.0), arm(2.0, 3.0, 4.0), 0.24))
    assert "cannot be said" in repr(seeds_needed(None, arm(2.0), 0.24))
    with pytest.raises(ValueError, match="size is 0: it must be above 0"):
        seeds_needed(arm(1.0), arm(2.0), 0)


def test_what_may_be_lost_counts_for_new_images_and_for_all_lines_together(monkeypatch):
    monkeypatch.setattr("bpl.report.verdicts.sources_of", lambda rows: "")
    near, none = arm(0.1, -0.1, 0.05), arm(0.0, 0.0, 0.0)
    text = repr(verdict_table([Question("As good", "here", near, none, may_lose=1.0)] * 2, "Claims.", "tab-x"))
    assert verdicts(text) == [("**holds**", "holds")] * 2
