"""Parameters of a page: a bad one stops at once with one sentence that names the value and what is allowed."""

import json
from pathlib import Path

import pytest
from PIL import Image

from bpl import notebook
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
    assert notebook.parameters(namespace) == GOOD


def test_the_parameters_of_the_page_are_knobs_of_a_run() -> None:
    cells = json.loads((ROOT / "notebooks" / "ucm.ipynb").read_text(encoding="utf-8"))["cells"]
    (cell,) = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    namespace: dict = {}
    exec("".join(cell["source"]), namespace)
    config = RunConfig.from_dict(notebook.parameters(namespace))
    assert (config.ratio, config.method, config.tier, config.data) == (0.7, "bpl", "quick", "auto")


def test_macs_are_counted_without_training() -> None:
    dense = RunConfig(dataset="ucm", method="dense", arch="resnet50", image_size=256)
    pruned = RunConfig(dataset="ucm", method="bpl", arch="resnet50", image_size=256, ratio=0.7)
    ratio = notebook.counted_macs(pruned, 21) / notebook.counted_macs(dense, 21)
    assert round(100 * (ratio - 1), 2) == -73.97
