"""Memory of a step: counted as it is by hand and on the CPU, and nothing grows faster than the multiply-accumulates."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bpl
from bpl.memory import LiveBytes, inference_memory, step_memory

ROOT = Path(__file__).resolve().parent.parent
RECORDED = ROOT / "data" / "latency" / "growth.json"


def _load_benchmark():
    spec = importlib.util.spec_from_file_location("memory_benchmark", ROOT / "benchmarks" / "memory.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


benchmark = _load_benchmark()


class Chain(nn.Module):
    """Two convolutions with ReLU, an average, a linear layer."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.b = nn.Conv2d(8, 16, 3, padding=1, bias=False)
        self.c = nn.Linear(16, 4)

    def forward(self, x):
        return self.c(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))


MAP = 4 * 16 * 16  # bytes of one channel's map of a 16 x 16 image
PARAMETERS = 4 * (8 * 27 + 16 * 72 + 16 * 4 + 4)


def test_inference_needs_the_weights_the_image_and_the_two_largest_neighbours():
    """At the last ReLU: its input and its output, 16 maps each; the maps of the first layer are gone."""
    assert inference_memory(Chain(), 16) == PARAMETERS + 3 * MAP + 2 * 16 * MAP
    assert inference_memory(Chain(), 16, 5) == PARAMETERS + 5 * (3 * MAP + 2 * 16 * MAP)


def test_a_step_needs_what_is_kept_and_what_is_on_its_way():
    """The peak is at the last ReLU's backward pass: both ReLUs' outputs, the gradient that comes and the one that goes.

    Beside them only vectors: logits, the average, the gradients of the linear layer.
    """
    memory = step_memory(Chain(), 16, 2)
    assert memory.weights == memory.momentum == PARAMETERS
    maps = 2 * (8 + 16 + 16 + 16) * MAP
    assert maps <= memory.peak < maps + 1000
    assert memory.total == 2 * PARAMETERS + memory.peak


def test_the_count_on_the_meta_device_is_that_of_a_real_step():
    torch.manual_seed(0)
    model = bpl.grow_partners(bpl.build_model("resnet18", 4, 32, 8)).train()
    counted = step_memory(model, 32, 4)
    images, labels = torch.randn(4, 3, 32, 32), torch.randint(0, 4, (4,))
    with LiveBytes([*model.parameters(), *model.buffers(), images, labels]) as memory:
        loss = F.cross_entropy(model(images), labels) + bpl.diversity_loss(model)
        loss.backward()
    assert memory.peak == pytest.approx(counted.peak, rel=0.02)  # kernels of the CPU keep a few vectors more
    gradients = sum(4 * p.numel() for p in model.parameters())
    assert gradients <= memory.live < gradients + 5000  # all else was given back


def test_no_less_is_counted_than_the_backward_pass_holds_on_to():
    """An independent count: the tensors that autograd saves, each once, weights left out."""
    model = bpl.build_model("resnet50", 4, 64, 16).to("meta").train()
    weights = {p.untyped_storage()._cdata for p in [*model.parameters(), *model.buffers()]}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(torch.empty(8, 3, 64, 64, device="meta")).sum()
    kept = sum(storage.nbytes() for storage in saved.values())
    assert loss.numel() == 1 and kept > 10_000_000
    assert kept < step_memory(model, 64, 8).peak < 1.6 * kept


def test_nothing_is_changed_by_counting():
    model = bpl.build_model("resnet18", 4, 32, 8).eval()
    step_memory(model, 32, 2), inference_memory(model, 32)
    assert not model.training and {p.device.type for p in model.parameters()} == {"cpu"}
    assert all(p.grad is None for p in model.parameters())


# -- growth ---------------------------------------------------------------------------------------------------------
def relative(rows: list[dict]) -> list[tuple[float, float]]:
    """MACs and bytes of all but the first, over those of the first."""
    return [(row["macs"] / rows[0]["macs"], row["bytes"] / rows[0]["bytes"]) for row in rows[1:]]


@pytest.mark.parametrize("axis", [axis for axis in benchmark.AXES if not axis.startswith("partners")])
def test_memory_grows_more_slowly_than_the_macs(axis):
    rows = [row for row in json.loads(RECORDED.read_text())["rows"] if row["axis"] == axis]
    assert [row["label"] for row in rows] == list(benchmark.AXES[axis])
    for macs, memory in relative(rows):
        assert macs > 1.9 and memory < macs


def test_so_it_does_with_bpls_partner_and_not_with_the_relatives_of_many_branches():
    """ACNet's and DBB's branches have few weights, and maps as large as any: they cost memory, not computation."""
    recorded = json.loads(RECORDED.read_text())["rows"]
    for arch in ("ResNet-18", "ResNet-50"):
        rows = [row for row in recorded if row["axis"] == f"partners, {arch}"]
        assert [row["label"] for row in rows] == ["none", "same", "acnet", "dbb"]
        same, _, dbb = relative(rows)
        assert same[1] < same[0] and dbb[1] > dbb[0]


@pytest.mark.parametrize(
    ("axis", "label"), [("width", "16"), ("width", "64"), ("partners, ResNet-18", "acnet"), ("image size", "128")]
)
def test_the_recorded_counts_are_those_of_this_code(axis, label):
    recorded = json.loads(RECORDED.read_text())
    (row,) = [row for row in recorded["rows"] if (row["axis"], row["label"]) == (axis, label)]
    assert row == {"axis": axis, "label": label} | benchmark.cost(**benchmark.AXES[axis][label])
    assert recorded["batch"] == benchmark.BATCH


def test_the_benchmark_writes_what_the_page_reads(tmp_path, monkeypatch, capsys):
    from bpl.report.growth import growth, load_growth, partners

    axes = {"width": {"8": {"width": 8, "image_size": 64}, "16": {"width": 16, "image_size": 64}}}
    monkeypatch.setattr(benchmark, "AXES", axes)
    monkeypatch.setattr(sys, "argv", ["memory.py", "--out", str(tmp_path / "new" / "growth.json")])
    benchmark.main()
    assert capsys.readouterr().out.count("MACs an image") == 2
    (points,) = load_growth(tmp_path / "new" / "growth.json").values()
    assert points[0] == ("8", 1.0, 1.0) and points[1][0] == "16" and points[1][1] > points[1][2] > 1
    axes = {"width": points, "partners, x": [("none", 1.0, 1.0), ("same", 1.5, 1.2)]}
    assert growth(axes).svg == growth(axes).svg != growth({"width": [*points, ("32", 9.0, 5.0)]}).svg
    assert growth(axes).svg == growth({"width": points}).svg
    assert partners(axes).svg == partners({"partners, x": axes["partners, x"]}).svg


@pytest.mark.parametrize(
    "text", ["", "{}", '{"rows": [{"axis": "a"}]}', '{"rows": [{"axis": "a", "label": "b", "macs": 0, "bytes": 1}]}']
)
def test_a_broken_file_is_named(tmp_path, text):
    from bpl.report.growth import load_growth
    from bpl.report.rows import ReportError

    (tmp_path / "growth.json").write_text(text)
    with pytest.raises(ReportError, match=r"growth .*growth\.json cannot be read"):
        load_growth(tmp_path / "growth.json")
