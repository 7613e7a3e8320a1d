"""Parameters of a page: a bad one stops at once with one sentence that names the value and what is allowed."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import bpl
from bpl import hardware, notebook
from bpl.config import RunConfig

ROOT = Path(__file__).resolve().parent.parent
GOOD = {"dataset": "ucm", "method": "bpl", "ratio": 0.7, "data": "synthetic", "tier": "quick", "seed": 0}


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("ratio", 1.5, "at least 0 and less than 1"),
        ("ratio", "a lot", "at least 0 and less than 1"),
        ("method", "magic", "dense, scratch, bpl"),
        ("arch", "resnet999", "resnet18"),
        ("dataset", "mars", "ucm"),
        ("data", "/no/such/folder", "auto, real, synthetic"),
        ("tier", "huge", "quick, cpu, paper"),
        ("epochs", 2.5, "whole number of at least 1"),
        ("ratoi", 0.5, "ratio"),
    ],
)
def test_a_bad_parameter_is_one_sentence(name: str, value: object, allowed: str) -> None:
    with pytest.raises(notebook.BadParameter) as caught:
        notebook.configure(GOOD | {name: value})
    sentence = str(caught.value)
    assert repr(value) in sentence and allowed in sentence
    assert caught.value._render_traceback_() == [sentence] and "\n" not in sentence


def test_a_folder_with_one_class_is_refused(tmp_path: Path) -> None:
    (tmp_path / "only").mkdir()
    for index in range(4):
        Image.new("RGB", (64, 64), (index, 0, 0)).save(tmp_path / "only" / f"{index}.png")
    with pytest.raises(notebook.BadParameter, match="1 class folders .only.; a classifier needs at least 2"):
        notebook.configure(GOOD | {"dataset": str(tmp_path), "data": "auto"})


def test_parameters_are_the_plain_values_of_a_page() -> None:
    namespace = GOOD | {"_private": 1, "In": [], "Out": {}, "__name__": "x", "notebook": notebook}
    assert notebook.parameters(namespace, ()) == GOOD


def test_a_parameter_is_changed_and_its_cell_run_again() -> None:
    namespace = dict(GOOD)
    notebook.configure(namespace)
    namespace |= {"campaign": [1, 2], "place": "UC Merced", "ratio": 0.5, "round_to": 8}  # later cells', and two knobs
    config, _, _ = notebook.configure(namespace)
    assert (config.ratio, config.round_to) == (0.5, 8)


RUNS = [RunConfig(dataset="ucm", method="dense")] + [
    RunConfig(dataset="ucm", method=method, ratio=ratio) for method in ("scratch", "bpl") for ratio in (0.5, 0.78)
]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ratio", 0.33, "ratio is 0.33: the runs of this page have 0.5, 0.78"),
        ("ratio", 0.0, "ratio is 0.0: the runs of this page have 0.5, 0.78"),
        ("ratio", [0.5], r"ratio is \[0.5\]: the runs of this page have 0.5, 0.78"),
        ("dataset", "mars", "dataset is 'mars': the runs of this page have ucm"),
        ("ratoi", 0.5, "unknown parameter 'ratoi' is 0.5: this page has dataset, ratio"),
    ],
)
def test_a_page_of_recorded_runs_refuses_what_no_run_has(name: str, value: object, said: str) -> None:
    page = {"dataset": "ucm", "ratio": 0.78}
    assert notebook.check_choice(dict(page), RUNS, "dataset", "ratio") == RUNS
    with pytest.raises(notebook.BadParameter, match=f"^{said}$"):
        notebook.check_choice(page | {name: value}, RUNS, "dataset", "ratio")


MEASURED = {"arch": "resnet18", "width": 16, "image_size": 64, "ratio": 0.7, "round_to": 8, "backend": "eager"}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("backend", "tpu", "unknown backend 'tpu': allowed are eager, compile, onnxruntime"),
        ("ratio", 0, "ratio is 0: nothing would be pruned; it must be more than 0 and less than 1"),
        ("ratio", 1, "ratio is 1: .*"),
        ("arch", "resnet19", ".*'resnet19': allowed are .*resnet18.*"),
        ("round_to", 0, "round_to is 0: it must be .*"),
        ("image_size", "64", "image_size is '64': it must be .*"),
        ("ratoi", 0.5, "unknown parameter 'ratoi' is 0.5: this page has arch, .*, backend"),
    ],
)
def test_a_page_that_measures_refuses_a_bad_parameter_in_one_sentence(name: str, value: object, said: str) -> None:
    page = dict(MEASURED)
    notebook.check_measurement(page, *MEASURED)
    page |= {"rows": [], "best": {}, "ratio": 0.5}  # run again, later cells have defined more
    notebook.check_measurement(page, *MEASURED)
    with pytest.raises(notebook.BadParameter, match=f"^{said}$"):
        notebook.check_measurement(MEASURED | {name: value}, *MEASURED)


@pytest.mark.parametrize("changes", [{"device": "cuda"}, {"learning_rate": 1e30}, {"method": "fcs_mlft", "ratio": 0.0}])
def test_what_only_a_live_run_finds_out_is_one_sentence_too(tmp_path: Path, monkeypatch, changes: dict) -> None:
    if "device" in changes and torch.cuda.is_available():
        pytest.skip("there is such a device")
    monkeypatch.setattr(notebook, "project_root", lambda: tmp_path)
    page = {"dataset": "synthetic", "method": "bpl", "tier": "quick", "epochs": 1, "width": 4, "image_size": 32}
    config, images, _ = notebook.configure(page | changes)
    with pytest.raises(notebook.BadParameter) as error:
        notebook.live_run(config, images)
    assert "\n" not in str(error.value) and error.value.__suppress_context__


def test_a_page_of_recorded_runs_is_run_again() -> None:
    page = {"dataset": "ucm", "ratio": 0.78}
    notebook.check_choice(page, RUNS, "dataset", "ratio")
    page |= {"campaign": [], "ratio": 0.5}
    assert notebook.check_choice(page, RUNS, "dataset", "ratio") == RUNS


def test_the_parameters_of_the_page_are_knobs_of_a_run() -> None:
    cells = json.loads((ROOT / "notebooks" / "ucm.ipynb").read_text(encoding="utf-8"))["cells"]
    (cell,) = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    namespace: dict = {}
    exec("".join(cell["source"]), namespace)
    config = RunConfig.from_dict(notebook.parameters(namespace, ()))
    assert (config.ratio, config.method, config.tier, config.data) == (0.7, "bpl", "quick", "auto")


def test_macs_are_counted_without_training() -> None:
    dense = RunConfig(dataset="ucm", method="dense", arch="resnet50", image_size=256)
    pruned = RunConfig(dataset="ucm", method="bpl", arch="resnet50", image_size=256, ratio=0.7)
    ratio = notebook.counted_macs(pruned, 21) / notebook.counted_macs(dense, 21)
    assert round(100 * (ratio - 1), 2) == -73.97


def test_a_live_run_is_counted_at_the_widths_that_it_had(tmp_path: Path, monkeypatch) -> None:
    """Those of a measured target lie among the run's own files: a second search would find others."""
    config = RunConfig(dataset="synthetic", method="bpl", tier="quick", target="latency:0.5")
    network = bpl.build_model(config.arch, 5, config.image_size, config.width)
    widths = hardware.widths_for(network, "macs:0.5", config.image_size).widths
    small = bpl.slim(network, bpl.prune_masks(network, 0, widths=widths))
    (tmp_path / "networks" / "run").mkdir(parents=True)
    file = tmp_path / "networks" / "run" / "model.safetensors"
    bpl.save_model(small, file)
    looked = []
    monkeypatch.setattr(notebook, "config_widths", lambda config, model, work: looked.append(work) or widths)
    cost = {"macs": bpl.count_macs(small, config.image_size)}
    record = SimpleNamespace(equivalence={"relative_error": 0.0}, cost=cost)
    notebook.check_shipped(config, record, file, 5)
    assert looked == [tmp_path / "networks"]


def test_what_must_hold_of_a_live_run_stops_the_page_where_it_does_not(tmp_path: Path, capsys) -> None:
    config = RunConfig(dataset="synthetic", method="scratch", tier="quick", ratio=0.7)
    network = bpl.build_model(config.arch, 5, config.image_size, config.width)
    small = bpl.slim(network, bpl.prune_masks(network, config.ratio))
    path = tmp_path / "model.safetensors"
    bpl.save_model(small, path)
    macs = bpl.count_macs(small, config.image_size)

    def check(config: RunConfig = config, apart: float = 1e-7, macs: int = macs, file: Path = path) -> None:
        cost = {"macs": macs, "dense_macs": bpl.count_macs(network, config.image_size)}
        notebook.check_shipped(config, SimpleNamespace(equivalence={"relative_error": apart}, cost=cost), file, 5)

    check()
    printed = capsys.readouterr().out
    assert "MACs: as counted" in printed and "Outputs: those of the trained network" in printed
    with pytest.raises(AssertionError, match=r"logits are 2\.0e-05 apart"):
        check(apart=2e-5)
    leaking = dataclasses.replace(config, method="bpl", mask="released")
    check(leaking, apart=2e-5)  # known of these masks, and said on their page
    assert "Outputs: not compared" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="the record says"):
        check(macs=macs + 1)
    bpl.save_model(network, tmp_path / "dense.safetensors")
    dense = bpl.count_macs(network, config.image_size)
    with pytest.raises(AssertionError, match=f"counted were {macs:,}"):
        check(macs=dense, file=tmp_path / "dense.safetensors")
