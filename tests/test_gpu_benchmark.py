"""The benchmark of the fast path, in the small: it runs on a CPU, and what it prints hangs together."""

import re
from pathlib import Path

import pytest
import torch
from support import places_fixture  # noqa: F401

from bpl.report.gpu import gpu_inference_sentence, gpu_training_table, load_gpu_inference, load_gpu_training
from bpl.sweep.chips import BF16_PEAK, known_peak, measured_peak

pytestmark = pytest.mark.usefixtures("places")


@pytest.fixture
def gpu(monkeypatch):
    """The benchmark, as a module."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import gpu

    return gpu


def test_the_small_benchmark_prints_speeds_shares_and_ratios_that_agree(gpu, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["gpu.py", "--small", "--rounds", "2"])
    gpu.main()
    out = capsys.readouterr().out
    speed = dict(re.findall(r"^  ([a-z ]+?) +([\d.]+) images/s", out, re.M))
    assert list(speed) == ["dense", "bpl before slimming", "bpl after slimming", "released style"]
    rows = re.findall(r"images/s +([\d.]+) TFLOP/s +([\d.]+) % of the peak, +([\d.]+) of dense, +([\d.]+) of the", out)
    for (_, percent, of_dense, of_released), phase in zip(rows, speed, strict=False):
        assert 0 <= float(percent) < 100
        assert float(speed[phase]) > 0
        assert float(of_dense) == pytest.approx(float(speed[phase]) / float(speed["dense"]), abs=0.02)
        assert float(of_released) == pytest.approx(float(speed[phase]) / float(speed["released style"]), abs=0.02)
    assert len(rows) == 3
    shares = re.findall(r"^share of a step, (.+?): (.+)$", out, re.M)
    assert [phase for phase, _ in shares] == list(speed)[:3]
    for phase, text in shares:
        parts = dict(re.findall(r"([a-z ]+?) ([\d.]+) %", text))
        assert ("diversity loss" in text) == (phase != "dense")
        assert {"images", "forward", "backward", "optimiser"} <= {name.strip(", ") for name in parts}
        assert sum(map(float, parts.values())) == pytest.approx(100, abs=0.3)


def test_what_the_benchmark_writes_is_what_the_book_reads(gpu, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("sys.argv", ["gpu.py", "--small", "--rounds", "2", "--out", str(tmp_path / "gpu.json")])
    gpu.main()
    measured = load_gpu_training(tmp_path / "gpu.json")
    speeds = [phase["images_per_second"] for phase in measured["phases"].values()]
    printed = re.findall(r"^  (?:dense|bpl [a-z ]+?) +([\d.]+) images/s", capsys.readouterr().out, re.M)
    assert [f"{speed:.1f}" for speed in speeds] == printed
    assert f"{speeds[0]:.0f}" in repr(gpu_training_table(measured, "C.", "tab-x"))


def test_the_benchmark_of_inference_times_every_network_and_leaves_a_file(gpu, monkeypatch, tmp_path, capsys):
    import gpu_inference

    monkeypatch.setattr("sys.argv", ["gpu_inference.py", "--small", "--out", str(tmp_path / "gpu.json")])
    gpu_inference.main()
    measured = load_gpu_inference(tmp_path / "gpu.json")
    networks = ["dense", *(f"rounded to {rounding}" for rounding in gpu_inference.ROUNDINGS)]
    assert list(measured["macs"]) == networks
    assert [(row["batch"], row["network"]) for row in measured["rows"]] == [
        (batch, network) for batch in gpu_inference.BATCHES for network in networks
    ]
    assert all(0 < row["ms_quartiles"][0] <= row["ms"] <= row["ms_quartiles"][1] for row in measured["rows"])
    shown = re.findall(r"batch +(\d+) eager +(.+?) +([\d.]+) ms", capsys.readouterr().out)
    assert [float(ms) for *_, ms in shown] == pytest.approx([row["ms"] for row in measured["rows"]], abs=1e-3)
    assert "batch 1" in repr(gpu_inference_sentence(measured))


def test_the_benchmark_trains_by_the_library_and_sees_the_network_shrink(gpu):
    """Epochs of the phases are epochs of one run: as many as asked for, on the images given."""
    phases = gpu.phases_of_the_loop("resnet18", 8, 32, 16, 2, "off", torch.device("cpu"))
    assert {phase: len(seconds) for phase, seconds in phases.items()} == dict.fromkeys(phases, gpu.EPOCHS)
    assert min(map(min, phases.values())) > 0


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("Quadro RTX 8000", None),
        ("CPU", None),
    ],
)
def test_a_chips_peak_is_found_by_its_name(device, name):
    assert known_peak(device) == (None if name is None else BF16_PEAK[name])


def test_a_peak_that_is_not_known_is_measured():
    assert 1e8 < measured_peak(torch.device("cpu"), 256, 2) < 1e15
