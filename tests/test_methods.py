"""The methods: soft masks, the freeze, making the network smaller under way, the released behaviour, what ships."""

from functools import partial

import lightning_fabric
import pytest
import torch
from support import places_fixture, same_weights, small, train_module, trained, tree_fixture  # noqa: F401
from torch import nn

from bpl.data import load_images, make_split
from bpl.defaults import METHODS
from bpl.diversity import FORMS
from bpl.measure import count_macs
from bpl.methods import REGISTRY, Material, Training
from bpl.methods.magnitude import Pruned, share_changed
from bpl.models import build_model
from bpl.partner import partner_blocks
from bpl.pruning import prune_masks, slim
from bpl.pruning.masks import convs_of
from bpl.recording import equivalence
from bpl.train import predict

pytestmark = pytest.mark.usefixtures("places")


def equivalence_of(config, out) -> float:
    """Relative difference between the logits of the shipped and of the trained network, on the test part."""
    images = load_images(config.dataset, config.image_size, progress=False)
    indices = make_split(images, config.split, config.seed).test
    return equivalence(out.network, predict(out.small, images, indices), images, indices)["relative_error"]


@pytest.fixture
def rankings(monkeypatch):
    """Every ranking of a run: the masks, and the norms that the filters had when they were ranked."""
    seen = []
    rank = Pruned._rank

    def watched(self, model):
        masks = rank(self, model)
        norms = {n: convs_of(model.get_submodule(n))[0].weight.detach().flatten(1).norm(dim=1) for n in masks}
        seen.append((masks, norms))
        return masks

    monkeypatch.setattr(Pruned, "_rank", watched)
    return seen


def test_every_method_of_the_config_is_there():
    assert set(REGISTRY) == set(METHODS)


# -- soft masks ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["sfp", "bpl"])
def test_a_filter_that_a_soft_mask_prunes_goes_on_training_and_may_come_back(tree, rankings, method):
    out = trained(small(tree, method, mask="soft", epochs=5, freeze_at=1.0, learning_rate=0.3, ratio=0.5))
    assert len(rankings) == 5
    alive, back = 0, 0
    for (before, _), (after, norms) in zip(rankings, rankings[1:], strict=False):
        alive += sum(int((norms[name][~mask] > 0).sum()) for name, mask in before.items())
        back += sum(int((~mask & after[name]).sum()) for name, mask in before.items())
    assert alive > 0
    assert back > 0
    assert max(out.curves["mask_changes"]) > 0


def test_a_filter_at_zero_takes_a_step_that_is_longer_by_what_its_normalisation_divides_by():
    """Why soft masks fare badly here: batch normalisation divides by sqrt(eps), where it divided by a deviation."""
    torch.manual_seed(0)
    x, dead = torch.randn(64, 3, 8, 8, dtype=torch.float64), torch.arange(3)
    conv, norm = nn.Conv2d(3, 8, 3, padding=1, bias=False).double(), nn.BatchNorm2d(8).double()
    conv.weight.data *= 10  # deviations far above eps
    slopes = torch.randn(64, 8, 8, 8, dtype=torch.float64)  # of a loss by the outputs
    (norm(conv(x)) * slopes).sum().backward()
    usual, deviation = conv.weight.grad[dead].flatten(1).norm(dim=1), conv(x).std((0, 2, 3))[dead].detach()
    conv.weight.grad = None
    conv.weight.data[dead] = 0
    (norm(conv(x)) * slopes).sum().backward()
    ratio = conv.weight.grad[dead].flatten(1).norm(dim=1) / usual
    assert ratio == pytest.approx(deviation / norm.eps**0.5, rel=0.2)
    assert (ratio > 300).all()


def test_rankings_stop_at_the_freeze_and_pruned_channels_are_dead_from_then_on(tree, rankings):
    out = trained(small(tree, "sfp", epochs=4, freeze_at=0.5, slim_at="none"))
    assert len(rankings) == 2
    assert out.curves["mask_changes"][2:] == [0.0, 0.0]
    assert out.curves["at_size"] == [0.0, 1.0, 1.0, 1.0]
    for name, mask in rankings[-1][0].items():
        weight = out.network.get_submodule(name).weight.detach()
        assert not weight[~mask].any()
        assert weight[mask].flatten(1).any(1).all()


def test_bpl_ranks_once_after_the_first_epoch(tree, rankings):
    out = trained(small(tree, "bpl", epochs=2))
    assert len(rankings) == 1
    assert out.curves["at_size"] == [1.0, 1.0]


def test_mask_every_is_the_number_of_epochs_between_rankings(tree, rankings):
    trained(small(tree, "sfp", epochs=5, freeze_at=1.0, mask_every=2))
    assert len(rankings) == 3  # after epochs 2 and 4, and at the freeze


@pytest.mark.parametrize("method", ["l1", "random"])
def test_a_hard_mask_ranks_once(tree, rankings, method):
    out = trained(small(tree, method, epochs=4))
    assert len(rankings) == 1
    assert out.curves["at_size"] == [0.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(("freeze_at", "first_at_size"), [(0.01, 1), (0.5, 2), (1.0, 4)])
def test_the_freeze_falls_on_its_share_of_the_epochs(tree, freeze_at, first_at_size):
    out = trained(small(tree, "fpgm", epochs=4, freeze_at=freeze_at))
    assert out.curves["at_size"].index(1.0) + 1 == first_at_size


def test_the_share_of_changed_masks_counts_newly_pruned_filters():
    one = {"a": torch.tensor([True, False, True, False])}
    other = {"a": torch.tensor([False, False, True, True])}
    assert share_changed(one, other) == 0.5
    assert share_changed(one, one) == 0
    assert share_changed(None, one) == 0


# -- the network made smaller under way ---------------------------------------------------------------------------
# one form of each kind in every run of the tests, the others in the long one
QUICK_FORMS = ("stage-cosine", "folded-squared")


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        *[
            pytest.param("bpl", {"diversity_form": form}, marks=[] if form in QUICK_FORMS else pytest.mark.slow)
            for form in FORMS
        ],
        ("bpl", {"diversity_weight": 0}),
        ("sfp", {}),
    ],
    ids=str,
)
def test_training_on_the_smaller_network_is_training_on_the_masked_one(tree, monkeypatch, method, changes):
    # In float64, where rounding cannot grow to what a dead weight in a loss on kernels does (1e-4 in the cosine).
    fabric, normalise = lightning_fabric.Fabric, train_module.normalise
    settings = {"epochs": 4, "freeze_at": 0.5, "learning_rate": 0.02, "weight_decay": 5e-3} | changes
    with monkeypatch.context() as patch:
        patch.setattr(lightning_fabric, "Fabric", lambda **options: fabric(**options | {"precision": "64-true"}))
        patch.setattr(train_module, "normalise", lambda *image: normalise(*image).double())
        slimmed, masked = (trained(small(tree, method, **settings, slim_at=s)) for s in ("freeze", "none"))
    assert next(slimmed.network.parameters()).dtype == torch.float64
    assert slimmed.curves["loss"] == pytest.approx(masked.curves["loss"], rel=1e-5)
    if method == "bpl":
        assert slimmed.curves["partner_cosine"] == pytest.approx(masked.curves["partner_cosine"], abs=1e-6)
    images = load_images(str(tree), 32, progress=False)
    everything = torch.arange(len(images.images))
    one, other = (predict(out.small.float(), images, everything) for out in (slimmed, masked))
    assert float((one - other).abs().max() / other.abs().max()) < 1e-5
    assert count_macs(slimmed.network, 32) < count_macs(masked.network, 32)


def test_momentum_goes_with_its_weight_when_the_network_shrinks(tree):
    """Without it the first step after the freeze would start from nothing."""
    torch.manual_seed(0)
    model = build_model("resnet18", 4, 32, 8)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=1e-3)
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    masks = prune_masks(model, 0.5)
    shrink = partial(slim, masks=masks)
    old = {name: optimizer.state[p]["momentum_buffer"].clone() for name, p in model.named_parameters()}
    training = Training(model, optimizer, 1, 2)
    training.swap(shrink)
    group = training.optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.1, 0.9, 1e-3)
    new = {name: training.optimizer.state[p]["momentum_buffer"] for name, p in training.model.named_parameters()}
    kept = masks["layer1.0.conv1"]
    assert torch.equal(new["layer1.0.conv1.weight"], old["layer1.0.conv1.weight"][kept])
    assert torch.equal(new["layer1.0.conv2.weight"], old["layer1.0.conv2.weight"][:, kept])
    assert torch.equal(new["layer1.0.bn1.weight"], old["layer1.0.bn1.weight"][kept])
    assert torch.equal(new["fc.weight"], old["fc.weight"])


# -- what ships ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", METHODS)
def test_what_ships_is_the_trained_network_and_plain(tree, method):
    config = small(tree, method, epochs=2)
    out = trained(config)
    assert equivalence_of(config, out) < 1e-5
    assert not partner_blocks(out.small)
    assert not out.small.training
    wide = build_model("resnet18", 4, 32, 8)
    uniform = count_macs(slim(wide, prune_masks(wide, config.ratio)), 32)
    # those that are steered to a budget take that for theirs, and land as near as channels or whole blocks let them
    step = {"compact_kd": 0.02, "oed": 0.15}.get(method, 0.0) * count_macs(wide, 32)
    assert abs(count_macs(out.small, 32) - uniform) <= step


@pytest.mark.parametrize(
    "changes",
    [
        {"arch": "mobilenet_v2"},
        pytest.param({"arch": "vgg16_bn"}, marks=pytest.mark.slow),
        {"scope": "all"},
        {"round_to": 4, "ratio": 0.4},
        {"precision": "bf16", "slim_at": "none"},
        {"mask": "hard"},
        {"criterion": "folded-l2"},
    ],
    ids=str,
)
def test_what_ships_is_the_trained_network_whatever_the_settings(tree, changes):
    config = small(tree, "bpl", **{"epochs": 2, "freeze_at": 0.5} | changes)
    assert equivalence_of(config, trained(config)) < 1e-5


def test_a_ratio_of_zero_removes_nothing(tree):
    out = trained(small(tree, "bpl", ratio=0, epochs=2))
    assert count_macs(out.small, 32) == count_macs(build_model("resnet18", 4, 32, 8), 32)


def test_scratch_starts_from_fresh_weights_of_the_narrow_network(tree):
    config = small(tree, "scratch")
    torch.manual_seed(0)
    dense = build_model("resnet18", 4, 32, 8)
    narrow = REGISTRY["scratch"](config, Material(None, None, None, None)).prepare(dense)
    masks = prune_masks(dense, config.ratio)
    heir = slim(dense, masks)
    assert {n: p.shape for n, p in narrow.named_parameters()} == {n: p.shape for n, p in heir.named_parameters()}
    for name, module in narrow.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert not torch.equal(module.weight, heir.get_submodule(name).weight), name
        if isinstance(module, nn.Conv2d):  # Kaiming for its own width, not a survivor of the wider layer
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert float(module.weight.detach().std() * fan_out**0.5) == pytest.approx(2**0.5, rel=0.35), name


@pytest.mark.parametrize("arch", ["vgg16_bn", "mobilenet_v2"])
def test_at_published_widths_the_narrow_networks_classifier_starts_as_the_dense_one_does(tree, arch):
    dense = build_model(arch, 21, 32)
    narrow = REGISTRY["scratch"](small(tree, "scratch", arch=arch), Material(None, None, None, None)).prepare(dense)
    for model in (dense, narrow):
        (linear,) = (module for module in model.modules() if isinstance(module, nn.Linear))
        assert float(linear.weight.detach().std()) == pytest.approx(0.01, rel=0.05)
        assert not linear.bias.any()


# -- BPL itself ---------------------------------------------------------------------------------------------------
def test_the_diversity_loss_drives_partners_apart(tree):
    without, with_it = (
        trained(small(tree, "bpl", diversity_weight=weight)).curves["partner_cosine"][-1] for weight in (0, 3)
    )
    assert with_it < without - 0.02


def test_a_loss_on_features_without_weight_is_no_loss(tree):
    """Its recorded outputs would hold on to the graph, and a network that does cannot be copied."""
    feature, plain = (
        trained(small(tree, "bpl", epochs=2, diversity_weight=0, diversity_form=form))
        for form in ("feature-cosine", "stage-cosine")
    )
    assert same_weights(feature.small, plain.small)


# -- the released behaviour ---------------------------------------------------------------------------------------
@pytest.fixture
def as_released(tree):
    config = small(tree, "bpl", mask="released", epochs=4)
    return config, trained(config)


def test_released_masks_hold_the_original_and_let_the_partner_regrow(tree, rankings, monkeypatch):
    """The partner's filters are zeroed at a ranking only, the original's at every step between two rankings too."""
    between = []
    step = Pruned.after_step

    def watched(self, training):
        step(self, training)
        if rankings:
            blocks = partner_blocks(training.model)
            between.append(
                [
                    sum(float(b.branches[i].conv.weight.detach()[~self.masks[n]].abs().sum()) for n, b in blocks.items()
                        if n in self.masks)
                    for i in (0, 1)
                ]
            )  # fmt: skip

    monkeypatch.setattr(Pruned, "after_step", watched)
    trained(small(tree, "bpl", mask="released", epochs=2))
    assert len(rankings) == 2
    assert len(between) == 3
    assert [originals for originals, _ in between] == [0.0] * 3
    assert all(partners > 0 for _, partners in between)


def test_leaking_masks_hold_the_partner_too_but_not_the_batch_normalisation(tree):
    config = small(tree, "bpl", mask="leaking", epochs=2)
    out = trained(config)
    blocks = {n: b for n, b in partner_blocks(out.network).items() if n in out.method.masks}
    pruned = [(branch, ~out.method.masks[n]) for n, b in blocks.items() for branch in b.branches]
    assert all(float(branch.conv.weight.detach()[gone].abs().sum()) == 0 for branch, gone in pruned)
    assert all(branch.norm.bias.detach()[gone].abs().max() > 0 for branch, gone in pruned)
    assert equivalence_of(config, out) > 1e-3


def test_released_masks_leak_through_the_batch_normalisation(as_released):
    config, out = as_released
    blocks = {n: b for n, b in partner_blocks(out.network).items() if n in out.method.masks}
    betas = [branch.norm.bias.detach()[~out.method.masks[n]] for n, b in blocks.items() for branch in b.branches]
    assert all(beta.abs().max() > 0 for beta in betas)
    assert equivalence_of(config, out) > 1e-3


def test_released_reports_every_epoch_as_if_at_its_final_size(as_released):
    assert as_released[1].curves["at_size"] == [1.0] * 4


def test_released_ranks_after_the_first_epoch_then_every_few_and_at_the_end(tree, rankings):
    trained(small(tree, "bpl", mask="released", epochs=6, mask_every=3))
    assert len(rankings) == 3  # after epochs 1 and 4, and at the end


def test_released_ranks_at_least_once(tree):
    out = trained(small(tree, "bpl", mask="released", epochs=2, mask_every=5))
    assert count_macs(out.small, 32) < 0.6 * count_macs(build_model("resnet18", 4, 32, 8), 32)
