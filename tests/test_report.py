"""Statistics, tables, figures and sentences made from records."""

import dataclasses
import json
import math
import random
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from bpl import report
from bpl.config import RunConfig
from bpl.records import Record, load_records, record_path, save_record
from bpl.report.numbers import interval, points, spread
from bpl.report.rows import named_among
from bpl.report.statistics import holm, scatter_of
from bpl.report.style import spread_out

EPOCHS = 4
PARTS = {"train": 1470, "validation": 210, "test": 420}  # images of each
ROWS = (
    {"method": "dense"},
    {"method": "scratch", "ratio": 0.7},
    {"method": "bpl", "ratio": 0.7},
    {"method": "bpl", "ratio": 0.7, "diversity_weight": 0.0},
    {"method": "sfp", "ratio": 0.5},
)


def make_record(config: RunConfig, test: float) -> Record:
    """A record with invented numbers and everything a real one has."""
    kept = 1 - config.ratio
    curves = {name: [test - 3 + epoch for epoch in range(EPOCHS)] for name in ("validation", "test")}
    if config.method == "bpl":
        curves["partner_cosine"] = [0.1 * epoch for epoch in range(EPOCHS)]
    latency = {"median_ms": 2.0 * kept}
    return Record(
        name=config.run_name("real"),
        config=config.to_dict(),
        data={"source": "real", "name": config.dataset, "digest": "d" * 64, "split_digest": "s" * 64} | PARTS,
        accuracy={"test": test, "test_at_best_validation": test - 1, "best_test": test + 2},
        curves=curves,
        cost={
            "macs": round(1e6 * kept), "params": round(1e5 * kept), "dense_macs": 1_000_000, "dense_params": 100_000,
            "training_macs": round(1e9 * (1 + kept)), "latency": latency, "dense_latency": {"median_ms": 2.0},
        },
        equivalence={"relative_error": 1e-7, "same_top1": 1.0},
        widths={},
        environment=dict.fromkeys(("python", "torch", "device", "machine", "threads", "source"), "x"),
        seconds=1.0,
    )  # fmt: skip


def arm(method: str, *values: float, dataset: str = "ucm") -> report.Row:
    """A row of these accuracies, at seeds 0, 1, 2 and so on."""
    configs = [RunConfig(dataset=dataset, method=method, ratio=0.7, seed=seed) for seed in range(len(values))]
    return report.group([make_record(config, value) for config, value in zip(configs, values, strict=True)])[0]


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of records, three seeds a row, that the library takes for the checkout's."""
    chance = random.Random(0)
    for row in ROWS:
        for seed in range(3):
            config = RunConfig(dataset="ucm", seed=seed, **row)
            save_record(
                make_record(config, round((75 + chance.gauss(0, 1)) * 4.2) / 4.2), record_path(config, "real", tmp_path)
            )
    monkeypatch.setenv("BPL_RESULTS", str(tmp_path))
    return tmp_path


def change(results: Path, pattern: str, **accuracy: float) -> None:
    """Change accuracies in the first record whose name matches."""
    path = sorted(results.glob(f"ucm/{pattern}"))[0]
    values = json.loads(path.read_text())
    values["accuracy"] |= accuracy
    path.write_text(json.dumps(values))


def shown(rows: list[report.Row]) -> dict[str, str]:
    """All that a page makes from rows, as text."""
    claim = report.claim("bpl", "ucm")
    return {
        "answer": repr(report.answer(rows)),
        "accuracy": repr(report.accuracy_table(rows, "Accuracy.", "tab-a")),
        "cost": repr(report.cost_table(rows, "Cost.", "tab-b")),
        "diversity": repr(report.diversity(rows)),
        "claim": repr(report.beside_claim(rows, claim)),
        "tradeoff": report.tradeoff(rows)._repr_svg_(),
        "difference": report.difference_to_dense(rows, claim)._repr_svg_(),
        "curves": report.curves(rows, "partner_cosine")._repr_svg_(),
    }


def test_bootstrap_interval_is_that_of_scipy() -> None:
    values = np.random.default_rng(1).normal(80, 2, size=12)
    ours = report.bootstrap_interval(values)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=2).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.05)
    assert report.bootstrap_interval(values) == ours


def test_bootstrap_interval_of_three_values_is_their_range() -> None:
    assert report.bootstrap_interval([71.0, 74.0, 72.5]) == (71.0, 74.0)


def test_summary_of_one_value_has_no_interval_and_of_none_is_an_error() -> None:
    assert report.summarise([70.0]) == report.Summary(1, 70.0, None, None, None)
    assert report.summarise([1.0, 2.0, 3.0]).deviation == pytest.approx(1.0)
    with pytest.raises(ValueError, match="no value"):
        report.summarise([])
    with pytest.raises(ValueError, match="at least 2 values, not 1"):
        report.bootstrap_interval([1.0])


@pytest.mark.parametrize(("seeds", "share"), [(3, 0.75), (5, 0.85), (10, 0.90)])
def test_the_bootstrap_interval_covers_as_often_as_the_page_on_statistics_says(seeds: int, share: float) -> None:
    rng = np.random.default_rng(seeds)
    draws = 1200 if seeds <= 5 else 200
    inside = [
        low <= 0 <= high for low, high in (report.bootstrap_interval(rng.normal(size=seeds)) for _ in range(draws))
    ]
    assert np.mean(inside) == pytest.approx(share, abs=0.03 if seeds <= 5 else 0.06)


def test_paired_difference_is_the_paired_t_test_over_the_common_seeds() -> None:
    values, control = {0: 75.0, 1: 77.5, 2: 76.0, 9: 0.0}, {0: 74.0, 1: 75.0, 2: 75.5, 8: 99.0}
    ours = report.paired_difference(values, control)
    theirs = stats.ttest_rel([75.0, 77.5, 76.0], [74.0, 75.0, 75.5])
    assert (ours.n, ours.mean, ours.p) == (3, pytest.approx(4 / 3), pytest.approx(theirs.pvalue))
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)))
    assert ours.beyond_chance == (theirs.pvalue < 0.05)


def test_paired_difference_of_few_or_equal_pairs_claims_nothing() -> None:
    assert report.paired_difference({0: 1.0}, {1: 1.0}) is None
    assert report.paired_difference({0: 3.0}, {0: 1.0}) == report.Difference(1, 2.0, None, None, None)
    assert report.paired_difference({0: 3.0, 1: 4.0}, {0: 1.0, 1: 2.0}) == report.Difference(2, 2.0, None, None, None)
    assert not report.paired_difference({0: 3.0, 1: 4.0}, {0: 1.0, 1: 2.0}).beyond_chance
    assert report.summarise([70.0, 71.0]).low is None  # a resample of two values is one of three numbers


def test_the_interval_for_new_images_is_wider_by_the_share_of_a_deal_that_is_tested() -> None:
    values, control = {0: 3.0, 1: 5.0, 2: 4.0}, {0: 1.0, 1: 1.0, 2: 1.0}
    here, new = report.paired_difference(values, control), report.paired_difference(values, control, 420 / 1470)
    assert new.mean == here.mean and new.p > here.p
    assert (new.high - new.low) / (here.high - here.low) == pytest.approx(math.sqrt(1 + 3 * 420 / 1470))


def test_the_p_against_a_limit_is_that_of_scipy() -> None:
    values, control = {0: 3.0, 1: 5.0, 2: 4.5}, {0: 1.0, 1: 1.0, 2: 1.0}
    theirs = stats.ttest_1samp([2.0, 4.0, 3.5], 1.5).pvalue
    assert report.paired_difference(values, control).p_against(1.5) == pytest.approx(theirs)
    assert report.paired_difference({0: 3.0}, {0: 1.0}).p_against(1.5) is None


def test_the_scatter_of_arms_and_seeds_is_the_residual_of_a_two_way_analysis_of_variance() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4, 5)) + np.array([0, 3, 5, 9])[:, None] + np.array([0, 1, -1, 2, 4])
    left = values - values.mean(1, keepdims=True) - values.mean(0) + values.mean()
    found = scatter_of([dict(enumerate(arm)) for arm in values])
    assert found.freedom == 3 * 4
    assert found.deviation == pytest.approx(math.sqrt((left**2).sum() / found.freedom))
    assert scatter_of([{0: 1.0, 1: 2.0}]) is None and scatter_of([]) is None and scatter_of([{}]) is None
    uneven = scatter_of([{0: 1.0, 1: 2.0, 2: 2.5}, {0: 2.0, 1: 3.5}, {2: 7.0}])
    assert uneven.freedom == 6 - 5  # three arms and three seeds, one of which the others imply


def test_of_two_arms_the_scatter_is_that_of_their_pairs() -> None:
    values, control = {0: 75.0, 1: 77.5, 2: 76.0}, {0: 74.0, 1: 75.0, 2: 75.5}
    alone = report.paired_difference(values, control)
    both = report.paired_difference(values, control, scatter=scatter_of([values, control]))
    assert dataclasses.astuple(both) == pytest.approx(dataclasses.astuple(alone))


def test_fewer_than_five_pairs_have_the_scatter_of_all_arms_where_theirs_is_smaller() -> None:
    """Three pairs that happen to agree would else look sure."""
    values, control = {0: 75.0, 1: 76.0, 2: 77.1}, {0: 74.0, 1: 75.0, 2: 76.0}
    scatter = scatter_of([values, control, {0: 70.0, 1: 73.0, 2: 69.0}, {0: 72.0, 1: 70.0, 2: 74.0}])
    alone, floored = (report.paired_difference(values, control, scatter=one) for one in (None, scatter))
    error = math.sqrt(2) * scatter.deviation * math.sqrt(1 / 3)
    assert alone.beyond_chance and not floored.beyond_chance
    assert floored.high - floored.mean == pytest.approx(stats.t.ppf(0.975, scatter.freedom) * error)
    assert floored.p == pytest.approx(2 * stats.t.sf(floored.mean / error, scatter.freedom))
    assert floored.p_against(0.0) == pytest.approx(floored.p)
    agree = report.paired_difference({0: 2.0, 1: 3.0, 2: 4.0}, {0: 1.0, 1: 2.0, 2: 3.0}, scatter=scatter)
    assert agree.low == pytest.approx(1 - (floored.high - floored.mean))  # where pairs agree, others know a scatter
    noisy = {0: 0.0, 1: 50.0, 2: -50.0}
    own, wide = (report.paired_difference(noisy, control, scatter=one) for one in (None, scatter))
    assert wide == own  # an arm that scatters more than the others is not helped by what they know
    many = [{seed: value + 0.1 * (seed % 2) for seed in range(5)} for value in (1.0, 0.0)]
    many[0][0] += 0.1
    assert report.paired_difference(*many, scatter=scatter) == report.paired_difference(*many)


def test_the_false_finds_of_three_pairs_among_six_arms_are_as_rare_as_they_should_be() -> None:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(400):
        arms = [dict(enumerate(values)) for values in rng.normal(size=(6, 3)) + rng.normal(size=3)]
        scatter = scatter_of(arms)
        found += [report.paired_difference(arm, arms[0], scatter=scatter).beyond_chance for arm in arms[1:]]
    assert 0.005 < np.mean(found) < 0.05


def test_a_difference_has_one_interval_whatever_it_is_shown_with(results: Path) -> None:
    """The scatter is that of all recorded runs of the images and network, not of the rows that a page lists."""
    rows = report.collect(dataset="ucm")
    of_seven = [RunConfig("ucm", method, ratio=0.7, seed=seed) for method in ("bpl", "scratch") for seed in range(3)]
    for listed in (rows, report.collect(method=["bpl", "scratch"], ratio=0.7), report.recorded(of_seven)):
        ours, narrow = (report.find(listed, method, 0.7) for method in ("bpl", "scratch"))
        assert ours.scatter == narrow.scatter
        assert ours.scatter.deviation == pytest.approx(scatter_of([row.by_seed() for row in rows]).deviation)
        assert ours.difference(narrow) == report.paired_difference(ours.by_seed(), narrow.by_seed(), 0.0, ours.scatter)
    change(results, "sfp-*", test=20.0)
    assert report.recorded(of_seven)[0].scatter.deviation > 5  # a record that was made anew is read anew
    assert report.group(rows[0].records)[0].scatter is None  # the seeds of one row say nothing of it


def test_the_scatter_of_other_images_and_networks_does_not_count(results: Path) -> None:
    before = report.collect(dataset="ucm")[0].scatter
    for other in ({"arch": "resnet56"}, {"width": 8}, {"split": "paper"}, {"dataset": "aid"}, {"image_size": 96}):
        for seed, top1 in enumerate((10.0, 90.0, 50.0)):
            config = RunConfig(**{"dataset": "ucm", "method": "dense", "seed": seed} | other)
            save_record(make_record(config, top1), record_path(config, "real", results))
    same = {"dataset": "ucm", "arch": "resnet18", "width": 32, "split": "protocol", "image_size": 64}
    here, elsewhere = report.collect(**same)[0], report.collect(dataset="aid")[0]
    assert here.scatter == before
    assert here.difference(elsewhere).freedom == 2  # the pairs' own


@pytest.mark.parametrize("wild", [2.0, 4.0])
def test_an_arm_that_scatters_more_than_the_others_has_few_false_finds_too(wild: float) -> None:
    """With the degrees of freedom of all arms they were some 14 in a hundred at four times the scatter."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(1000):
        noise = rng.normal(size=(6, 3))
        noise[0] *= wild
        arms = [dict(enumerate(values)) for values in noise + rng.normal(size=3)]
        found.append(report.paired_difference(arms[0], arms[1], scatter=scatter_of(arms)).beyond_chance)
    assert 0.01 < np.mean(found) < 0.08


def test_claims_on_several_data_sets_are_combined_as_fisher_does(results: Path) -> None:
    above = [
        (arm("l1", 80.0, 81.0, 82.5, dataset=d), arm("scratch", 79.5, 80.0, 80.5, dataset=d)) for d in ("ucm", "aid")
    ]
    p = above[0][0].difference(above[0][1]).p
    assert p > 0.05
    text = repr(report.together([("Better?", above), ("One?", above[:1]), ("None?", [(None, above[0][1])] * 2)]))
    expected = 2 * stats.combine_pvalues([p / 2, p / 2]).pvalue
    assert text.splitlines()[0] == f"1. **Better?** +1.17, +1.17 points; together p = {expected:.2g}."
    assert text.splitlines()[1:] == [
        f"{n}. **{q}** Not recorded yet on two data sets." for n, q in ((2, "One?"), (3, "None?"))
    ]
    lacking = repr(report.together([("Better?", [above[0], (None, above[0][1]), above[1]])]))
    assert re.search(r"\*\* \+\d\S*, not recorded, \+\d\S* points; together p", lacking)
    few = repr(report.together([("Better?", [above[0], (above[0][0].only([0, 1]), above[0][1]), above[1]])]))
    assert re.search(r"\*\* \+\d\S*, too few pairs, \+\d\S* points; together p", few)
    apart = repr(report.together([("Both ways?", [above[0], above[1][::-1]])]))
    assert float(apart.split("together p = ")[1].rstrip(".")) > 0.2  # what points in two directions says nothing


def test_holm_bounds_the_chance_of_any_false_find() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # the worked example of Holm's procedure
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == []
    rng = np.random.default_rng(0)
    false = [min(holm(list(rng.uniform(size=7)))) <= 0.05 for _ in range(4000)]
    assert np.mean(false) == pytest.approx(0.05, abs=0.012)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (points(-0.24), "−0.24"),
        (points(1.5), "+1.50"),
        (points(-0.001), "0.00"),
        (interval(-1.25, 0.7, signed=True), "[−1.2,\N{NO-BREAK SPACE}+0.7]"),
        (interval(None, None), ""),
        (spread(report.summarise([70.0])), "70.00"),
        (interval(0.009, 2.66, signed=True), "[+0.01,\N{NO-BREAK SPACE}+2.7]"),
        (interval(-1.2, 0.0, signed=True), "[−1.2,\N{NO-BREAK SPACE}0.0]"),
        (spread(None), "–"),
    ],
)
def test_numbers_are_written_one_way(written: str, expected: str) -> None:
    assert written == expected


def test_labels_are_moved_apart_and_no_further() -> None:
    assert spread_out([0.0, 10.0], 1.0) == [0.0, 10.0]
    placed = spread_out([5.0, 5.1, 5.2, 9.0], 1.0)
    assert np.diff(sorted(placed)).min() >= 1.0 - 1e-9
    assert placed[3] == 9.0 and placed[1] == pytest.approx(5.1)


def test_rows_are_named_by_what_sets_them_apart(results: Path) -> None:
    rows = report.collect(dataset="ucm", source="real")
    assert [(row.label, row.ratio, row.seeds) for row in rows] == [
        ("Dense", 0.0, [0, 1, 2]),
        ("SFP", 0.5, [0, 1, 2]),
        ("Narrow, from scratch", 0.7, [0, 1, 2]),
        ("BPL, no diversity loss", 0.7, [0, 1, 2]),
        ("BPL, diversity weight 0.01", 0.7, [0, 1, 2]),
    ]
    assert report.find(rows, "bpl", 0.7).label == "BPL, diversity weight 0.01"
    assert report.find(rows, "bpl", 0.5) is None
    assert report.control(rows, rows[3], "scratch") is rows[2]
    assert report.control(rows, rows[1], "scratch") is None


def test_each_row_has_the_command_and_the_links_of_its_records(results: Path) -> None:
    for row in report.collect(dataset="ucm"):
        words = row.command()
        assert words.startswith("for seed in 0 1 2; do bpl run --dataset ucm --method ")
        assert words.endswith("; done") and "--seed $seed" in words
        for record in row.records:
            assert f"(../data/results/ucm/{record.name}.json)" in row.links()
            assert (results / "ucm" / f"{record.name}.json").exists()
    one = report.collect(dataset="ucm", method="bpl", seed=1, diversity_weight=0.0)
    assert one[0].command() == "bpl run --dataset ucm --method bpl --ratio 0.7 --seed 1 --diversity-weight 0.0"


def test_rows_of_different_images_or_networks_do_not_share_a_table(results: Path) -> None:
    other = RunConfig(dataset="ucm", method="dense", arch="resnet56")
    save_record(make_record(other, 70.0), record_path(other, "real"))
    with pytest.raises(report.ReportError, match="cannot mix arch resnet18 and resnet56"):
        report.collect(dataset="ucm")
    drawn = make_record(RunConfig(dataset="ucm", method="dense"), 70.0)
    drawn = dataclasses.replace(drawn, data=drawn.data | {"source": "synthetic"})
    with pytest.raises(report.ReportError, match="cannot mix source real and synthetic"):
        report.group([drawn, *report.collect(dataset="ucm", arch="resnet18")[0].records])
    with pytest.raises(report.ReportError, match="unknown field 'archh'"):
        report.collect(archh="resnet18")


def test_what_is_shown_is_the_same_text_on_every_run(results: Path) -> None:
    assert shown(report.collect(dataset="ucm")) == shown(report.collect(dataset="ucm"))


def test_one_changed_number_changes_what_is_shown(results: Path) -> None:
    before = shown(report.collect(dataset="ucm"))
    change(results, "bpl-*", test=60.0)
    after = shown(report.collect(dataset="ucm"))
    changed = {name for name in before if before[name] != after[name]}
    assert {"accuracy", "tradeoff", "difference"} <= changed
    assert "curves" not in changed and "cost" not in changed


def test_a_row_of_one_seed_has_no_interval_and_says_so(results: Path) -> None:
    rows = report.collect(dataset="ucm", seed=0)
    texts = shown(rows)
    assert "in one run" in texts["answer"] and "from one pair of runs" in texts["answer"]
    assert "from one pair of runs, too few to say; that has no interval" in texts["claim"]
    assert "[" not in repr(report.accuracy_table(rows, "Accuracy.", "tab-a", sources=False))


def test_no_records_give_one_sentence(tmp_path: Path) -> None:
    rows = report.collect(tmp_path)
    claim = report.claim("bpl", "ucm")
    for made in (
        report.answer(rows),
        report.accuracy_table(rows, "Accuracy.", "tab-a"),
        report.cost_table(rows, "Cost.", "tab-b"),
        report.diversity(rows),
        report.tradeoff(rows),
        report.difference_to_dense(rows, claim),
        report.curves(rows),
    ):
        assert "recorded yet" in repr(made) and "\n" not in repr(made)
    assert "−73.97" in repr(report.beside_claim(rows, claim))


def test_a_method_without_its_controls_is_still_shown(results: Path) -> None:
    rows = report.collect(dataset="ucm", method="bpl")
    assert "nothing to compare it with" in repr(report.answer(rows))
    assert "no loss of ours" in repr(report.beside_claim(rows, report.claim("bpl", "ucm")))
    assert "<svg" in report.tradeoff(rows)._repr_svg_()


def test_a_campaign_knows_what_it_lacks(results: Path) -> None:
    configs = [RunConfig(dataset="ucm", method="dense", seed=seed) for seed in range(5)]
    assert [config.seed for config in report.lacking(configs)] == [3, 4]
    assert repr(report.complete(2, 5)).startswith("2 of the 5 runs that this page uses are not")
    assert repr(report.complete(1, 5)).startswith("1 of the 5 runs that this page uses is not")
    assert repr(report.complete(0, 5)) == "All 5 runs that this page uses are recorded."


def test_the_paper_states_what_is_cited_and_nothing_else() -> None:
    claim = report.claim("bpl", "ucm")
    assert (claim.network, claim.flops_reduction, claim.accuracy_loss) == ("ResNet-50", 73.97, 0.24)
    assert "10.1109/TNNLS.2023.3306512" in claim.citation
    assert report.claim("bpl", "nwpu") is None


# -- arms against a control ---------------------------------------------------------------------------------------
def test_recorded_rows_are_those_of_the_campaign_only(results: Path) -> None:
    campaign = [RunConfig(dataset="ucm", method="bpl", ratio=0.7, seed=seed) for seed in range(5)]
    (row,) = report.recorded(campaign + [dataclasses.replace(run, device="cpu") for run in campaign])  # spelt twice
    assert (row.method, row.seeds, row.config["diversity_weight"]) == ("bpl", [0, 1, 2], 0.01)
    assert report.recorded([RunConfig(dataset="aid", method="bpl")]) == []


def test_select_takes_what_is_not_named_for_the_default(results: Path) -> None:
    rows = report.collect()
    assert report.select(rows, method="bpl", ratio=0.7).config["diversity_weight"] == 0.01
    assert report.select(rows, method="bpl", ratio=0.7, diversity_weight=0).config["diversity_weight"] == 0.0
    assert report.select(rows, method="bpl", ratio=0.5) is None
    with pytest.raises(ValueError, match="unknown key 'strength'"):
        report.select(rows, method="bpl", strength=1)


def test_arms_are_shown_with_the_difference_that_a_paired_t_test_gives(results: Path) -> None:
    rows = report.collect()
    arm, other = (report.select(rows, method=method, ratio=0.7) for method in ("bpl", "scratch"))
    value = arm.difference(other)
    pairs = [("Partner", arm, other), ("Not run", None, other), ("Control", other, None)]
    sentence = repr(report.contrasts([("Does it help?", arm, other), ("And this?", None, other)]))
    assert points(value.mean) in sentence
    assert "**And this?** Not recorded yet." in sentence
    table = repr(report.difference_table(pairs, "Arms.", "tab-arms"))
    gain = points(arm.best_epoch_gain.mean)
    assert f"| Partner | {spread(arm.accuracy)} | {gain} | {points(value.mean)}" in table
    assert "Not run" not in table
    assert arm.command() in table
    assert (
        report.difference_chart(pairs, "the control")._repr_svg_()
        != report.difference_chart([("Partner", other, arm)], "the control")._repr_svg_()
    )


def test_a_control_of_more_seeds_is_said(results: Path) -> None:
    arm, other = (report.select(report.collect(), method=method, ratio=0.7) for method in ("bpl", "scratch"))
    fewer = dataclasses.replace(arm, records=arm.records[:2])
    for one, two, said in ((fewer, other, "2 (control 3)"), (other, fewer, "3 (2 in pairs)"), (arm, other, "3")):
        assert f"| {said} |\n" in repr(report.difference_table([("A", one, two)], "c", "tab-x"))


def test_arms_without_runs_are_sentences(results: Path) -> None:
    assert "Not recorded" in repr(report.contrasts([("Why?", None, None)]))
    assert "No run" in repr(report.difference_table([("a", None, None)], "c", "tab-x"))
    assert "No run" in repr(report.difference_chart([("a", None, None)], "b"))


def test_one_pair_of_runs_shows_little(results: Path) -> None:
    rows = report.recorded([RunConfig(dataset="ucm", method=m, ratio=0.7, seed=0) for m in ("bpl", "scratch")])
    sentence = repr(report.contrasts([("Does it help?", rows[1], rows[0])]))
    assert sentence.endswith(" points, from one pair of runs, too few to say.")  # no verdict, no interval


def test_contrasts_are_corrected_for_their_number(results: Path) -> None:
    sure, barely, control = arm("l1", 90.0, 90.1, 89.9), arm("sfp", 80.8, 81.3, 81.8), arm("scratch", 80.0, 80.0, 80.0)
    question = ("Barely?", barely, control)
    assert "significant at the 5 % level as a single test" in repr(report.contrasts([question]))
    assert "Holm" not in repr(report.contrasts([question]))
    lines = repr(report.contrasts([("Gone?", None, control), ("Sure?", sure, control), *[question] * 6])).splitlines()
    assert lines[0] == "1. **Gone?** Not recorded yet."
    assert lines[-1] == "After Holm's correction for 7 tests, line 2 is significant, the others are not."
    lines = repr(report.contrasts([question] * 20)).splitlines()
    assert lines[-1] == "After Holm's correction for 20 tests, no single line is significant."
    both = repr(report.contrasts([("Sure?", sure, control), ("Sure?", sure, control)])).splitlines()
    assert both[-1] == "After Holm's correction for 2 tests, lines 1 and 2 are significant."
    assert "Holm" not in repr(report.contrasts([("Open?", control, arm("l1", 79.0, 80.5, 81.0))] * 2))


def test_the_search_for_the_recipe_is_a_table_of_its_runs(tmp_path: Path) -> None:
    run = {
        "split": "protocol", "stem": "3x3", "epochs": 60, "batch_size": 32, "learning_rate": 0.05, "weight_decay": 5e-4,
        "stored_size": 96, "label_smoothing": 0.1, "cutmix": 0.0, "mixup": 0.0, "validation_last_10_epochs": 89.29,
    }  # fmt: skip
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"runs": [run | {"validation_last_10_epochs": 90.5}, run]}))
    lines = [
        line
        for line in repr(report.recipe_table(path, "Search.", "tab-r")).splitlines()
        if line.startswith("| protocol")
    ]
    assert [line.split("|")[-2].strip() for line in lines] == ["89.29", "90.50"]
    assert "| 60 | 32 | 0.05 | 0.0005 | 96 |" in lines[0]


def test_a_row_of_some_seeds_has_their_records_and_nothing_else(results: Path) -> None:
    row = report.find(report.collect(dataset="ucm"), "dense")
    some = row.only(range(1, 9))
    assert some.seeds == [1, 2] and some.by_seed() == {seed: row.by_seed()[seed] for seed in (1, 2)}
    assert (some.label, some.config) == (row.label, row.config)
    assert row.only([7]) is None


def test_two_pairs_are_no_verdict_however_wide_apart() -> None:
    two, three = ({seed: 6.4 + 0.2 * seed for seed in range(n)} for n in (2, 3))
    nothing = dict.fromkeys(range(3), 0.0)
    small, large = (report.paired_difference(values, nothing) for values in (two, three))
    assert small.low is None and not small.beyond_chance
    assert large.low > 0 and large.beyond_chance


def test_a_copy_that_lacks_images_stands_in_no_table_with_the_whole_set(results: Path) -> None:
    config = RunConfig(dataset="ucm", method="kd", seed=0)
    record = make_record(config, 70.0)
    part = dataclasses.replace(record, data=record.data | {"train": 1435})
    whole = make_record(RunConfig(dataset="ucm", method="kd", seed=1), 70.0)
    assert len(report.group([whole, record])) == 1
    with pytest.raises(report.ReportError, match=r"sets of \(1435, 210, 420\) and \(1470, 210, 420\) images"):
        report.group([whole, part])


@pytest.mark.parametrize("change", [{"round_to": 16}, {"pretrain": "aid:20"}])
def test_a_control_has_the_same_size_and_the_same_start(change: dict) -> None:
    plain = [RunConfig(dataset="ucm", method=method, ratio=0.7) for method in ("dense", "scratch", "bpl")]
    other = RunConfig(dataset="ucm", method="bpl", ratio=0.7, **change)
    *_, row = rows = report.group(make_record(config, 70.0) for config in plain)
    assert [report.control(rows, row, method).method for method in ("dense", "scratch")] == ["dense", "scratch"]
    rows = report.group(make_record(config, 70.0) for config in [*plain[:2], other])
    assert report.control(rows, rows[-1], "scratch") is None


def test_records_from_before_a_knob_existed_are_found_by_its_default(results: Path) -> None:
    path = sorted(results.glob("ucm/bpl-*.json"))[0]
    content = json.loads(path.read_text())
    del content["config"]["pretrain"], content["config"]["compile"]
    path.write_text(json.dumps(content))
    count = len(list(results.glob("*/*.json")))
    assert sum(len(row.records) for row in report.collect(dataset="ucm", pretrain=None)) == count
    table = load_records(results)
    assert len(table) == count and set(table["compile"]) == {"off"} and table["pretrain"].isna().all()


def test_a_record_of_a_folder_that_is_not_here_is_passed_over_where_it_is_not_asked_for(
    results: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    own = tmp_path_factory.mktemp("elsewhere") / "my-images"
    own.mkdir()
    config = RunConfig(dataset=str(own), method="dense")
    save_record(make_record(config, 70.0), record_path(config, "real", results))
    own.rmdir()
    assert {row.method for row in report.collect(dataset="ucm")} == {row["method"] for row in ROWS}


def test_find_prefers_the_methods_own_settings_whatever_the_training(results: Path) -> None:
    for weight in (0.0, None):  # no diversity loss, and the default weight, both for fewer epochs
        config = RunConfig(dataset="aid", method="bpl", ratio=0.7, epochs=20, diversity_weight=weight)
        save_record(make_record(config, 70.0), record_path(config, "real", results))
    rows = report.collect(dataset="aid")
    assert [row.is_default for row in rows] == [False, False]
    assert report.find(rows, "bpl", 0.7).config["diversity_weight"] == 0.01


def test_an_aim_is_met_by_the_mean_or_not(results: Path) -> None:
    dense = report.find(report.collect(dataset="ucm"), "dense")
    assert "is open until so many are recorded:" in repr(report.aim_met(dense, 1.0, []))  # three seeds
    for seed in (3, 4):
        config = RunConfig(dataset="ucm", method="dense", seed=seed)
        save_record(make_record(config, 75.0), record_path(config, "real", results))
    dense = report.find(report.collect(dataset="ucm"), "dense")
    mean = dense.accuracy.mean
    reached = repr(report.aim_met(dense, mean - 0.5, [None]))
    assert f"a mean of {mean - 0.5:g} %" in reached and "is met:" in reached and reached.count("- Dense") == 1
    assert "is not met:" in repr(report.aim_met(dense, mean + 0.5, []))
    assert "No run is recorded" in repr(report.aim_met(None, 95, [dense]))


def test_rows_of_a_part_are_named_by_what_sets_them_apart_there(results: Path) -> None:
    rows = report.collect(dataset="ucm", source="real")
    without, with_loss = (row for row in rows if row.method == "bpl")
    assert [row.variant for row in named_among([with_loss])] == [""]
    assert [row.variant for row in named_among([without])] == ["no diversity loss"]  # never plain "BPL"
    both = named_among([without, with_loss])
    assert [row.variant for row in both] == ["no diversity loss", "diversity weight 0.01"]
    assert [row.records for row in both] == [without.records, with_loss.records]


def test_forms_of_the_loss_are_told_apart_and_held_against_none(results: Path) -> None:
    for seed in range(3):
        config = RunConfig(dataset="ucm", method="bpl", ratio=0.7, seed=seed, diversity_form="layer-squared")
        save_record(make_record(config, 90.0 + seed / 4.2), record_path(config, "real", results))
    rows = report.collect(dataset="ucm", source="real")
    assert [row.variant for row in rows if row.method == "bpl"] == [
        "no diversity loss",  # of no form: the loss is not there
        "diversity weight 0.01",  # of the released form
        "diversity weight 0.01, form layer-squared",
    ]
    said = repr(report.diversity(rows)).splitlines()
    assert [line.split(":")[0] for line in said] == [
        "- Ratio 0.7, diversity weight 0.01, form stage-cosine",
        "- Ratio 0.7, diversity weight 0.01, form layer-squared",
    ]
    assert "undecided" in said[0] and "better than BPL without" in said[1]
