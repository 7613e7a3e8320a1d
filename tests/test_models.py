"""Networks by name."""

import pytest
import torch
from exactness import images
from torch import nn

import bpl
from bpl.models import NAMES

PUBLISHED = {  # parameters with 1000 classes at the published width and size, as torchvision states them
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "vgg16_bn": 138_365_992,
    "mobilenet_v2": 3_504_872,
}


@pytest.mark.parametrize("size", [32, 64, 224])
@pytest.mark.parametrize("name", NAMES)
def test_every_network_runs_at_every_size_and_gives_a_logit_per_class(name, size):
    with torch.device("meta"):
        model = bpl.build_model(name, 7, size, width=8)
        assert model(torch.empty(2, 3, size, size)).shape == (2, 7)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [1, 7, 20])
def test_any_width_gives_a_network_that_runs(name, width):
    with torch.device("meta"):
        model = bpl.build_model(name, 3, 64, width=width)
        assert model(torch.empty(2, 3, 64, 64)).shape == (2, 3)
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    assert first.out_channels == width


@pytest.mark.parametrize("name", PUBLISHED)
def test_large_images_get_the_published_network(name):
    with torch.device("meta"):
        assert bpl.count_params(bpl.build_model(name, 1000, 224)) == PUBLISHED[name]


def test_resnet56_has_the_papers_size():
    with torch.device("meta"):
        model = bpl.build_model("resnet56", 10, 32)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convs) + 1 == 56
    assert bpl.count_params(model) / 1e6 == pytest.approx(0.855, abs=0.005)
    assert bpl.count_macs(model, 32) / 1e6 == pytest.approx(125.75, abs=1)


def test_small_images_get_a_small_stem():
    small, large = (bpl.build_model("resnet18", 5, size, width=8) for size in (64, 256))
    assert small.conv1.kernel_size == (3, 3) and large.conv1.kernel_size == (7, 7)
    assert "conv1" in bpl.partner.partner_blocks(bpl.grow_partners(small))
    assert "conv1" not in bpl.partner.partner_blocks(bpl.grow_partners(large))


def test_the_network_remembers_how_it_was_built():
    model = bpl.build_model("resnet18", 5, 64)
    assert model.bpl_arch == {"name": "resnet18", "num_classes": 5, "image_size": 64, "width": 64}
    small = bpl.slim(bpl.fuse_partners(bpl.grow_partners(model)), {})
    assert small.bpl_arch == model.bpl_arch


def test_weights_are_the_seeds():
    x = images(dtype=torch.float32)
    logits = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        logits.append(bpl.build_model("resnet18", 5, 32, width=8).eval()(x).detach())
    assert torch.equal(logits[0], logits[1]) and not torch.equal(logits[0], logits[2])


@pytest.mark.parametrize("name", NAMES)
def test_a_fresh_network_neither_vanishes_nor_explodes(name):
    model = bpl.build_model(name, 10, 64, width=16).train()
    with torch.no_grad():
        spread = float(model(images(8, 64, torch.float32)).std())
    assert 1e-3 < spread < 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet19"}, "unknown network 'resnet19': allowed are resnet18, "),
        ({"num_classes": 1}, "num_classes is 1: .*at least 2"),
        ({"num_classes": 2.0}, "num_classes is 2.0: .*whole number"),
        ({"image_size": 31}, "image_size is 31: .*at least 32"),
        ({"width": 0}, "width is 0: .*at least 1"),
        ({"width": True}, "width is True: .*whole number"),
        ({"width": "8"}, "width is '8'"),
    ],
)
def test_a_bad_argument_is_named_with_what_is_allowed(arguments, message):
    with pytest.raises(ValueError, match=message):
        bpl.build_model(**{"name": "resnet18", "num_classes": 5, "image_size": 64} | arguments)
