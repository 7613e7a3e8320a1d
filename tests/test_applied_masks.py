"""`bpl.apply_masks` in a loop: it looks at the network once, and again when anything has changed."""

import gc
import weakref

import pytest
import torch
from little_networks import WIDTH, Net, conv
from torch import nn

import bpl
from bpl.pruning import applied

KEPT = torch.arange(WIDTH) < 6


@pytest.fixture
def looks(monkeypatch) -> list[nn.Module]:
    """The networks that were looked at."""
    seen = []
    holder = applied.MaskHolder
    monkeypatch.setattr(applied, "MaskHolder", lambda model, masks: seen.append(model) or holder(model, masks))
    return seen


def disturb(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)


def is_held(model: nn.Module, mask: torch.Tensor = KEPT) -> bool:
    weight = model.stem[0].weight
    return not weight[~mask].any() and bool(weight[mask].all())


def test_a_loop_looks_once(looks):
    model, masks = Net(), {"stem.0": KEPT.clone()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        model(torch.randn(2, 3, 8, 8)).sum().backward()
        optimizer.step()
        assert bpl.apply_masks(model, masks) is model and is_held(model)
        model.eval() if model.training else model.train()
    assert bpl.apply_masks(model, dict(masks)) is model  # another dictionary with the same masks
    assert looks == [model]


def replaced_layer(model, masks):
    model.stem[0] = conv(3)


def replaced_activation(model, masks):
    model.stem[2] = nn.SiLU()


def other_mask(model, masks):
    masks["stem.0"] = KEPT.flip(0)


def changed_mask(model, masks):
    masks["stem.0"].copy_(KEPT.flip(0))


def mask_changed_through_numpy(model, masks):
    masks["stem.0"].numpy()[:] = KEPT.flip(0).numpy()


def mask_changed_through_data(model, masks):
    masks["stem.0"].data.copy_(KEPT.flip(0))


def one_mask_more(model, masks):
    masks["last.0"] = KEPT.clone()


def other_precision(model, masks):
    model.double()


def replaced_weight(model, masks):
    model.stem[0].weight = nn.Parameter(torch.ones_like(model.stem[0].weight))


@pytest.mark.parametrize(
    "change",
    [
        replaced_layer,
        replaced_activation,
        other_mask,
        changed_mask,
        mask_changed_through_numpy,
        mask_changed_through_data,
        one_mask_more,
        other_precision,
        replaced_weight,
    ],  # fmt: skip
)
def test_a_change_is_seen(looks, change):
    model, masks = Net(), {"stem.0": KEPT.clone()}
    bpl.apply_masks(model, masks)
    change(model, masks)
    disturb(model)
    bpl.apply_masks(model, masks)
    assert is_held(model, masks["stem.0"]) and len(looks) == 2
    if "last.0" in masks:
        assert not model.last[0].weight[~KEPT].any()


def test_partners_that_grow_in_between_are_held():
    model, masks = Net(), {"stem.0": KEPT.clone()}
    bpl.apply_masks(model, masks)
    bpl.apply_masks(bpl.grow_partners(model), masks)
    assert not any(branch.conv.weight[~KEPT].any() for branch in model.stem[0].branches)


def test_masks_of_inference_mode_are_masks(looks):
    with torch.inference_mode():
        masks = {"stem.0": KEPT.clone()}
    model = Net()
    for _ in range(2):
        disturb(model)
        bpl.apply_masks(model, masks)
        assert is_held(model)
    assert len(looks) == 1


@pytest.mark.parametrize("mask", [KEPT.float(), KEPT[1:], None])
def test_a_mask_that_became_none_is_refused(mask):
    model, masks = Net(), {"stem.0": KEPT.clone()}
    bpl.apply_masks(model, masks)
    with pytest.raises(ValueError, match="the mask of 'stem.0' is .*: it must be a bool tensor of shape"):
        bpl.apply_masks(model, {"stem.0": mask})


def test_two_networks_do_not_share_what_is_held(looks):
    masks, models = {"stem.0": KEPT.clone()}, [Net(), Net()]
    for model in models * 2:
        disturb(model)
        assert is_held(bpl.apply_masks(model, masks))
    assert looks == models


def test_a_network_is_not_kept_alive():
    model = Net()
    gone = weakref.ref(bpl.apply_masks(model, {"stem.0": KEPT.clone()}))
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("masks", [None, 0.5, {"stem.0": 3}, {"nowhere": KEPT}])
def test_bad_masks_are_refused_the_first_time_and_the_second(masks):
    model = Net()
    for _ in range(2):
        with pytest.raises(ValueError, match="mask|no convolution is called 'nowhere'"):
            bpl.apply_masks(model, masks)
    with pytest.raises(TypeError, match="the model is 'net', a str"):
        bpl.apply_masks("net", masks)
