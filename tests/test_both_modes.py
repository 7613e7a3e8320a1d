"""Networks that compute otherwise in training than in evaluation: what goes, goes exactly in both."""

import random

import numpy as np
import pytest
import torch
from exactness import assert_exact, images, random_masks, randomise_statistics, same_state, state
from little_networks import CLASSES, WIDTH, Net, block, conv
from torch import nn

import bpl
from bpl.channels import ChannelGraph
from bpl.copies import copy_of
from bpl.hardware import widths_for
from bpl.pruning.channel_cost import ChannelCost
from bpl.pruning.masks import prunable_sets

SIZE = 8


class TwoBlocks(Net):
    def __init__(self):
        super().__init__()
        self.a = block()


class AuxiliaryHead(TwoBlocks):
    """As torchvision's GoogLeNet: a head that only training uses."""

    def __init__(self):
        super().__init__()
        self.aux = nn.Sequential(block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, CLASSES))

    def forward(self, x):
        x = self.stem(x)
        out = self.fc(self.last(self.a(x)).mean((2, 3)))
        return (out, self.aux(x)) if self.training else out


class SigmoidInTraining(TwoBlocks):
    """A layer that training reads through something whose zeros do not survive, and evaluation does not."""

    def __init__(self):
        super().__init__()
        self.also = conv(WIDTH, WIDTH)

    def forward(self, x):
        x = self.a(self.stem(x))
        x = x + self.also(torch.sigmoid(x)) if self.training else x
        return self.fc(self.last(x).mean((2, 3)))


class LearnedInput(TwoBlocks):
    """A convolution before the stem, in one mode."""

    only_in = True

    def __init__(self):
        super().__init__()
        self.before = conv(3, 3)

    def forward(self, x):
        x = self.before(x) if self.training == self.only_in else x
        return self.fc(self.last(self.a(self.stem(x))).mean((2, 3)))


class LearnedInputInEvaluation(LearnedInput):
    only_in = False


class OneNormForTwo(Net):
    """One normalisation behind one convolution in training and behind another in evaluation."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm = conv(), conv(), nn.BatchNorm2d(WIDTH)

    def middle(self, x):
        return torch.relu(self.norm((self.a if self.training else self.b)(x)))


class NormOnASumInTraining(Net):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm = conv(), conv(), nn.BatchNorm2d(WIDTH)

    def middle(self, x):
        y = self.a(x)
        return torch.relu(self.norm(y + self.b(x) if self.training else y))


class Branches(nn.Module):
    """Cannot be traced in training."""

    def __init__(self):
        super().__init__()
        self.one, self.two = block(), block()

    def forward(self, x):
        x = self.one(x)
        if self.training and x.sum() > 1e9:
            return x
        return self.two(torch.sigmoid(x) if self.training else x)


class CannotBeTracedInTraining(Net):
    def __init__(self):
        super().__init__()
        self.a = Branches()

    def middle(self, x):
        return self.a(x)


class ReusedInTraining(TwoBlocks):
    def middle(self, x):
        x = self.a(x)
        return self.a(x) if self.training else x


class PermutedInTraining(TwoBlocks):
    """The head reads channels in one mode and the width of the map in the other."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(SIZE, CLASSES)
        self.last = block(WIDTH, SIZE)

    def forward(self, x):
        x = self.last(self.a(self.stem(x)))
        return self.fc(x.mean((1, 2)) if self.training else x.mean((2, 3)))


NETWORKS = (
    AuxiliaryHead, SigmoidInTraining, LearnedInput, LearnedInputInEvaluation, OneNormForTwo, NormOnASumInTraining,
    CannotBeTracedInTraining, ReusedInTraining, PermutedInTraining,
)  # fmt: skip


@torch.no_grad()
def assert_exact_in_training(model: nn.Module, x: torch.Tensor, masks: dict[str, torch.Tensor]) -> None:
    wide, small = copy_of(model), bpl.slim(model, masks)
    bpl.apply_masks(wide, masks)
    outputs = [network.train()(x) for network in (wide, small)]
    for one, other in zip(*(out if isinstance(out, tuple) else (out,) for out in outputs), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scope", ["inner", "all"])
@pytest.mark.parametrize("grow", [True, False], ids=["grown", "plain"])
@pytest.mark.parametrize("network", NETWORKS)
def test_what_goes_changes_neither_mode_and_the_present_one_makes_no_difference(network, grow, scope):
    x, masks = images(4, SIZE), []
    for training in (True, False) if network is not CannotBeTracedInTraining or not grow else (False,):
        model = network().train(training)
        model = randomise_statistics((bpl.grow_partners(model) if grow else model).double())
        masks.append(bpl.prune_masks(model, 0.5, scope=scope).keys())
        for chosen in (bpl.prune_masks(model, 0.5, scope=scope), random_masks(model, 0)):
            assert_exact(model.train(training), x, chosen)
            assert_exact_in_training(model.train(training), x, chosen)
    assert all(keys == masks[0] for keys in masks)


def test_growing_changes_neither_mode():
    """A normalisation that is another layer's in the other mode stays where it is, and gets no partner."""
    for network in (OneNormForTwo, NormOnASumInTraining):
        model = bpl.grow_partners(network())
        assert isinstance(model.norm, nn.BatchNorm2d) and isinstance(model.a, nn.Conv2d)


def test_the_reasons_of_both_modes_count():
    graph = ChannelGraph(SigmoidInTraining().eval())
    assert "sigmoid" not in str(graph.traced)  # what is traced for feature maps is the present mode's
    assert "would read a masked channel that is not 0" in graph.of_conv["a.0"].frozen
    assert {"stem.0", "aux.0.0"} <= bpl.prune_masks(AuxiliaryHead().eval(), 0.5).keys()


@pytest.mark.parametrize("root", [True, False])
def test_a_network_whose_parts_are_in_different_modes_is_looked_at_as_it_is(root):
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = AuxiliaryHead()

        def forward(self, x):
            out = self.inner(x)
            return out[0] + out[1] if isinstance(out, tuple) else out

    model = randomise_statistics(Outer().double()).train(root)
    model.inner.train(not root)
    modes = [module.training for module in model.modules()]
    assert len(ChannelGraph(model).sets) and [module.training for module in model.modules()] == modes
    assert_exact(model, images(size=SIZE), bpl.prune_masks(model, 0.5))


class Forgotten(TwoBlocks):
    def __init__(self):
        super().__init__()
        self.unused = conv(WIDTH, WIDTH)


def test_a_mask_of_a_convolution_that_nothing_uses_is_refused():
    with pytest.raises(ValueError, match="'unused' cannot be masked: the forward pass, .*, does not use it"):
        bpl.slim(Forgotten(), {"unused": torch.arange(WIDTH) > 1})


# -- the network is left as it was ----------------------------------------------------------------------------------
class MergesOnEval(TwoBlocks):
    """As LoRA layers: train(mode) moves weights."""

    merged = False

    def train(self, mode=True):
        super().train(mode)
        if self.merged == mode:
            self.fc.weight.data += -1.0 if mode else 1.0
            self.merged = not mode
        return self


class FoldsOnEval(TwoBlocks):
    """As RepVGG: eval() takes layers away for good."""

    def train(self, mode=True):
        super().train(mode)
        if not mode and hasattr(self, "a"):
            del self.a
        return self

    def middle(self, x):
        return self.a(x) if hasattr(self, "a") else x


class Counts(TwoBlocks):
    def __init__(self):
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))
        self.maps: list[torch.Tensor] = []

    def middle(self, x):
        self.passes += 1
        self.maps.append(x)
        return self.a(x)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("network", [MergesOnEval, FoldsOnEval, Counts])
def test_looking_at_a_network_leaves_it_as_it_was(network, training):
    model = network()
    if not (network is FoldsOnEval and not training):
        model.train(training)
    modules, before = dict(model.named_modules()), state(model)
    bpl.prune_masks(model, 0.5)
    bpl.slim(model, {})
    assert dict(model.named_modules()) == modules and same_state(model.state_dict(), before)
    assert not getattr(model, "maps", None)


def test_a_network_that_has_kept_maps_in_a_list_can_still_be_looked_at():
    model = Counts()
    model(images(size=SIZE, dtype=torch.float32))
    assert len(model.maps) == 1 and bpl.prune_masks(model, 0.5)
    assert not bpl.slim(model, {}).maps[0].requires_grad


def test_maps_kept_at_any_depth_do_not_hinder_a_copy():
    model, map_ = Counts(), torch.ones(2, requires_grad=True) * 2
    model.deep = {"stages": [(map_, {"b": [map_]})]}
    model.deep["itself"] = model.deep
    kept = copy_of(model).deep["stages"][0]
    assert kept[0] is kept[1]["b"][0] is not map_ and torch.equal(kept[0], map_) and not kept[0].requires_grad
    assert bpl.prune_masks(model, 0.5)


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_a_head_that_only_training_uses_costs_no_macs(share):
    model = AuxiliaryHead()
    model.aux.append(nn.Linear(CLASSES, 500))  # large enough to be seen
    graph = ChannelGraph(model)
    cost = ChannelCost(graph, prunable_sets(graph), "macs", SIZE)
    widths = widths_for(model, f"macs:{share}", SIZE).widths
    small = bpl.slim(model, bpl.prune_masks(model, 0, widths=widths))
    assert bpl.count_macs(small, SIZE) <= share * bpl.count_macs(model, SIZE)
    left = [widths[channels.convs[0]] for channels in prunable_sets(graph)]
    assert cost.total(left) == bpl.count_macs(small, SIZE)


# -- stochastic depth -----------------------------------------------------------------------------------------------
class DropPath(nn.Module):
    def forward(self, x):
        if not self.training:
            return x
        return x * x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(0.5).div_(0.5)


class DropByPython(nn.Module):
    def forward(self, x):
        return x * (random.random() > 0.5) * float(np.random.rand() > 0.5) if self.training else x


class Drops(TwoBlocks):
    drop: type[nn.Module] = DropPath

    def __init__(self):
        super().__init__()
        self.path = self.drop()

    def forward(self, x):
        x = self.stem(x)
        return self.fc(self.path(self.last(x + self.path(self.a(x))).mean((2, 3))))


class DropsByPython(Drops):
    drop = DropByPython


class DropsInLine(TwoBlocks):
    """As EfficientNet-PyTorch: a factor for each image, in the forward pass itself."""

    def middle(self, x):
        out = self.a(x)
        if self.training:
            factor = 0.5 + torch.rand([x.shape[0], 1, 1, 1], dtype=x.dtype, device=x.device)
            out = out / 0.5 * torch.floor(factor)
        return x + out


class DropsOneByOne(TwoBlocks):
    """With a factor for each image and channel: the number of channels is written down."""

    def middle(self, x):
        return x + (self.a(x) * torch.rand(x.shape[0], WIDTH, 1, 1) if self.training else self.a(x))


class DropsTheBranch(TwoBlocks):
    def middle(self, x):
        return x if self.training and torch.rand(1) > 0.5 else x + self.a(x)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("network", [Drops, DropsByPython, DropsInLine])
def test_stochastic_depth_fixes_no_channel(network, training):
    model = randomise_statistics(network().double()).train(training)
    masks = bpl.prune_masks(model, 0.5, scope="all")
    assert {"stem.0", "a.0", "last.0"} == masks.keys()
    assert_exact(model, images(size=SIZE), masks)
    assert bpl.slim(model, masks).train()(images(size=SIZE)).shape == (2, CLASSES)


def test_a_factor_for_each_channel_is_seen():
    assert bpl.prune_masks(DropsOneByOne().eval(), 0.5, scope="all").keys() == {"last.0"}


@pytest.mark.parametrize("network", [Drops, DropsByPython, DropsInLine, DropsTheBranch])
def test_looking_at_a_network_draws_nothing(network):
    def drawn() -> tuple:
        return torch.rand(3).tolist(), random.random(), np.random.rand()

    def seed() -> None:
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)

    model = network().train()
    seed()
    expected = drawn()
    seed()
    bpl.prune_masks(model, 0.5, scope="all")
    assert drawn() == expected
