"""What the book says of the cost of training is what the benchmarks of steps measured."""

import json
from pathlib import Path

import pytest

from bpl.report import ReportError, training

ROOT = Path(__file__).resolve().parent.parent
MACS = {"dense": 100, "partners": 150, "slimmed": 40}
NETWORK = {"arch": "resnet50", "image_size": 256, "batch": 8, "ratio": 0.7}
MACHINE = {
    "processor": "P", "threads": 1, "clock": "processor", "others": 0.5, "torch": "2.13.0", "date": "2026-01-01",
}  # fmt: skip


def steps_file(folder: Path, **changed: object) -> Path:
    times = {"released": [450.0, 450.0, 450.0]}
    for precision, factor in (("float32", 1.0), ("bf16", 0.5)):
        times |= {f"{kind} {precision}": [factor * macs] * 3 for kind, macs in MACS.items()}
    macs = {name: MACS.get(name.split()[0], 150) for name in times}
    parts = {f"partners {precision}": {"forward": 40.0, "backward": 60.0} for precision in training.PRECISIONS}
    values = {"schema": 1, "network": NETWORK, "machine": MACHINE, "macs": macs, "times": times, "parts": parts}
    path = folder / "training.json"
    path.write_text(json.dumps(values | changed))
    return path


def whole_file(folder: Path, **changed: object) -> Path:
    times = {precision: {kind: [float(macs)] * 3 for kind, macs in MACS.items()} for precision in training.PRECISIONS}
    values = {"network": NETWORK, "machine": MACHINE, "epochs": 10, "freeze_epoch": 2, "macs": MACS, "times": times}
    path = folder / "whole.json"
    path.write_text(json.dumps({"schema": 1} | values | changed))
    return path


def test_a_whole_training_is_the_sum_of_its_phases(tmp_path):
    whole = training.load_whole(whole_file(tmp_path))
    expected = 0.2 * 1.5 + 0.8 * 0.4
    assert whole.of_macs() == pytest.approx(expected)
    assert whole.of_time("bf16") == pytest.approx((expected,) * 3)
    text = repr(training.whole_sentence(whole))
    assert f"computes {expected:.3f} times as much" in text and "less of both" in text
    table = repr(training.whole_table(whole, "Whole.", "tab-w"))
    assert f"{expected:.3f}" in table and "20\N{NO-BREAK SPACE}% of the epochs" in table


def test_a_training_that_costs_more_is_not_called_cheaper(tmp_path):
    whole = training.load_whole(whole_file(tmp_path, freeze_epoch=10))
    assert "not less of both" in repr(training.whole_sentence(whole))


def test_aims_are_met_or_not_by_what_was_measured(tmp_path):
    lines = repr(training.aims(training.load_steps(steps_file(tmp_path)))).splitlines()
    assert "3.00 [3.00,\N{NO-BREAK SPACE}3.00] times, met" in lines[0]  # 2.2 is the goal in float32
    assert "6.00" in lines[1] and "times, met" in lines[1]
    assert all("1.50 [1.50,\N{NO-BREAK SPACE}1.50] × the dense step, met." in line for line in lines[2:])
    slow = json.loads(steps_file(tmp_path).read_text())["times"] | {
        "released": [300.0] * 3, "partners bf16": [90.0] * 3,
    }  # fmt: skip
    lines = repr(training.aims(training.load_steps(steps_file(tmp_path, times=slow)))).splitlines()
    assert "2.00" in lines[0] and "not met here" in lines[0]
    assert "1.80" in lines[3] and lines[3].endswith("not met here.")


def test_tables_and_conditions_say_what_the_file_holds(tmp_path):
    steps = training.load_steps(steps_file(tmp_path))
    table = repr(training.steps_table(steps, "Steps.", "tab-s"))
    assert "| dense, float32 | 100 | 80.00 |" in table
    parts = repr(training.parts_table(steps, "Parts.", "tab-p"))
    assert "| bf16 | 40.0 | 60.0 |" in parts
    said = repr(training.machine(steps))
    assert "processor time of 1 thread" in said and "50 % of its time went to other programs" in said


@pytest.mark.parametrize(
    ("load", "make", "changed", "message"),
    [
        (training.load_steps, steps_file, {"schema": 2}, "no measurement of version 1"),
        (training.load_steps, steps_file, {"times": {}}, "lack the step 'dense float32'"),
        (training.load_steps, steps_file, {"macs": 3}, "lack 'macs', or it is no dict"),
        (training.load_whole, whole_file, {"times": {"float32": {}}}, "lack the phase 'dense' in float32"),
    ],
)
def test_files_that_are_incomplete_are_refused_by_name(tmp_path, load, make, changed, message):
    with pytest.raises(ReportError, match=message):
        load(make(tmp_path, **changed))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ReportError, match="cannot be read"):
        training.load_steps(tmp_path / "none.json")


def test_the_committed_measurements_are_of_the_paper_s_network():
    folder = ROOT / "data" / "latency"
    for measured in (
        training.load_steps(folder / "training.json"),
        training.load_whole(folder / "whole_training.json"),
    ):
        assert measured.network == NETWORK
        assert "/" not in json.dumps(measured.machine)  # no path of the machine
