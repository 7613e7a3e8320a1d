"""Sentences on the courses of compact KD, OED and DDSL: every number is of a record, and of the right epoch."""

import pytest
from support import made_up_record

from bpl import report
from bpl.config import RunConfig
from bpl.report import courses

# The fourth of six epochs is the freeze: its values are those before the cut.
AT_SIZE = [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]


def made_up(method: str, curves: dict, *, macs: int = 25, params: int = 10, **fields):
    """A record of 100 dense MACs and 40 dense parameters."""
    cost = {"macs": macs, "dense_macs": 100, "params": params, "dense_params": 40}
    return made_up_record(RunConfig("ucm", method, **fields), curves={"at_size": AT_SIZE} | curves, cost=cost)


def lines(shown: report.Markdown) -> list[str]:
    return repr(shown).splitlines()


# -- compact KD -----------------------------------------------------------------------------------------------------
def learnt(share: float, **fields):
    return made_up("compact_kd", {"cost_share": [0.99, 0.9, 0.5, share, 0.25, 0.25]}, **fields)


def test_the_landing_holds_the_freeze_against_the_narrow_network_and_says_what_the_cut_removed():
    records = [learnt(0.325, seed=1), learnt(0.24, seed=0, macs=24)]
    for ratio, macs in ((0.7, 25), (0.5, 50)):
        records.append(made_up("scratch", {}, ratio=ratio, macs=macs))
    records.append(made_up("scratch", {}, ratio=0.7, round_to=8, macs=30))
    (line,) = lines(courses.landing(report.group(records)))
    assert line == (
        "- **Compact KD, ratio 0.7**, 25.00 % of the MACs wanted: "
        "seed 0: 24.0 % at the freeze, 4.0 % below what was wanted, and 76.00 % removed in the end; "
        "seed 1: 32.5 % at the freeze, 30.0 % above what was wanted, and 75.00 % removed in the end."
    )


def test_a_budget_is_what_was_wanted_in_its_own_count():
    rows = report.group([learnt(0.24, budget="params:0.2", params=8), made_up("scratch", {}, macs=25)])
    (line,) = lines(courses.landing(rows))
    assert line == (
        "- **Compact KD, budget params:0.2**, 20.00 % of the parameters wanted: "
        "seed 0: 24.0 % at the freeze, 20.0 % above what was wanted, and 80.00 % removed in the end."
    )


def test_a_share_that_no_row_tells_is_not_made_up_and_a_given_strength_is_said():
    steered, ranked = lines(courses.landing(report.group([learnt(0.9, sparsity=0.0), learnt(0.3)])))
    assert "**, not steered, what was wanted of the MACs is not recorded: seed 0: 90.0 % at the freeze, and" in ranked
    assert "not steered" not in steered
    assert "above" not in ranked + steered


# -- OED ------------------------------------------------------------------------------------------------------------
def test_departures_are_counted_epoch_by_epoch_from_all_blocks():
    masks = {f"mask layer{block}": [1.0] * 6 for block in range(8)}
    some = made_up("oed", masks | {"blocks": [7.0, 7.0, 5.0, 2.0, 2.0, 2.0]})
    none = made_up("oed", masks | {"blocks": [8.0] * 6}, seed=1)
    (line,) = lines(courses.departures(report.group([some, none])))
    assert line == (
        "- **OED, ratio 0.7**, removed of 8 blocks: seed 0: 1 after epoch 1, 2 after epoch 3, 3 after epoch 4, in a "
        "search of 4 epochs; seed 1: none, in a search of 4 epochs."
    )


# -- DDSL -----------------------------------------------------------------------------------------------------------
def explored(changes: float = 0.0, last: float = 3.0, **fields):
    curves = {
        "mask_changes": [0.0, 0.0, changes, changes, 0.0, 0.0],
        "primal_residual": [0.0, 0.8, 0.1, 0.01, 0.0, 0.0],
        "distill_strength": [1.0, 1.0, 1.0, 2.0, 3.5, last],
    }
    return made_up("ddsl", curves, **fields)


def test_changes_of_the_selection_are_summed_over_the_projections_after_the_first():
    (line,) = lines(courses.selection_changes(report.group([explored(seed=seed) for seed in (0, 1, 4)])))
    assert line == (
        "- **DDSL, ratio 0.7**: no channel that was kept before is pruned in the 2 projections after the first, at "
        "seeds 0, 1 and 4."
    )
    (line,) = lines(courses.selection_changes(report.group([explored(), explored(0.015, seed=1)])))
    assert line.endswith("summed over the 2 projections after the first: seed 0: 0.00 %; seed 1: 3.00 %.")


def test_the_bound_is_that_of_the_dean_and_other_arms_have_none():
    records = [explored(last=3.0), explored(last=3.5, seed=1), explored(strengths="fixed")]
    (line,) = lines(courses.at_the_bound(report.group(records), 4.0))
    assert "strengths dean" in line
    assert line.endswith("bound of 4 times the strength without a dean: seed 0: 75 %; seed 1: 88 %.")
    (line,) = lines(courses.at_the_bound(report.group([explored(last=3.0, distill_weight=0.5)]), 8.0))
    assert line.endswith("seed 0: 75 %.")
    (line,) = lines(courses.at_the_bound(report.group([explored(distill_weight=0.0)]), 4.0))
    assert line.startswith("No run is recorded yet")  # nothing is distilled, and nothing has a bound


@pytest.mark.parametrize(
    "say", [courses.landing, courses.departures, courses.selection_changes, lambda rows: courses.at_the_bound(rows, 4)]
)
def test_without_rows_there_is_one_sentence(say):
    for rows in ([], report.group([made_up("scratch", {}), made_up("dense", {})])):
        assert repr(say(rows)).startswith("No run is recorded yet")


# -- where a curve ends ---------------------------------------------------------------------------------------------
def test_the_last_values_are_means_over_seeds_of_the_last_epoch():
    records = [
        made_up("bpl", {"partner_cosine": [0.0, end]}, seed=seed, diversity_weight=weight)
        for weight, ends in ((0.0, (0.5, 0.3)), (1.0, (-0.9,)))
        for seed, end in enumerate(ends)
    ]
    records.append(made_up("scratch", {}))  # has no partner
    shown = repr(courses.last_values(report.group(records), "partner_cosine", "Cosine"))
    assert shown == (
        "Cosine in the last epoch: +0.40 for BPL, no diversity loss (n = 2); −0.90 for BPL, diversity weight 1 (n = 1)."
    )
    assert "No run" in repr(courses.last_values([], "partner_cosine", "Cosine"))
