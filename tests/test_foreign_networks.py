"""Networks this library has never heard of: what grows, what is pruned, and that all of it is exact.

The tables say what is expected of each: blocks that get a partner (0: nothing to grow, which is an error), and whether
channels go with scope ``inner``.
"""

import copy

import pytest
import timm
import torch
from exactness import assert_exact, images, randomise_statistics
from torch import nn
from torchvision import models as tv

import bpl
from bpl.channels import ChannelGraph
from bpl.partner import partner_blocks
from bpl.pruning.masks import prunable_sets

TORCHVISION = {  # name -> partners
    "alexnet": 0,
    "densenet121": 0,
    "efficientnet_b0": 17,
    "efficientnet_v2_s": 41,
    "googlenet": 19,
    "mnasnet0_5": 18,
    "mobilenet_v3_small": 12,
    "regnet_y_400mf": 17,
    "resnet34": 32,
    "resnext50_32x4d": 16,
    "shufflenet_v2_x0_5": 20,
    "squeezenet1_1": 0,
    "vgg11_bn": 8,
    "wide_resnet50_2": 16,
}
TIMM = {
    "densenet121": 0,
    "ghostnet_100": 42,
    "mobilenetv3_small_050": 0,
    "regnetx_002": 0,
    "repvgg_a0": 0,
    "resnet18": 16,
    "resnet26d": 11,
    "seresnet18": 16,
    "tf_efficientnet_b0": 0,
}
FAST = {"efficientnet_b0", "densenet121", "regnet_y_400mf", "squeezenet1_1", "shufflenet_v2_x0_5"}
FAST_TIMM = {"resnet18", "mobilenetv3_small_050", "regnetx_002"}


def cases(table: dict[str, int], fast: set[str]) -> list:
    return [pytest.param(*item, marks=[] if item[0] in fast else [pytest.mark.slow]) for item in table.items()]


def assert_grows_and_shrinks_exactly(model: nn.Module, partners: int, size: int = 64) -> None:
    model = randomise_statistics(model.double().eval())
    x = images(2, size)
    plain = copy.deepcopy(model)
    if partners:
        model = randomise_statistics(bpl.grow_partners(model))
        assert len(partner_blocks(model)) == partners
    else:
        with pytest.raises(ValueError, match=f"nothing to grow in {type(model).__name__}: none of its .* convolutions"):
            bpl.grow_partners(model)
    for network, scope in ((plain, "inner"), (model, "all")):
        if not prunable_sets(ChannelGraph(network), scope):
            with pytest.raises(ValueError, match="nothing to prune"):
                bpl.prune_masks(network, 0.5, scope=scope)
            continue
        small = assert_exact(network, x, bpl.prune_masks(network, 0.5, scope=scope))
        assert bpl.count_params(small) < bpl.count_params(plain)


@pytest.mark.parametrize(("name", "partners"), cases(TORCHVISION, FAST))
def test_torchvision(name, partners):
    options = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    model = getattr(tv, name)(num_classes=7, **options)
    assert_grows_and_shrinks_exactly(model, partners)


@pytest.mark.parametrize(("name", "partners"), cases(TIMM, FAST_TIMM))
def test_timm(name, partners):
    assert_grows_and_shrinks_exactly(timm.create_model(name, num_classes=7), partners)


def test_densenets_pre_activation_order_is_left_alone_and_said_so():
    model = tv.densenet121(num_classes=7)
    modules = dict(model.named_modules())
    with pytest.raises(ValueError) as caught:
        bpl.grow_partners(model)
    assert "none of its 120 convolutions" in str(caught.value) and "followed by one BatchNorm2d" in str(caught.value)
    assert dict(model.named_modules()) == modules


def test_convnext_is_out_of_reach_and_said_so():
    model = tv.convnext_tiny(num_classes=7)  # layer normalisation, kernels of 7, channels moved to the last dimension
    with pytest.raises(ValueError, match="nothing to grow in ConvNeXt: none of its .* convolutions"):
        bpl.grow_partners(model)
    with pytest.raises(ValueError, match="nothing to prune in ConvNeXt with scope 'inner'"):
        bpl.prune_masks(model, 0.5)


def test_the_input_size_does_not_matter():
    assert_grows_and_shrinks_exactly(timm.create_model("resnet18", num_classes=7), 16, size=33)


def test_a_normalisation_that_holds_an_activation_is_named():
    with pytest.raises(ValueError, match=r"nothing to grow in RegNet: .*\(BatchNormAct2d may hold an activation"):
        bpl.grow_partners(timm.create_model("regnetx_002", num_classes=7))


def test_partners_of_a_foreign_network_train():
    model = bpl.grow_partners(tv.efficientnet_b0(num_classes=3)).train()
    loss = model(torch.randn(4, 3, 32, 32)).square().mean() + bpl.diversity_loss(model)
    loss.backward()
    for block in partner_blocks(model).values():
        assert block.branches[1].conv.weight.grad.abs().sum() > 0
