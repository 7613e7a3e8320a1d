"""`bpl.check_same`: what it lets pass, and what it does not."""

import copy

import pytest
import torch
from exactness import images, randomise_statistics
from little_networks import WIDTH, Net
from torch import nn

import bpl

SIZE = 8


def trained(network: type[nn.Module] = Net) -> nn.Module:
    return randomise_statistics(bpl.grow_partners(network()).double())


class InTwoParts(Net):
    def forward(self, x):
        x = self.stem(x)
        return {"logits": self.fc(self.last(x).mean((2, 3))), "levels": [x.mean((1, 2, 3)), None]}


@pytest.mark.parametrize("network", [Net, InTwoParts])
def test_what_was_fused_and_slimmed_passes_and_the_modes_stay(network):
    model = trained(network).train()
    model.last[1].eval()
    masks = bpl.prune_masks(model, 0.5)
    small = bpl.slim(bpl.fuse_partners(model), masks).train()
    bpl.apply_masks(model, masks)
    modes = [module.training for module in [*model.modules(), *small.modules()]]
    statistics = copy.deepcopy(model.state_dict())
    assert bpl.check_same(model, small, images(size=SIZE)) < 1e-12
    assert [module.training for module in [*model.modules(), *small.modules()]] == modes
    assert all(torch.equal(value, statistics[name]) for name, value in model.state_dict().items())


def test_a_network_without_its_masks_is_not_the_same():
    model = trained()
    small = bpl.slim(bpl.fuse_partners(model), bpl.prune_masks(model, 0.5))
    with pytest.raises(ValueError, match="not the same network: outputs differ by .*; allowed is 0.0001"):
        bpl.check_same(model, small, images(size=SIZE))
    assert bpl.check_same(model, small, images(size=SIZE), tolerance=1e9) > 1e-4


def test_no_number_is_not_the_same_as_a_number():
    model, broken = trained(), trained()
    with torch.no_grad():
        broken.fc.bias[0] = float("nan")
    for pair in ((model, broken), (broken, model), (broken, broken)):
        with pytest.raises(ValueError, match="outputs differ by nan"):
            bpl.check_same(*pair, images(size=SIZE))


def test_other_outputs_are_named_by_their_shapes():
    model, other = trained(), trained()
    other.fc = nn.Linear(WIDTH, 3).double()
    with pytest.raises(ValueError, match=r"its outputs are of shape \[\(2, 5\)\], those of the small one \[\(2, 3\)\]"):
        bpl.check_same(model, other, images(size=SIZE))


def test_a_small_network_that_fails_says_so():
    model = trained()
    small = copy.deepcopy(model)
    small.last[0] = nn.Conv2d(WIDTH - 1, WIDTH, 3).double()
    with pytest.raises(ValueError, match="not the same network: the small one fails on these images .*channels"):
        bpl.check_same(model, small, images(size=SIZE))
