"""The campaign at the paper's scale: its grid, and what it is said to take."""

import re
from pathlib import Path

import pytest
from support import places_fixture, small, trained, tree_fixture  # noqa: F401

from bpl.cli import main
from bpl.config import RunConfig
from bpl.data import CARDS
from bpl.defaults import METHODS, TIERS
from bpl.measure import count_macs, count_params
from bpl.models import build_model
from bpl.partner import grow_partners
from bpl.pruning import prune_masks, slim
from bpl.sweep import load_grid, load_stages
from bpl.sweep.chips import BF16_PEAK
from bpl.sweep.estimate import estimate, training_macs

pytestmark = pytest.mark.usefixtures("places")

GRID = Path(__file__).parents[1] / "workflow" / "paper.yaml"
RECIPE = ("schedule", "weight_decay", "label_smoothing", "augmentation")
HEADLINE_RUNS = [("dense", 0.0), ("scratch", 0.7), ("bpl", 0.7)]
HEADLINE = [("dense", 0.0, None), ("scratch", 0.7, None), ("bpl", 0.7, 0.01), ("bpl", 0.7, 1.0)]


@pytest.fixture(scope="module")
def stages() -> list[list[RunConfig]]:
    return load_stages(GRID)


def rows(stage: list[RunConfig]) -> set[tuple]:
    return {(config.method, config.ratio, config.diversity_weight) for config in stage}


def recipe(values: dict) -> dict:
    """What a recipe is; the learning rate goes with the batch (Goyal et al. 2017)."""
    return {name: values[name] for name in RECIPE} | {"rate": round(values["learning_rate"] / values["batch_size"], 9)}


def test_a_third_of_the_epochs_on_the_better_recipe_comes_first_three_seeds_of_each_arm(stages):
    assert rows(stages[0]) == {*HEADLINE, ("bpl", 0.7, 0.0)}
    assert [config.seed for config in stages[0]] == [0] * 5 + [1] * 5 + [2] * 5
    for config in stages[0]:
        assert recipe(config.to_dict()) == recipe(TIERS["cpu"])
        assert (config.dataset, config.split, config.epochs, config.batch_size) == ("ucm", "paper", 100, 64)


def test_then_the_headline_on_the_released_schedule_three_seeds_then_two_more(stages):
    assert [(c.method, c.ratio, c.diversity_weight) for c in stages[1][:4]] == HEADLINE
    assert [config.seed for config in stages[1]] == [0] * 4 + [1] * 4 + [2] * 4
    assert rows(stages[2]) == set(HEADLINE)
    assert {config.seed for config in stages[2]} == {3, 4}
    for config in stages[1] + stages[2]:
        assert recipe(config.to_dict()) == recipe(TIERS["paper"])
        assert (config.dataset, config.split, config.epochs, config.batch_size) == ("ucm", "paper", 300, 64)


def test_then_other_ratios_the_better_recipe_and_everything_else_on_it(stages):
    assert {config.ratio for config in stages[3]} == {0.5, 0.8}
    assert rows(stages[4]) == set(HEADLINE)
    assert {config.seed for config in stages[4]} == set(range(5))
    for config in [config for stage in stages[4:] for config in stage]:  # whoever changes the recipe changes the grid
        assert recipe(config.to_dict()) == recipe(TIERS["cpu"])
    assert [(stage[0].dataset, stage[0].arch, stage[0].split, stage[0].image_size) for stage in stages[5:]] == [
        ("ucm", "resnet50", "aitlas", 224), ("nwpu-21", "resnet50", "paper", 256), ("ucm", "resnet50", "paper", 256),
        ("ucm", "resnet101", "paper", 256), ("aid", "resnet50", "paper", 128),
    ]  # fmt: skip
    assert {config.method for config in stages[7]} == set(METHODS) - {"dense", "scratch", "bpl"}


def test_all_is_at_the_papers_tier_and_no_run_is_there_twice(stages):
    configs = load_grid(GRID)
    assert configs == [config for stage in stages for config in stage]
    assert {config.tier for config in configs} == {"paper"}
    assert {config.precision for config in configs} == {"bf16"}
    assert len({config.identity("real") for config in configs}) == len(configs)


# -- what it takes ------------------------------------------------------------------------------------------------
EXACT = [
    {"method": "dense"},
    {"method": "dense", "batch_size": 500},
    {"method": "scratch"},
    {"method": "bpl", "mask": "soft", "freeze_at": 0.5},
    {"method": "bpl", "slim_at": 2},
    {"method": "bpl", "slim_at": "none", "ratio": 0.5},
    {"method": "bpl", "mask": "released"},
    {"method": "bpl", "partner": "acnet"},
    {"method": "l1", "round_to": 4},
    {"method": "kd"},
]
AT_MOST = [{"method": name, "ratio": 0.3} for name in ("self_kd", "hrank", "fcs_mlft", "compact_kd", "oed", "ddsl")]


def computed(tree: Path, fields: dict) -> tuple[int, int]:
    """What a run computed in its steps, and what the estimate says."""
    config = small(tree, **{"epochs": 3} | fields)
    out = trained(config)
    return out.training_macs - out.method.macs_before(), training_macs(config, 56, 4)


@pytest.mark.parametrize("fields", EXACT, ids=lambda fields: "-".join(map(str, fields.values())))
def test_the_estimate_is_what_a_run_computes(tree, fields):
    done, estimated = computed(tree, fields)
    assert estimated == done


@pytest.mark.parametrize("fields", AT_MOST, ids=lambda fields: fields["method"])
def test_the_estimate_of_a_method_that_searches_is_a_bound_and_not_a_wild_one(tree, fields):
    done, estimated = computed(tree, fields)
    assert done <= estimated <= 3 * done


@pytest.mark.parametrize("fields", [{"method": "scratch"}, {"method": "l1"}, {"method": "bpl"}], ids=str)
def test_the_estimate_of_a_target_is_near(tree, fields):
    """Widths that differ from layer to layer meet a share of the MACs, where a ratio would leave far fewer."""
    done, estimated = computed(tree, fields | {"target": "macs:0.3", "epochs": 6})
    assert estimated == pytest.approx(done, rel=0.15)


def test_the_table_adds_up_and_follows_from_the_networks():
    one, two = RunConfig("ucm", "dense", tier="paper", split="paper"), RunConfig("aid", "dense", image_size=64)
    lines = estimate([[one, one], [two]], "A100", 2.0).splitlines()
    table = [line.split() for line in lines[2:]]
    assert lines[1].split() == ["stage", "runs", "PFLOP", "hours", "cost"]
    assert [row[:2] for row in table] == [["1", "2"], ["2", "1"], ["all", "3"]]
    flops = 6 * count_macs(build_model("resnet50", 21, 256), 256) * 1664 * 300  # 26 batches of 64
    assert float(table[0][2]) == pytest.approx(2 * flops / 1e15, abs=0.06)
    assert float(table[0][3]) == pytest.approx(2 * flops / (0.05 * BF16_PEAK["A100"]) / 3600, abs=0.006)
    for column in (2, 3, 4):
        assert float(table[2][column]) == pytest.approx(float(table[0][column]) + float(table[1][column]), abs=0.11)
    assert float(table[2][4]) == pytest.approx(2 * float(table[2][3]), abs=0.02)
    assert "cost" not in estimate([[one]])


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"chip": "abacus"}, "unknown chip 'abacus': allowed are H200"), ({"price": -1.0}, "price is -1.0")],
)
def test_a_bad_option_is_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        estimate([[RunConfig("ucm", "dense")]], **options)


def test_a_data_set_of_unknown_size_is_refused_by_name(tree):
    with pytest.raises(ValueError, match="is not known beforehand: an estimate can be had for ucm"):
        estimate([[small(tree, "dense")]])
    assert CARDS["rsd46"].images_total is None
    with pytest.raises(ValueError, match="'rsd46' is not known beforehand"):
        estimate([[RunConfig("rsd46", "dense")]])


@pytest.mark.parametrize(("option", "value"), [("--price", "2.5"), ("--chip", "H100")])
def test_a_price_without_an_estimate_runs_nothing(tmp_path, places, capsys, option, value):
    (tmp_path / "grid.yaml").write_text("- {dataset: ucm, method: [dense, bpl], width: 8}\n")
    with pytest.raises(SystemExit) as ended:
        main(["sweep", str(tmp_path / "grid.yaml"), option, value])
    assert ended.value.code == 2
    assert f"{option} is {value}: it is allowed with --estimate only" in capsys.readouterr().err
    assert not (places / "results").exists()


def test_an_estimate_has_the_dense_networks_that_runs_need_once():
    plain = {"dataset": "ucm", "tier": "paper", "split": "paper"}
    taught = [RunConfig(method=method, seed=seed, **plain) for method in ("kd", "hrank") for seed in (0, 1)]
    dense = [RunConfig(method="dense", seed=seed, **plain) for seed in (0, 1)]
    assert estimate([taught]).splitlines()[2:] == estimate([[*taught, *dense]]).splitlines()[2:]
    later = estimate([taught, dense]).splitlines()[2:]  # in a stage of their own they are not counted twice
    assert later[-1].split()[1:] == estimate([taught]).splitlines()[-1].split()[1:]
    started = [RunConfig(method="kd", pretrain="aid:5", seed=seed, **plain) for seed in (0, 1)]
    assert estimate([started]).splitlines()[-1].split()[1] == "5"  # two dense networks, and one start for both


def test_sweep_prints_the_estimate_and_runs_nothing(tmp_path, places, capsys):
    (tmp_path / "grid.yaml").write_text("- {dataset: ucm, method: [dense, bpl], width: 8}\n")
    with pytest.raises(SystemExit) as ended:
        main(["sweep", str(tmp_path / "grid.yaml"), "--estimate", "--chip", "H100", "--price", "2.5"])
    out = capsys.readouterr().out
    assert not ended.value.code
    assert "an estimate: H100 at 5 %" in out
    assert re.search(r"^ +all +2 +[\d.]+ +[\d.]+ +[\d.]+$", out, re.M)
    assert not (places / "results").exists()
    assert not (places / "work").exists()


# -- the page -----------------------------------------------------------------------------------------------------
PAGE = Path(__file__).parents[1] / "book" / "paper_scale.md"


def cells(name: str) -> list[list[str]]:
    """The rows of a table of the page, without its head."""
    table = re.search(rf":name: {name}\n(?::class:.*\n)?\n(.*?)(?:```|~~~)", PAGE.read_text(), re.DOTALL)[1]
    return [[cell.strip() for cell in line.strip("| \n").split("|")] for line in table.splitlines()[2:] if line]


def test_the_page_shows_the_estimate_that_the_command_prints(stages):
    printed = [line.split() for line in estimate(stages).splitlines()[2:]]
    assert [[row[0], *row[2:]] for row in cells("tab-paper-campaign")] == printed
    assert f"{sum(map(len, stages))}" == printed[-1][1]


def test_the_page_says_what_one_run_computes():
    for row, (method, ratio) in zip(cells("tab-paper-run"), HEADLINE_RUNS, strict=True):
        config = RunConfig("ucm", method, tier="paper", split="paper", ratio=ratio)
        flops = 2 * training_macs(config, 1680, 21)
        assert row[0].startswith(f"`{method}`")
        assert row[1:] == [f"{flops / 1e15:.1f}", f"{flops / (0.05 * BF16_PEAK['H200']) / 60:.1f}"]
        if method == "dense":
            share = f"{100 * flops / BF16_PEAK['H200'] / 180:.0f}"
            assert f"at {share} % of the rate, the dense run takes three minutes" in PAGE.read_text()


def test_the_page_says_what_a_checkpoint_weighs():
    partners = grow_partners(build_model("resnet50", 21, 256))
    slimmed = slim(partners, prune_masks(partners, 0.7))
    whole, small_ = (f"{8 * count_params(model) / 1e6:.0f} MB" for model in (partners, slimmed))
    text = " ".join(PAGE.read_text().split())
    assert f"8 bytes a parameter: {whole} for ResNet-50 with partners, and {small_} once a BPL run" in text
    assert RunConfig("ucm", "bpl", tier="paper").freeze_epoch == 3  # "three epochs after its start"
