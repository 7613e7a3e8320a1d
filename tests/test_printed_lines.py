"""The lines on one's own network, run as the README and the first page print them."""

import copy
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import bpl

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("page", ["README.md", "book/index.md"])
def test_the_printed_lines_give_a_smaller_network_with_the_same_outputs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = re.search(r"```python\n(import bpl\n.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.S)[1]
    torch.manual_seed(0)
    model = bpl.build_model("resnet18", 5, 32, 8)
    before = bpl.count_macs(copy.deepcopy(model), 32)
    loader = [(torch.randn(4, 3, 32, 32), torch.randint(5, (4,))) for _ in range(2)]
    place = {"torch": torch, "model": model, "loader": loader, "epochs": 2, "cross_entropy": F.cross_entropy}
    exec(lines, place)
    small = place["small"].double().eval()
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        error = (small(images) - model.double().eval()(images)).abs().max()
    assert error < 1e-5  # fused in single precision
    assert bpl.count_macs(small.float(), 32) < 0.6 * before
    if page == "README.md":
        assert bpl.load_model("small.safetensors")(images.float()).shape == (4, 5)
