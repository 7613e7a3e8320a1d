"""Numbers and orders of size that the book's pages state by hand are those of the library and of the measured files."""

import json
import re
import statistics
from pathlib import Path

import pytest

import bpl
from bpl.defaults import TIERS
from bpl.report.training import load_whole
from bpl.schedule import steps_an_epoch

ROOT = Path(__file__).resolve().parent.parent


def page(name: str) -> str:
    return (ROOT / "book" / name).read_text(encoding="utf-8")


def rows(text: str) -> list[list[str]]:
    """The lines of all tables of a text, cell by cell."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]


def test_the_recipe_of_the_cpu_tier_is_the_library_s():
    config = bpl.RunConfig("ucm", "bpl").to_dict()
    stated = {row[0].strip("`"): row[1] for row in rows(page("reproduce.md")) if row[0].strip("`") in config}
    assert stated.keys() == TIERS["cpu"].keys() | {"momentum"}
    for knob, value in stated.items():
        meant = config[knob]
        assert value == meant if isinstance(meant, str) else float(value) == meant, knob


def test_the_quick_tier_differs_from_the_cpu_tier_as_the_page_says():
    quick, cpu = TIERS["quick"], TIERS["cpu"]
    assert {knob for knob in cpu if quick[knob] != cpu[knob]} == {"width", "epochs"}
    assert f"`quick` is the same with a width of {quick['width']} and {quick['epochs']} epochs." in page("reproduce.md")


@pytest.mark.parametrize("tier", TIERS)
def test_the_weight_of_the_loss_is_what_the_page_says_of_all_tiers(tier):
    weight = bpl.RunConfig("ucm", "bpl", tier=tier).diversity_weight
    assert f"In all of them BPL has the released code's weight of the diversity loss, {weight:g};" in page(
        "reproduce.md"
    )


def test_the_recipe_is_the_best_of_those_of_its_length():
    """As the page of the search says; the list of runs is that of the table there."""
    runs = json.loads((ROOT / "data" / "search" / "recipe.json").read_text())["runs"]
    tier = TIERS["cpu"]
    equal = [run for run in runs if run["split"] == "protocol" and run["epochs"] == tier["epochs"]]
    best = max(equal, key=lambda run: run["validation_last_10_epochs"])
    shared = tier.keys() & best.keys()
    assert len(shared) >= 6
    assert {knob: best[knob] for knob in shared} == {knob: tier[knob] for knob in shared}


def test_a_basic_block_loses_filters_of_its_first_convolution_only():
    """On the page How it works: hence ratio 0.78 for ResNet-18, where ResNet-50 has 0.7."""
    model = bpl.build_model("resnet18", 21, 64, width=32)
    masks = bpl.prune_masks(model, 0.78)
    assert all(name.endswith("conv1") and name != "conv1" for name in masks)
    share = 100 * (1 - bpl.count_macs(bpl.slim(model, masks), 64) / bpl.count_macs(model, 64))
    assert share == pytest.approx(73.97, abs=0.5)  # of ResNet-50 at 0.7: tests/test_accounting.py
    assert "a ratio of 0.78 removes about as large a share of the MACs there as 0.7" in page("how_it_works.md")


def test_a_run_of_the_headline_on_a_cpu_takes_what_the_page_says():
    whole = load_whole(ROOT / "data" / "latency" / "whole_training.json")
    assert (whole.network["arch"], whole.network["image_size"], whole.network["ratio"]) == ("resnet50", 256, 0.7)
    assert (whole.epochs, whole.machine["threads"]) == (TIERS["paper"]["epochs"], 1)
    images = steps_an_epoch(1680, TIERS["paper"]["batch_size"]) * TIERS["paper"]["batch_size"] * whole.epochs
    step = statistics.median(whole.times[TIERS["paper"]["precision"]]["dense"]) / 1e3  # seconds
    days = {"dense": images / whole.network["batch"] * step / 86_400}
    days["bpl"] = days["dense"] * whole.of_time(TIERS["paper"]["precision"])[1]
    assert days["bpl"] == pytest.approx(2 / 3, abs=0.08) and 0.8 < days["dense"] < 1
    said = "from two thirds of a day (`bpl`) to nearly a whole day (`dense`) on one core"
    assert said in page("paper_scale.md")


def test_the_last_way_of_streaming_is_too_noisy_to_rank():
    text = page("scale.md")
    assert "as wide as in the last row" in " ".join(text.split())
    brackets = [re.findall(r"\[([\d.]+), ([\d.]+)\]", row[-1]) for row in rows(text[text.index("tab-streaming") :])[:4]]
    ((_, other_high),), ((low, high),) = ([tuple(map(float, pair)) for pair in found] for found in brackets[-2:])
    assert low < 1 and high > other_high
