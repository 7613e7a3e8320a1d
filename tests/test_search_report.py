"""The report on searched settings (validation part alone), on epochs to equal accuracy, and on a longer control."""

import statistics
from pathlib import Path

import pytest
from test_report import make_record

from bpl import report
from bpl.config import RunConfig
from bpl.records import record_path, save_record
from bpl.report.numbers import points
from bpl.report.search import LAST, on_validation
from bpl.report.sentences import _ranked
from bpl.report.statistics import Difference
from bpl.report.training_pace import Reached
from bpl.sweep import load_grid

TEST = 44.44  # of every run: it must not be shown where the validation part decides


@pytest.fixture
def save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a record of invented curves into a folder that the library takes for the checkout's."""
    monkeypatch.setenv("BPL_RESULTS", str(tmp_path))

    def save(validation: list[float], test: float = TEST, cost: int = 1, **fields) -> RunConfig:
        config = RunConfig(dataset="ucm", ratio=0.78, **fields)
        record = make_record(config, test)
        record.curves["validation"] = validation
        if not validation:  # as with a split that has no such part
            del record.curves["validation"]
        record.cost["training_macs"] = 10**9 * config.epochs * cost
        save_record(record, record_path(config, "real", tmp_path))
        return config

    return save


def steady(value: float) -> list[float]:
    """A curve whose last ten epochs have this mean, and neither its last nor its best epoch."""
    return [99.0, *[value - 1, value + 1] * (LAST // 2)]


def cells(shown: report.Markdown, start: str) -> list[str]:
    """The cells of the line that begins so."""
    (line,) = [line for line in repr(shown).splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.fixture
def search(save):
    """The methods as they are, at three seeds, and a search at the first of them."""
    usual = [save(steady(80.0 + seed), method="scratch", seed=seed) for seed in range(3)]
    usual += [save(steady(70.0 + 3 * seed), method=m, seed=seed) for seed in range(3) for m in ("oed", "sfp")]
    tried = [
        save(steady(78.5), method="oed", freeze_at=0.3),
        save(steady(81.0), method="oed", distill_weight=3.0),
        save(steady(74.0), method="sfp", mask="hard", freeze_at=0.3),
    ]
    return report.recorded(usual), report.recorded(tried)


def test_a_search_is_judged_by_the_last_epochs_on_the_validation_part(search):
    rows, tried = search
    table = report.search_table(rows, tried, "Tried.", "tab-x")
    # against both controls at the searched seed, 0, alone: 80 from scratch, 70 as it is
    assert cells(table, "OED, distill weight 3.0")[1:] == ["81.00", "+11.00", "+1.00", "1"]
    assert cells(table, "OED, freeze at 0.3")[1:] == ["78.50", "+8.50", "−1.50", "1"]
    assert cells(table, "OED, as it is")[1:] == ["70.00", "–", "−10.00", "1"]
    assert cells(table, "SFP, mask hard, freeze at 0.3")[1:] == ["74.00", "+4.00", "−6.00", "1"]
    lines = [line.split("|")[1].strip() for line in repr(table).splitlines() if line.startswith(("| OED", "| SFP"))]
    oed, sfp = (["as it is", "distill weight 3.0", "freeze at 0.3"], ["as it is", "mask hard, freeze at 0.3"])
    assert lines == [f"OED, {setting}" for setting in oed] + [f"SFP, {setting}" for setting in sfp]


def test_a_search_shows_no_number_of_the_test_part_and_links_every_run(search):
    rows, tried = search
    for shown in (report.search_table(rows, tried, "Tried.", "tab-x"), report.search_answer(rows, tried)):
        assert "44" not in repr(shown).split("<details>")[0]
    sources = repr(report.search_table(rows, tried, "Tried.", "tab-x")).split("<details>")[1]
    assert all(record.name in sources and row.command() in sources for row in tried for record in row.records)


def test_the_answer_of_a_search_names_the_best_setting_and_whether_it_is_above_scratch(search):
    oed, sfp = repr(report.search_answer(*search)).splitlines()
    assert oed.startswith("- OED: 2 tried") and "*distill weight 3.0*, above" in oed and "+1.00 points, n = 1" in oed
    assert sfp.startswith("- SFP: 1 tried") and "*mask hard, freeze at 0.3*, not above" in sfp


def test_a_method_that_is_best_as_it_is_is_said_to_be(save):
    usual = [save(steady(v), method=m) for m, v in (("scratch", 80.0), ("oed", 79.0))]
    tried = [save(steady(60.0), method="oed", freeze_at=0.3)]
    assert "*as it is*, not above" in repr(report.search_answer(report.recorded(usual), report.recorded(tried)))


def test_a_search_without_controls_or_without_runs_is_shown_all_the_same(search):
    rows, tried = search
    assert cells(report.search_table([], tried, "Tried.", "tab-x"), "OED, freeze at 0.3")[2:4] == ["–", "–"]
    for shown in (report.search_table(rows, [], "Tried.", "tab-x"), report.search_answer(rows, [])):
        assert repr(shown) == "No run of this search is recorded yet."


def test_searched_runs_are_searched_where_the_tables_are_and_differ_from_the_default_in_a_knob():
    root = Path(__file__).parents[1]
    campaign, runs = (load_grid(root / "workflow" / f"{name}.yaml") for name in ("methods", "search"))
    names = {run.run_name("real") for run in campaign}
    assert 0 < len(runs) == len({run.run_name("real") for run in runs}) <= 13
    for run in runs:
        plain = RunConfig(dataset=run.dataset, method=run.method, ratio=run.ratio, seed=run.seed)
        assert run.run_name("real") not in names
        assert plain.run_name("real") in names
        assert (run.arch, run.ratio, run.split) == ("resnet18", 0.78, "protocol")  # which has a validation part


# -- epochs to equal accuracy ---------------------------------------------------------------------------------------
def test_epochs_to_reach_are_counted_where_the_mean_of_five_epochs_is_there(save):
    slow = [save([v + s for v in (10, 20, 30, 40, 50, 60, 60, 60, 60, 60)], method="scratch", seed=s) for s in range(3)]
    curve = [0, 90, 0, 0, 0, 59, 60, 61, 62, 63, 10, 10]  # a single high epoch is not enough, a later fall no matter
    fast = [save([v + s for v in curve], method="oed", seed=s, epochs=12) for s in range(2)]
    one, other = report.recorded(fast)[0], report.recorded(slow)[0]
    assert report.epochs_to_reach(one, other) == Reached(10, pytest.approx(60.5), pytest.approx(61.5), 2)
    assert report.epochs_to_reach(other, other).epoch == 10
    never = report.recorded([save([1.0] * 9, method="kd", epochs=9)])[0]
    assert report.epochs_to_reach(never, other) == Reached(None, 60.0, pytest.approx(1.0), 1)
    far = report.recorded([save([99.0] * 9, method="kd", seed=7)])[0]
    assert report.epochs_to_reach(far, other) is None


def test_the_sentence_on_pace_has_epochs_accuracy_seeds_and_price(save):
    slow = report.recorded([save([50.0] * 5 + [60.0] * 5, method="scratch")])[0]
    fast = report.recorded([save([60.0] * 5 + [70.0] * 5, method="oed", epochs=90)])[0]
    said = repr(report.pace(fast, slow, ("Fast", "Slow")))
    assert said.startswith(
        "On the validation part, averaged over 5 epochs (n = 1), Fast reaches what Slow has after all 60 (60.00 %) "
        "after 5 epochs."
    )
    assert "takes 1.50 times" in said
    assert repr(report.pace(slow, fast, ("Slow", "Fast"))).startswith(
        "On the validation part, averaged over 5 epochs (n = 1), Slow comes to 60.00 % and does not reach what Fast"
    )
    assert repr(report.pace(fast, None, ("Fast", "Slow"))) == (
        "Fast and Slow are not recorded at the same seeds with a validation part yet."
    )


def test_without_a_validation_part_there_is_no_pace(save):
    one, other = (report.recorded([save([], method=m, split="paper")])[0] for m in ("oed", "scratch"))
    assert report.epochs_to_reach(one, other) is None
    assert "not recorded" in repr(report.pace(one, other, ("One", "Other")))


# -- the longer control ---------------------------------------------------------------------------------------------
def test_methods_are_held_against_the_network_from_scratch_of_more_epochs_too(save):
    tests = {"scratch": (70.0, 71.0, 72.0), "oed": (73.0, 74.5, 75.0), "kd": (71.0, 70.5, 72.5)}
    cost = {"scratch": 1, "oed": 3, "kd": 2, "l1": 1}
    tests |= {"l1": (70.0, 71.5, 71.5)}
    runs = [save([1.0], v, cost[m], method=m, seed=s) for m, values in tests.items() for s, v in enumerate(values)]
    runs += [save([1.0], v, method="scratch", seed=s, epochs=120) for s, v in enumerate((76.0, 74.5, 76.5))]
    first, longer = repr(report.ranking(report.recorded(runs))).split(
        "Those that cost as much training or more, against"
    )
    gain = statistics.fmean(o - s for o, s in zip(tests["oed"], tests["scratch"], strict=True))
    undecided = "- undecided, the interval includes 0: "
    assert first.startswith(
        "When all methods of one reduction are tested at once: OED (−78.00 %) ahead of the narrow network from "
        "scratch, none shown behind it; none shown ahead of that network trained for longer, Plain KD (−78.00 %) "
        "behind it.\n"
    )
    assert f"- better: OED ({points(gain)})\n" in first and f"{undecided}Plain KD" in first and "L1 norm" in first
    assert "trained for 120 epochs, at 75.67\xa0±\xa01.0\xa0%" in longer and "over n = 3 seeds" in longer
    assert f"{undecided}OED (−1.50)\n" in longer and "- worse: Plain KD" in longer
    assert "L1 norm" not in longer  # its training costs less than that
    assert "- of the better and worse ones, left after Holm's correction for 3 tests: OED\n" in first
    two = repr(report.ranking(report.recorded([run for run in runs if run.seed < 2 and run.epochs == 60])))
    assert two.endswith("- too few seeds to say: OED; Plain KD; L1 norm")  # no verdict of two pairs
    certain = [(report.recorded(runs[3:6])[0], Difference(3, 5.0, 4.9, 5.1, 0.0))] * 2  # a p too small for a float
    left = "- of the better and worse ones, left after Holm's correction for 2 tests: OED; OED"
    assert _ranked(certain).endswith(left)
    assert "Holm" not in _ranked(certain[:1])
    assert "epochs, at" not in repr(report.ranking(report.recorded(runs[:12])))  # without a longer control


@pytest.mark.parametrize("otherwise", [{"scope": "all"}, {"learning_rate": 0.5}, {"round_to": 8}])
def test_another_network_or_training_is_not_that_network_trained_for_longer(save, otherwise):
    runs = [save([1.0], 70.0 + s, method=m, seed=s) for m in ("scratch", "l1") for s in range(3)]
    runs += [save([1.0], 80.0 + s, method="scratch", seed=s, epochs=120, **otherwise) for s in range(3)]
    assert "epochs, at" not in repr(report.ranking(report.recorded(runs)))


def test_a_network_of_another_size_is_not_held_against_the_longer_control(save):
    runs = [save([1.0], 70.0 + s, method="scratch", seed=s, epochs=e) for e in (60, 120) for s in range(3)]
    runs += [save([1.0], 60.0 + s, 9, method="l1", seed=s, scope="all") for s in range(3)]
    assert "L1 norm" not in repr(report.ranking(report.recorded(runs)))


def test_a_longer_training_costs_more_beside_the_same_dense_network(save):
    runs = [save([1.0], method="dense"), save([1.0], method="scratch"), save([1.0], method="scratch", epochs=120)]
    rows = report.recorded(runs)
    table = report.accuracy_table(rows, "Cost.", "tab-c", training=True)
    assert cells(table, "Dense")[6] == "1.00"
    assert cells(table, "Narrow, from scratch, 60 epochs")[6] == "1.00"
    assert cells(table, "Narrow, from scratch, 120 epochs")[6] == "2.00"
    assert report.price(rows, 0.78)._repr_svg_() != report.price(rows[:2], 0.78)._repr_svg_()  # both are drawn


def test_validation_of_a_row_is_by_seed(save):
    runs = [save(steady(60.0 + seed), method="oed", seed=seed) for seed in (0, 2)]
    assert on_validation(report.recorded(runs)[0]) == {0: pytest.approx(60.0), 2: pytest.approx(62.0)}
