"""Self-distillation: where the auxiliary classifiers stand, what teaches what, what they cost, that none ships."""

import pytest
import torch
import torch.nn.functional as F
from support import interrupted, places_fixture, same_weights, small, trained, tree_fixture  # noqa: F401
from torch import nn

import bpl
from bpl.methods import Batch, Training
from bpl.methods.scratch import Scratch
from bpl.methods.self_kd import Classifiers, SelfKD, auxiliary_classifier, stage_ends
from bpl.models import NAMES
from bpl.partner import partner_blocks
from bpl.recording import equivalence
from bpl.train import predict

pytestmark = pytest.mark.usefixtures("places")

SEEN = 48  # of the 56 images of the training part, in batches of 16


def head_macs(channels: list[int], sides: list[int], classes: int) -> int:
    """By hand: 3 x 3 depthwise and 1 x 1 at the smaller side, once a stage, then the linear layer."""
    stages = zip(channels, channels[1:], sides[1:], strict=False)
    return sum((9 * c + c * d) * side**2 for c, d, side in stages) + channels[-1] * classes


@pytest.fixture(scope="module")
def vgg() -> nn.Module:
    return bpl.build_model("vgg16_bn", 5, 32, width=8)


def network_of(name: str, vgg: nn.Module) -> nn.Module:
    return vgg if name == "vgg16_bn" else bpl.build_model(name, 5, 32, width=8)


# -- the classifiers ----------------------------------------------------------------------------------------------
def test_the_stages_of_a_resnet_end_with_their_last_block():
    ends = stage_ends(bpl.build_model("resnet18", 5, 64, width=8))
    assert ends == {"layer1.1": (8, 4), "layer2.1": (16, 8), "layer3.1": (32, 16), "layer4.1": (64, 32)}


def test_the_stages_of_a_narrow_network_have_its_own_widths(vgg):
    narrow = bpl.slim(vgg, bpl.prune_masks(vgg, 0.5))
    assert list(stage_ends(narrow).values()) == [(4, 1), (8, 2), (16, 4), (32, 8), (32, 16)]


@pytest.mark.parametrize("name", NAMES)
def test_every_network_has_a_classifier_for_every_stage_and_trains_with_all_of_them(name, vgg):
    network = network_of(name, vgg)
    model = Classifiers(network, 5).train()
    strides = [stride for _, stride in stage_ends(network).values()]
    assert strides == sorted(set(strides)) and len(strides) >= 3
    outputs = model(torch.randn(4, 3, 32, 32))
    assert [tuple(each.shape) for each in outputs] == [(4, 5)] * len(strides)
    sum(F.cross_entropy(each, torch.arange(4)) for each in outputs).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(head[-1].weight.grad.abs().sum() > 0 for head in model.heads)


@pytest.mark.parametrize("name", ["resnet18", "vgg16_bn", "mobilenet_v2"])
def test_the_first_logits_are_the_networks_own_in_either_mode(name, vgg):
    network = network_of(name, vgg)
    model, x = Classifiers(network, 5), torch.randn(2, 3, 32, 32)
    for training in (True, False):
        torch.manual_seed(0)  # dropout
        expected = network.train(training)(x)
        torch.manual_seed(0)
        torch.testing.assert_close(model.train(training)(x)[0], expected, rtol=1e-6, atol=1e-6)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_classifier_reads_the_map_that_the_next_stage_reads(vgg):
    """VGG's stages end before a ReLU that works in place."""
    model = Classifiers(vgg, 5)
    seen = []
    for head in model.heads:
        head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    read = []
    for name in ("features.6", "features.13", "features.23", "features.33"):  # the poolings behind
        model.network.get_submodule(name).register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].detach()))
    model(torch.randn(2, 3, 32, 32))
    assert len(seen) == len(read) == 4
    assert all(torch.equal(one, other) for one, other in zip(seen, read, strict=True))


def test_a_classifier_halves_its_map_once_a_stage():
    head = auxiliary_classifier([(4, 2), (6, 4), (10, 16)], 7)
    assert [m.stride for m in head if isinstance(m, nn.Conv2d)] == [(2, 2), (1, 1), (4, 4), (1, 1)]
    assert head(torch.randn(2, 4, 16, 16)).shape == (2, 7)


# -- the loss -----------------------------------------------------------------------------------------------------
def test_the_deepest_learns_from_labels_alone_and_the_others_from_labels_and_from_it(tree):
    config = small(tree, "self_kd", distill_weight=0.7, temperature=2.0, label_smoothing=0)
    outputs = [torch.randn(6, 4, requires_grad=True) for _ in range(3)]
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    training = Training(nn.Identity(), None, epoch=0, epochs=1)
    SelfKD(config, None).loss(training, Batch(torch.zeros(6), labels), outputs).backward()
    deepest, *shallow = outputs
    wrong = [(torch.softmax(each, 1) - F.one_hot(labels, 4)).detach() for each in outputs]  # gradient of CE, times B
    soft = [torch.softmax(each / 2, 1).detach() for each in outputs]
    torch.testing.assert_close(deepest.grad, wrong[0] / 6)
    for logits, error, own in zip(shallow, wrong[1:], soft[1:], strict=True):
        torch.testing.assert_close(logits.grad, (error + 0.7 * 2.0 * (own - soft[0])) / 6)


def test_the_shallow_classifiers_move_the_weights_of_the_early_stages(tree):
    config = small(tree, "self_kd", epochs=1)
    one, other = trained(config), trained(small(tree, "scratch", epochs=1))
    assert not torch.equal(one.small.conv1.weight, other.small.conv1.weight)
    without = trained(small(tree, "self_kd", epochs=1, distill_weight=0))
    assert not same_weights(one.small, without.small)  # the divergence is more than deep supervision


# -- runs ---------------------------------------------------------------------------------------------------------
class _Images:
    classes = ("a", "b", "c", "d")


class _Material:
    images, work = _Images(), None


def test_it_starts_from_the_weights_of_its_control(tree):
    started = []
    for method, kind in (("scratch", Scratch), ("self_kd", SelfKD)):
        torch.manual_seed(0)
        dense = bpl.build_model("resnet18", 4, 32, 8)
        started.append(kind(small(tree, method), _Material()).prepare(dense))
    assert same_weights(started[0], started[1].network)


@pytest.mark.parametrize("arch", ["resnet18", pytest.param("vgg16_bn", marks=pytest.mark.slow), "mobilenet_v2"])
def test_what_ships_is_the_narrow_network_alone(tree, tmp_path, arch):
    config = small(tree, "self_kd", arch=arch, epochs=1)
    out = trained(config)
    dense = bpl.build_model(arch, 4, 32, 8)
    narrow = bpl.slim(dense, bpl.prune_masks(dense, config.ratio))
    shapes = {name: tensor.shape for name, tensor in narrow.state_dict().items()}
    assert {name: tensor.shape for name, tensor in out.small.state_dict().items()} == shapes
    assert not partner_blocks(out.small) and type(out.small) is type(dense)
    images = bpl.data.load_images(str(tree), 32, progress=False)
    indices = torch.arange(20)
    shipped = predict(out.small, images, indices)
    assert equivalence(out.network, shipped, images, indices)["relative_error"] < 1e-6
    bpl.save_model(out.small, tmp_path / "model")
    assert same_weights(bpl.load_model(tmp_path / "model"), out.small)


def test_the_classifiers_cost_is_counted(tree):
    out = trained(small(tree, "self_kd", epochs=2))
    channels, sides = [8, 16, 32, 64], [8, 4, 2, 1]  # of 32 pixels; block outputs are not narrowed
    heads = sum(head_macs(channels[i:], sides[i:], 4) for i in range(3))
    narrow = bpl.count_macs(out.small, 32)
    assert out.training_macs == 3 * (narrow + heads) * SEEN * 2


def test_an_interrupted_run_ends_as_one_that_was_not(tree, tmp_path, monkeypatch):
    config = small(tree, "self_kd", epochs=2)
    whole = trained(config)
    resumed = interrupted(config, 5, tmp_path / "checkpoint.pt", monkeypatch)
    assert same_weights(resumed.small, whole.small)
    assert resumed.curves == whole.curves
