"""What the book says of a GPU is what was measured on it."""

import copy
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

import bpl
from bpl.report import ReportError, gpu

ROOT = Path(__file__).resolve().parent.parent
TRAINING = {
    "schema": 1,
    "network": {"arch": "resnet50", "image_size": 256, "batch": 64, "precision": "bf16"},
    "machine": {"torch": "2.11.0", "date": "2026-01-01"},
    "device": "NVIDIA H200",
    "peak": {"flops": 1e15, "known": True},
    "phases": {
        "dense": {"images_per_second": 2000.0, "macs": 5_000_000_000},
        "bpl before slimming": {"images_per_second": 1500.0, "macs": 7_500_000_000},
        "bpl after slimming": {"images_per_second": 2500.0, "macs": 1_500_000_000},
    },
    "released": 1000.0,
}
MS = {"dense": (2.0, 8.0), "rounded to 1": (2.5, 10.0), "rounded to 16": (1.0, 2.0)}
INFERENCE = {
    "schema": 1,
    "network": {"arch": "resnet50", "image_size": 256, "ratio": 0.7},
    "machine": {"torch": "2.11.0", "date": "2026-01-01"},
    "device": "NVIDIA H200",
    "macs": {"dense": 1000, "rounded to 1": 250, "rounded to 16": 200},
    "rows": [
        {"network": network, "batch": batch, "way": "graph", "ms": ms, "ms_quartiles": [ms, ms]}
        for network, times in MS.items()
        for batch, ms in zip((1, 64), times, strict=True)
    ],
}


def lines_of(table: object) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in repr(table).splitlines() if "|" in line]


def test_the_speeds_of_a_training_follow_from_the_measurements():
    lines = lines_of(gpu.gpu_training_table(TRAINING, "C.", "tab-x"))[2:]
    nbsp = "\N{NO-BREAK SPACE}"
    assert lines[0] == ["dense", "2000", "–", "–", f"6.0{nbsp}%", f"2.00{nbsp}×"]  # 6 x 5e9 x 2000 of 1e15
    assert lines[2] == ["BPL after slimming", "2500", "1.25", "0.30", f"2.2{nbsp}%", f"2.50{nbsp}×"]


def test_a_goal_is_met_or_not_by_what_was_measured():
    text = repr(gpu.gpu_training_sentence(TRAINING))
    assert "4.2 minutes for dense (this library's goal, 3 minutes, is not met)" in text  # 26 x 64 x 300 / 2000 / 60
    assert "3.3 minutes for bpl (this library's goal, 4 minutes, is met)" in text


def test_times_faster_are_of_the_dense_network_at_the_same_batch():
    text = repr(gpu.gpu_inference_sentence(INFERENCE))
    assert "With 75.00 % of the multiply-accumulates" in text
    assert "0.80 times at batch 1 and 0.80 times at batch 64." in text
    assert "it is 2.00 times at batch 1 and 4.00 times at batch 64." in text
    lines = lines_of(gpu.gpu_inference_table(INFERENCE, "C.", "tab-y"))
    assert lines[0] == ["Network", "MACs, %", "Batch 1, CUDA graph, ms", "faster", "Batch 64, CUDA graph, ms", "faster"]
    assert lines[2][1:4] == ["0", "2.00", "–"]
    assert lines[3][0] == "not rounded"
    assert lines[4][1:4] == ["−80.00", "1.00", "2.00\N{NO-BREAK SPACE}×"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "cannot be read"),
        (json.dumps(TRAINING | {"schema": 2}), "is no measurement of version 1"),
        (json.dumps({name: value for name, value in TRAINING.items() if name != "phases"}), "lack 'phases'"),
    ],
)
def test_a_file_that_is_no_measurement_is_refused_by_name(tmp_path, content, reason):
    path = tmp_path / "gpu.json"
    path.write_text(content)
    with pytest.raises(ReportError, match=rf"{path}.*{reason}"):
        gpu.load_gpu_training(path)


def test_a_network_that_was_not_measured_is_named():
    with pytest.raises(ReportError, match="lack 'rounded to 1' at batch 1"):
        gpu.gpu_inference_sentence(INFERENCE | {"rows": INFERENCE["rows"][:2]})


def test_what_runs_took_is_said_with_how_many_shared_the_gpu():
    def run(seconds: float, beside: int) -> SimpleNamespace:
        return SimpleNamespace(seconds=seconds, environment={"runs_beside_each_other": beside})

    rows = [SimpleNamespace(records=(run(180.0, 3), run(210.0, 2))), SimpleNamespace(records=(run(150.0, 3),))]
    expected = (
        "in median: 2 at once, 3.5 each (1 run), one done every 1.8; 3 at once, 2.8 each (2 runs), one done every 0.9."
    )
    assert expected in repr(gpu.minutes_a_run(rows))
    assert repr(gpu.minutes_a_run([])) == "No run is recorded yet."


def test_what_the_book_shows_is_of_the_networks_that_the_library_makes():
    """The costs in both files, counted anew."""
    training = gpu.load_gpu_training(ROOT / "data" / "latency" / "gpu_training.json")
    inference = gpu.load_gpu_inference(ROOT / "data" / "latency" / "gpu_inference.json")
    dense = bpl.build_model("resnet50", 21, 256)
    partners = bpl.grow_partners(copy.deepcopy(dense))
    masks = bpl.prune_masks(partners, 0.7)
    expected = [bpl.count_macs(model, 256) for model in (dense, partners, bpl.slim(partners, masks))]
    assert [phase["macs"] for phase in training["phases"].values()] == expected
    for name, macs in inference["macs"].items():
        rounding = int(found[1]) if (found := re.fullmatch(r"rounded to (\d+)", name)) else None
        small = bpl.slim(dense, bpl.prune_masks(dense, 0.7, round_to=rounding)) if rounding else dense
        assert macs == bpl.count_macs(small, 256)
