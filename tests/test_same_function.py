"""`bpl.check_same`: what it lets pass, and what it does not."""

import copy
import dataclasses

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


class NormalisesInPlace(Net):
    def forward(self, x):
        x -= 0.5
        return super().forward(x)


def test_a_forward_pass_that_writes_into_its_images_changes_no_verdict_and_no_image():
    model = trained(NormalisesInPlace)
    masks = bpl.prune_masks(model, 0.5)
    small = bpl.slim(bpl.fuse_partners(model), masks)
    bpl.apply_masks(model, masks)
    x = images(size=SIZE)
    before = x.clone()
    assert bpl.check_same(model, small, x) < 1e-12
    assert torch.equal(x, before)


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


@dataclasses.dataclass
class Found:
    logits: torch.Tensor
    boxes: torch.Tensor
    sure: torch.Tensor


class InAnObject(Net):
    def forward(self, x):
        logits = super().forward(x)
        return Found(logits, logits[:0], logits > 0)


def test_the_fields_of_an_object_are_compared():
    """As of a detection network: logits, no boxes, and what is true or false."""
    model, other = randomise_statistics(InAnObject().double()), randomise_statistics(InAnObject().double(), seed=1)
    assert bpl.check_same(model, model, images(size=SIZE)) == 0
    with pytest.raises(ValueError, match="outputs differ by"):
        bpl.check_same(model, other, images(size=SIZE))


class Hidden:
    def __init__(self, logits):
        self.logits = logits


class InAnUnknownObject(Net):
    def forward(self, x):
        return Hidden(super().forward(x))


def test_no_image_is_no_comparison():
    nets = [bpl.build_model("resnet18", 5, 32, width=8) for _ in range(2)]
    with pytest.raises(ValueError, match=r"nothing to compare: the outputs, of shape \[\(0, 5\)\], have no element"):
        bpl.check_same(*nets, images(0, SIZE, dtype=torch.float32))
    with pytest.raises(TypeError, match="the model is 'x', a str"):
        bpl.check_same("x", nets[0], images(size=SIZE, dtype=torch.float32))


def test_an_output_that_cannot_be_looked_into_is_refused():
    model = InAnUnknownObject().double()
    with pytest.raises(ValueError, match="nothing to compare: the output of the network, a Hidden, has no tensor"):
        bpl.check_same(model, model, images(size=SIZE))


class OfTwo(Net):
    def forward(self, before, after):
        return super().forward(after) - super().forward(before)


def test_a_network_of_two_inputs():
    model, pair = OfTwo().double(), (images(size=SIZE), images(size=SIZE) + 1)
    assert bpl.check_same(model, copy.deepcopy(model), pair) == 0


def test_numbers_of_16_bits_are_compared_as_finely_as_they_are_kept():
    model = randomise_statistics(Net()).to(torch.bfloat16)
    small = bpl.fuse_partners(bpl.grow_partners(copy.deepcopy(model)))
    x = images(size=SIZE).to(torch.bfloat16)
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        rounded.fc.weight.mul_(1 + 2**-7)
    assert 1e-4 < bpl.check_same(model, rounded, x) < 8 * 2**-7
    with pytest.raises(ValueError, match="allowed is 0.0625"):
        bpl.check_same(model, small, x)
