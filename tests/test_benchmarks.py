"""The training benchmarks: both sides of a comparison do the same work, and what is printed is what was measured."""

import json
import os
import sys
import time
from pathlib import Path

import pytest
import torch

import bpl
from bpl.measure import OtherWork, count_macs, in_turns, quartiles
from bpl.pruning import MaskHolder

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))
import steps
import streaming
import training
import whole_training

SMALL = {"arch": "resnet18", "image_size": 32, "batch": 4}


@pytest.fixture
def pair():
    """The library's step and the one in the released style, on the same network, images and masks."""

    def make(masks: bool):
        models = [steps.make_grown("resnet18", 32, bpl.grow_partners) for _ in range(2)]
        kept = bpl.prune_masks(models[0], 0.5)
        kept = kept if masks else {name: torch.ones_like(mask) for name, mask in kept.items()}
        for model in models if masks else ():
            MaskHolder(model, kept, filters_only=True).apply()
        torch.manual_seed(1)
        ours = steps.Step(models[0], 4, 32, bf16=False, masks=kept)
        torch.manual_seed(1)
        released = steps.ReleasedStep(models[1], 4, 32, kept)
        for model in models:
            for module in model.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.eval()  # statistics over four pixels would turn rounding into numbers
                    torch.nn.init.constant_(module.bias, 0.1)  # else a masked channel is 0, where ReLU has no slope
        return ours, released

    return make


def test_the_step_in_the_released_style_does_the_same_work(pair):
    ours, released = pair(masks=False)
    assert torch.equal(ours.pixels, released.pixels) and torch.equal(ours.labels, released.labels)
    before = {name: p.detach().clone() for name, p in ours.model.named_parameters()}
    ours(), released()
    for (name, one), other in zip(ours.model.named_parameters(), released.model.parameters(), strict=True):
        moved = float((one - before[name]).abs().max())
        assert float((one - other).abs().max()) <= 2e-3 * moved + 1e-7, name
    assert max(float((p - before[n]).abs().max()) for n, p in ours.model.named_parameters()) > 1e-4


def test_both_hold_the_originals_masks_and_only_ours_the_partners(pair):
    """As in the released code, whose partners grow back (book, fault 4); a leak that the comparison must not hide."""
    ours, released = pair(masks=True)
    for step in (ours, released):
        step(), step()
    for step, partner_holds in ((ours, True), (released, False)):
        for name, mask in bpl.prune_masks(ours.model, 0.5).items():
            block = bpl.partner.partner_blocks(step.model).get(name)
            for index, branch in enumerate(block.branches if block else ()):
                dead = not branch.conv.weight[~mask].any()
                assert dead if index == 0 or partner_holds else not dead


def test_a_step_says_how_long_its_parts_took():
    model = steps.make_grown("resnet18", 32, bpl.grow_partners)
    step = steps.Step(model, 4, 32, bf16=True, masks=bpl.prune_masks(model, 0.5))
    times = in_turns({"step": step}, rounds=3)
    assert list(step.parts) == ["images", "forward", "diversity loss", "backward", "optimiser", "masks"]
    assert all(len(values) == 4 for values in step.parts.values())  # with the warm-up
    inside = [sum(values) for values in zip(*step.parts.values(), strict=True)][1:]
    assert all(0 < part <= whole for part, whole in zip(inside, times["step"], strict=True))
    dense = steps.Step(steps.make_grown("resnet18", 32), 4, 32, bf16=False)
    dense()
    assert list(dense.parts) == ["images", "forward", "backward", "optimiser"]


class Stopwatch:
    """In the place of `in_turns`: every step runs once, and takes as long as its name says."""

    def __init__(self, times: dict[str, list[float]]):
        self.times = times

    def __call__(self, runs, rounds, warm_up=1, clock="wall"):
        for run in runs.values():
            for _ in range(warm_up + 1):
                run()
        return {name: self.times[name] for name in runs}


STEP_TIMES = {
    "dense float32": [100.0] * 3, "dense bf16": [50.0] * 3,
    "partners float32": [150.0] * 3, "partners bf16": [75.0] * 3,
    "slimmed float32": [60.0] * 3, "slimmed bf16": [25.0] * 3, "released": [300.0, 300.0, 360.0],
}  # fmt: skip
PHASE_TIMES = {"dense": [100.0] * 3, "partners": [200.0] * 3, "slimmed": [40.0, 50.0, 60.0]}


def three_networks():
    """Multiply-accumulates of the small dense network, the grown one, and the grown and slimmed one."""
    dense, grown = steps.make_grown("resnet18", 32), steps.make_grown("resnet18", 32, bpl.grow_partners)
    small = bpl.slim(grown, bpl.prune_masks(grown, 0.7))
    return [count_macs(model, 32) for model in (dense, grown, small)]


def test_the_ratios_are_those_of_the_times(monkeypatch):
    monkeypatch.setattr(training, "in_turns", Stopwatch(STEP_TIMES))
    text = training.describe(training.measure(**SMALL, rounds=3))
    for ratio in ("2.00 [2.00, 2.20]", "4.00 [4.00, 4.40]", "5.00 [5.00, 5.50]", "12.00 [12.00, 13.20]"):
        assert f"(b) {ratio} times as fast" in text
    dense, grown, small = three_networks()
    assert text.count(f"(a) 1.50 [1.50, 1.50] times the dense network's step; by MACs {grown / dense:.2f}") == 2
    assert f"(a) 0.60 [0.60, 0.60] times the dense network's step; by MACs {small / dense:.2f}" in text
    assert "80.00 images/s" in text  # 4 images in 50 ms
    lines = [line for line in text.splitlines() if "share of the step" in line]
    assert len(lines) == 2
    for line in lines:
        shares = [float(word) for word in line.replace("%", " ").split() if word[0].isdigit()]
        assert len(shares) == 6 and sum(shares) == pytest.approx(100, abs=0.6)


def test_a_whole_training_is_its_two_phases(monkeypatch):
    monkeypatch.setattr(whole_training, "in_turns", Stopwatch(PHASE_TIMES))
    measured = whole_training.measure(**SMALL, ratio=0.7, epochs=10, freeze_at=0.2, rounds=3, precisions=["float32"])
    text = whole_training.describe(measured)
    assert "masks freeze at epoch 2 of 10" in text
    assert "the whole training: 0.800 [0.760, 0.840] of the dense network's time" in text  # 0.2 * 2 + 0.8 * 0.5
    dense, grown, small = three_networks()
    assert f"{0.2 * grown / dense + 0.8 * small / dense:.3f} of its MACs" in text
    assert "if masks froze after 33 % of the epochs" in text  # x * 2 + (1 - x) * 0.5 = 1


@pytest.mark.parametrize("module", [training, whole_training], ids=["training", "whole_training"])
def test_what_is_printed_is_what_the_file_holds(module, monkeypatch, tmp_path, capsys):
    path = tmp_path / "new" / "measured.json"
    times = STEP_TIMES if module is training else PHASE_TIMES
    threads = torch.get_num_threads()
    monkeypatch.setattr(module, "in_turns", Stopwatch(times))
    options = {"--arch": "resnet18", "--image-size": "32", "--batch": "4", "--threads": "1", "--clock": "processor"}
    words = [word for pair in options.items() for word in pair]
    monkeypatch.setattr(sys, "argv", [module.__name__, *words, "--out", str(path)])
    try:
        module.main()
    finally:
        torch.set_num_threads(threads)
    measured = json.loads(path.read_text())
    assert capsys.readouterr().out == module.describe(measured) + "\n"
    assert measured["schema"] == 1 and measured["machine"]["clock"] == "processor"
    assert measured["machine"]["threads"] == 1 and "1 threads, processor time" in module.describe(measured)
    assert measured["times"] == (times if module is training else dict.fromkeys(("float32", "bf16"), times))
    assert "/" not in json.dumps(measured["machine"])  # no path of the machine


@pytest.mark.parametrize("module", [training, whole_training], ids=["training", "whole_training"])
@pytest.mark.parametrize("asked", ["0", "-1", "100000"])
def test_threads_that_the_machine_has_not_are_refused(module, asked, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [module.__name__, f"--threads={asked}"])
    with pytest.raises(SystemExit, match="2"):
        module.main()
    assert f"--threads is {asked}: it must be 1 to {os.cpu_count()}, the cores" in capsys.readouterr().err


def test_by_default_the_freeze_is_the_methods_own():
    config = bpl.RunConfig("ucm", "bpl", tier="paper")
    assert (config.freeze_epoch, config.epochs) == (3, 300)


@pytest.mark.parametrize("arch", ["resnet50"])
def test_a_whole_bpl_training_at_ratio_07_computes_less_than_the_dense_network(arch):
    """The compute half of the claim, exactly; its time is the benchmark's business."""
    with torch.device("meta"):
        dense = bpl.build_model(arch, 21, 256)
    config = bpl.RunConfig("ucm", "bpl", tier="paper", arch=arch)
    grown = bpl.grow_partners(bpl.build_model(arch, 21, 256))
    slimmed = bpl.slim(grown, bpl.prune_masks(grown, 0.7))
    macs = [count_macs(model, 256) for model in (dense, grown, slimmed)]
    share = config.freeze_epoch / config.epochs
    assert (share * macs[1] + (1 - share) * macs[2]) / macs[0] < 0.35


def test_things_take_turns_and_the_warm_up_is_not_counted():
    ran = []
    times = in_turns({"a": lambda: ran.append("a"), "b": lambda: ran.append("b")}, rounds=2, warm_up=1)
    assert ran == ["a", "b"] * 3
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2}


def test_the_clock_of_the_processor_counts_what_was_computed_and_not_what_was_waited_for():
    def wait() -> None:
        time.sleep(0.05)

    walls, computed = (in_turns({"wait": wait}, rounds=3, clock=clock)["wait"] for clock in ("wall", "processor"))
    assert min(walls) >= 50 > 5 * max(computed)
    with pytest.raises(ValueError, match="unknown clock 'sun': allowed are wall, processor"):
        in_turns({"wait": wait}, rounds=1, clock="sun")


def test_what_other_programs_took_is_said(tmp_path, monkeypatch):
    ticks = os.sysconf("SC_CLK_TCK")
    own = iter([1.0, 3.0])
    monkeypatch.setattr("bpl.measure.time.process_time", lambda: next(own))
    stat = tmp_path / "stat"
    stat.write_text(f"cpu  {5 * ticks} 0 0 {7 * ticks} 0 0 0 0 0 0\ncpu0 1 2 3\n")
    others = OtherWork(stat)
    # Ten seconds of processors later: 2 + 1 + 1 busy by user, nice and system, 1 stolen, 4 idle, 1 waiting for a disk.
    stat.write_text(f"cpu  {7 * ticks} {ticks} {ticks} {11 * ticks} {ticks} 0 0 {ticks} 0 0\n")
    assert others.share() == 0.3  # five seconds of ten were busy, two of them this process's own
    assert OtherWork(tmp_path / "none").share() is None


def test_quartiles():
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)
    assert quartiles([7.0]) == (7.0, 7.0, 7.0)


def test_the_book_shows_what_streaming_measured():
    root = Path(__file__).resolve().parent.parent
    result = json.loads((root / "data" / "streaming.json").read_text(encoding="utf-8"))
    page = (root / "book" / "scale.md").read_text(encoding="utf-8")
    assert streaming.rows(result) in page, "put in the rows that `python benchmarks/streaming.py --out ...` prints"
    size, machine = result["image_size"], result["machine"]
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}, {result['workers']} worker processes"
    said = f"{result['images']:,} JPEGs at {size} × {size}, batch {result['batch']}, {threads}"
    assert f"{said}, medians of {result['rounds']} rounds" in page


def test_streaming_reads_the_same_images_three_ways(tmp_path, monkeypatch):
    monkeypatch.setenv("BPL_MEMORY", "1GB")  # both variables are set anew by the benchmark
    monkeypatch.setenv("BPL_CACHE", "none")
    result = streaming.compare(tmp_path, images=60, image_size=32, batch=16, rounds=1)
    first, *lines = streaming.report(result).splitlines()
    assert first.startswith("60 images at 32 x 32, batch 16, ")
    words = [line.split()[0] for line in lines]
    assert words == ["batches", "memory", "rows", "files", "training,", "memory", "rows", "files"]
    assert all(float(line.split()[1]) > 0 for line in lines if line.startswith("  "))
    assert [line.split()[3] for line in lines if "memory " in line and line.startswith("  memory")] == ["1.00", "1.00"]
