"""The control of the ablation that holds kernels' norms: what a step may change, and what it may not."""

import pytest
import torch

import bpl
from bpl.config import RunConfig
from bpl.methods.held_norms import HeldNorms, branch_kernels, kernel_norm
from bpl.partner import partner_blocks


def grown(kind: str = "same") -> torch.nn.Module:
    return bpl.grow_partners(bpl.build_model("resnet18", 4, 32, 8), kind)


@pytest.mark.parametrize("kind", ["same", "acnet", "dbb"])
def test_a_step_turns_kernels_and_leaves_their_norms(kind):
    model = grown(kind)
    before = [w.detach().clone() for w in branch_kernels(model)]
    held = HeldNorms(model)
    with torch.no_grad():
        for w in branch_kernels(model):
            w.add_(torch.randn_like(w))
    held.restore()
    for old, new in zip(before, branch_kernels(model), strict=True):
        assert float(new.detach().norm()) == pytest.approx(float(old.norm()), rel=1e-5)
        cosine = float(torch.dot(old.flatten(), new.detach().flatten()) / old.square().sum())
        assert cosine < 0.99


def test_every_branch_is_held_and_nothing_else():
    model = grown()
    blocks = partner_blocks(model)
    assert len(branch_kernels(model)) == 2 * len(blocks)
    assert {id(w) for w in branch_kernels(model)} == {
        id(branch.conv.weight) for block in blocks.values() for branch in block.branches
    }


def test_a_kernel_that_is_zero_stays_zero():
    model = grown()
    first = branch_kernels(model)[0]
    with torch.no_grad():
        first.zero_()
    HeldNorms(model).restore()
    assert torch.equal(first, torch.zeros_like(first))


def test_the_length_that_is_reported_is_that_of_the_kernels():
    model = grown()
    with torch.no_grad():
        for w in branch_kernels(model):
            w.mul_(3 / w.norm())
    assert kernel_norm(model) == pytest.approx(3, rel=1e-5)


def test_only_bpl_has_the_knob_and_it_knows_one_word():
    assert RunConfig("ucm", "bpl", kernel_norm="fixed").kernel_norm == "fixed"
    assert RunConfig("ucm", "sfp", kernel_norm="fixed").kernel_norm is None
    with pytest.raises(ValueError, match="unknown kernel_norm 'free': allowed are fixed"):
        RunConfig("ucm", "bpl", kernel_norm="free")
    named = RunConfig("ucm", "bpl").identity("real")
    assert RunConfig("ucm", "bpl", kernel_norm="fixed").identity("real") != named
