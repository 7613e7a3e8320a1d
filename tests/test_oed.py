"""OED: FISTA against other solvers, masks and removal against the plain network, the search, what ships, its files."""

import contextlib
import copy
import json
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exactness import images, logits, randomise_statistics, relative_error, same_state
from safetensors.torch import load_file, save_file
from scipy.optimize import brentq
from sklearn.linear_model import Lasso
from support import SMALL, places_fixture, same_weights, small, trained, tree_fixture  # noqa: F401
from torch import nn
from torch.nn.functional import softshrink
from torch.utils.flop_counter import FlopCounterMode

import bpl
from bpl import train as train_module
from bpl.cli import main
from bpl.config import RunConfig
from bpl.export import ModelFileError, read_description
from bpl.fista import Fista, fista_step, shrink_nonnegative, threshold_to_sum
from bpl.machine.exit_codes import WRONG_USAGE
from bpl.measure import count_macs, count_params
from bpl.methods import OED, Batch, Training
from bpl.methods.oed import OnlineEnsemble, without_blocks
from bpl.models import build_model
from bpl.residual_blocks import (
    Shortcut,
    branch_costs,
    fold_masks,
    mask_blocks,
    remove_blocks,
    residual_blocks,
)

pytestmark = pytest.mark.usefixtures("places")

NETWORKS = ("resnet18", "resnet50", "resnet56", "mobilenet_v2")


def network(name: str = "resnet18", dtype: torch.dtype = torch.float64, classes: int = 4) -> nn.Module:
    """A little network with the statistics of a trained one."""
    return randomise_statistics(build_model(name, classes, 32, width=4).to(dtype)).eval()


def vgg() -> nn.Module:
    """A network without residual blocks; without memory for its many weights."""
    with torch.device("meta"):
        return build_model("vgg16_bn", 4, 32)


# -- FISTA ----------------------------------------------------------------------------------------------------------
def lasso(seed: int, rows: int = 60, columns: int = 15) -> tuple[torch.Tensor, torch.Tensor]:
    """Data of a lasso with correlated columns and a sparse truth."""
    chance = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=chance, dtype=torch.float64)
    x = x + torch.randn(rows, 1, generator=chance, dtype=torch.float64)
    truth = torch.zeros(columns, dtype=torch.float64)
    truth[:4] = torch.tensor([2.0, -1.0, 0.5, 3.0])
    return x, x @ truth + 0.1 * torch.randn(rows, generator=chance, dtype=torch.float64)


def solve(x, y, penalty: float, shrink=softshrink, steps: int = 1_000) -> torch.Tensor:
    """min |x w - y|^2 / (2 rows) + penalty |w|_1, by FISTA."""
    rows, hessian = len(y), x.T @ x / len(y)
    step = 1 / float(torch.linalg.eigvalsh(hessian)[-1])
    at = Fista.start(torch.zeros(x.shape[1], dtype=x.dtype))
    for _ in range(steps):
        at = fista_step(at, hessian @ at.y - x.T @ y / rows, step, lambda z: shrink(z, step * penalty))
    return at.x


@pytest.mark.parametrize("penalty", [0.01, 0.3, 100.0])
@pytest.mark.parametrize(("shrink", "positive"), [(softshrink, False), (shrink_nonnegative, True)])
def test_fista_solves_the_lasso_as_scikit_learn_does(penalty, shrink, positive):
    for seed in range(2):
        x, y = lasso(seed)
        theirs = Lasso(alpha=penalty, fit_intercept=False, positive=positive, tol=1e-14, max_iter=1_000_000).fit(x, y)
        ours = solve(x, y, penalty, shrink)
        assert np.abs(ours.numpy() - theirs.coef_).max() < 1e-6
        assert (penalty == 100) == (not ours.any())


def test_fista_counts_the_penalty_once():
    """With orthonormal columns the lasso's solution is the soft threshold of the least-squares one, at the penalty."""
    chance = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(30, 8, generator=chance, dtype=torch.float64)).Q
    y = torch.randn(30, generator=chance, dtype=torch.float64)
    x = q * len(y) ** 0.5  # the loss is divided by the number of rows
    least_squares = x.T @ y / len(y)
    penalty = float(least_squares.abs().median())
    expected = torch.where(least_squares.abs() > penalty, least_squares - penalty * least_squares.sign(), 0.0)
    assert torch.allclose(solve(x, y, penalty), expected, atol=1e-12)


def test_the_accelerated_rate_is_there_and_plain_ista_has_it_not():
    """Theorem 4.4 at every step, on a chain of springs, where information travels one link a step."""
    links, penalty = 120, 1e-6
    chain = 2 * torch.eye(links) - torch.diag(torch.ones(links - 1), 1) - torch.diag(torch.ones(links - 1), -1)
    hessian, pull = (chain / 4).double(), torch.zeros(links, dtype=torch.float64)
    pull[0] = 0.25

    def objective(x):
        return float(x @ hessian @ x / 2 - pull @ x + penalty * x.abs().sum())

    def run(steps, restart):
        at = Fista.start(torch.zeros(links, dtype=torch.float64))
        for _ in range(steps):
            at = fista_step(at, hessian @ at.y - pull, 1.0, lambda z: softshrink(z, penalty))  # L < 1
            yield objective(at.x)
            if restart:
                at = Fista.start(at.x)

    best = torch.linalg.solve(hessian, pull - penalty)  # all entries stay positive: the penalty is a constant pull
    assert (best > 0).all()
    bound = [2 * float(best @ best) / (k + 1) ** 2 for k in range(1, 401)]
    fista, ista = ([value - objective(best) for value in run(400, restart)] for restart in (False, True))
    assert all(gap <= limit for gap, limit in zip(fista, bound, strict=True))
    assert any(gap > limit for gap, limit in zip(ista, bound, strict=True))
    assert ista[-1] > 20 * fista[-1] > 0


@pytest.mark.parametrize("total", [0.0, 0.7, 3.0, 50.0])
def test_the_threshold_leaves_the_sum_that_was_asked_for(total):
    for seed in range(5):
        z = torch.randn(9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        threshold = threshold_to_sum(z, total)
        left = shrink_nonnegative(z, threshold)
        if float(z.clamp(min=0).sum()) <= total:
            assert threshold == 0
        else:
            root = brentq(lambda t: float((z - t).clamp(min=0).sum()) - total, -1, float(z.max()), xtol=1e-14)  # noqa: B023
            assert threshold == pytest.approx(root, abs=1e-12)
            assert float(left.sum()) == pytest.approx(total, abs=1e-12)


# -- masks and removal ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NETWORKS)
def test_masks_fold_into_the_batch_normalisations_exactly(name):
    plain, x = network(name), images()
    names = list(residual_blocks(plain))
    masks = torch.linspace(1.5, 0, len(names), dtype=torch.float64)
    masked = mask_blocks(copy.deepcopy(plain), nn.Parameter(masks.clone()))
    with torch.no_grad():
        as_masked = masked(x)
        masked.get_submodule(names[0]).masks.fill_(1.0)
        assert torch.equal(masked(x), plain(x))
    assert relative_error(as_masked, logits(plain, x)) > 1e-3
    folded = fold_masks(masked, dict(zip(names, masks.tolist(), strict=True)))
    assert [type(m) for m in folded.modules()] == [type(m) for m in plain.modules()]
    assert relative_error(logits(folded, x), as_masked) < 1e-12


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("every", [2, 1], ids=["every second block", "all blocks"])
def test_a_removed_block_computes_what_one_with_mask_0_does(name, every):
    plain, x = network(name), images()
    names = list(residual_blocks(plain))
    gone = names[::every]
    masks = torch.tensor([float(n not in gone) for n in names], dtype=torch.float64)
    masked = mask_blocks(copy.deepcopy(plain), nn.Parameter(masks))
    smaller = remove_blocks(copy.deepcopy(plain), gone)
    assert relative_error(logits(smaller, x), logits(masked, x)) < 1e-12
    assert same_weights(remove_blocks(fold_masks(masked, dict.fromkeys(names, 1.0)), gone), smaller)
    assert list(residual_blocks(smaller)) == [n for n in names if n not in gone]
    assert smaller.state_dict().keys() < plain.state_dict().keys()  # what stays keeps its name
    assert {n for n in plain.state_dict() if "downsample" in n} <= smaller.state_dict().keys()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("cost", "count"), [("macs", lambda m: count_macs(m, 32)), ("params", count_params)])
def test_the_cost_of_blocks_is_what_their_removal_saves(name, cost, count):
    """Projections stay, and stay in the count."""
    plain = network(name)
    costs = branch_costs(plain, cost, 32)
    gone = list(costs)[1::3]
    assert list(costs) == list(residual_blocks(plain)) and min(costs.values()) > 0
    saved = count(plain) - count(remove_blocks(copy.deepcopy(plain), gone))
    assert sum(costs[name] for name in gone) == saved


def test_only_residual_blocks_can_be_removed():
    with pytest.raises(ValueError, match="VGG has no residual blocks that can be removed"):
        residual_blocks(vgg())
    with pytest.raises(ValueError, match="'layer1' is a Sequential, not a residual block"):
        remove_blocks(network(), ["layer1"])
    with pytest.raises(ValueError, match=r"'features.2' is a InvertedResidual, not a residual block"):
        remove_blocks(network("mobilenet_v2"), ["features.2"])


# -- the ensemble and its loss --------------------------------------------------------------------------------------
def method_of(train: int = 64, **changes) -> OED:
    """The method without a training: it asks its material for the number of training images only."""
    config = RunConfig(dataset="synthetic", method="oed", **SMALL | {"width": 4} | changes)
    return OED(config, SimpleNamespace(train=range(train)))


def prepared(method: OED, dtype: torch.dtype = torch.float32) -> Training:
    model = method.prepare(build_model(method.config.arch, 4, 32, method.config.width)).to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4)
    return Training(model, optimizer, epoch=0, epochs=method.config.epochs)


def test_the_loss_is_cross_entropies_and_distillation_both_ways():
    """Gradients in closed form: p - label for a cross-entropy, T (p - target) for a distillation, targets fixed."""
    weight, temperature, count, classes, size = 0.7, 3.0, 3, 4, 5
    method = method_of(copies=count, distill_weight=weight, temperature=temperature, label_smoothing=0.0)
    copies = torch.randn(count, size, classes, requires_grad=True)
    teacher = torch.randn(size, classes, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 3, 0])
    loss = method.loss(None, Batch(None, labels), (copies, teacher))
    loss.backward()
    truth = torch.eye(classes)[labels]
    soft = lambda z: (z.detach() / temperature).softmax(-1)  # noqa: E731
    for z, grad in zip(copies.detach(), copies.grad, strict=True):
        expected = (z.softmax(1) - truth) + weight * temperature * (soft(z) - soft(teacher))
        assert torch.allclose(grad, expected / size, atol=1e-6)
    back = weight * temperature * (soft(teacher) - soft(copies).mean(0))
    assert torch.allclose(teacher.grad, (teacher.detach().softmax(1) - truth + back) / size, atol=1e-6)
    p, q = soft(copies), soft(teacher)
    kl = sum((q * (q / own).log()).sum() + (own * (own / q).log()).sum() / count for own in p) / size
    entropies = -(teacher.log_softmax(1) * truth).sum() / size - (copies.log_softmax(2) * truth).sum() / size
    assert float(loss) == pytest.approx(float(entropies + weight * temperature**2 * kl), rel=1e-5)


def test_the_gradient_of_the_masks_is_that_of_the_loss_without_penalty(monkeypatch):
    """Central differences of the loss, with a lambda that would be seen if it were in there too.

    In float64, so that the difference can be small enough to meet no kink of a ReLU; without distillation, whose
    targets are constants to the gradient but not to a difference.
    """
    monkeypatch.setattr(OED, "cross_entropy", lambda self, logits, labels: F.cross_entropy(logits, labels))
    method = method_of(sparsity=10.0, distill_weight=0.0)
    training = prepared(method, torch.float64)
    ensemble, batch = training.model.train(), Batch(images(16), torch.arange(16) % 4)
    masks = ensemble.masks.detach()
    masks.copy_(torch.linspace(0.2, 1.2, len(method.names)))
    method.loss(training, batch, ensemble(batch.inputs)).backward()
    for index in (0, 3, len(method.names) - 1):
        values, at = [], float(masks[index])
        for shift in (1e-7, -1e-7):
            masks[index] = at + shift
            values.append(float(method.loss(training, batch, ensemble(batch.inputs))))
        masks[index] = at
        assert float(ensemble.masks.grad[index]) == pytest.approx((values[0] - values[1]) / 2e-7, rel=1e-5)


def test_copies_start_apart_and_share_their_masks():
    method = method_of(copies=3, budget="macs:0.5")
    torch.manual_seed(3)
    ensemble = method.prepare(build_model("resnet18", 4, 32, 4))
    torch.manual_seed(3)
    assert same_weights(
        fold_masks(ensemble.first(), dict.fromkeys(method.names, 1.0)), build_model("resnet18", 4, 32, 4)
    )
    stems = [network.conv1.weight for network in ensemble.copies]
    assert len(stems) == 3 and not any(torch.equal(a, b) for a, b in zip(stems, stems[1:], strict=False))
    assert ensemble.teacher.in_features == 3 * ensemble.classifiers[0].in_features
    smaller = without_blocks(ensemble, ["layer1.0"])
    for one in (ensemble, smaller, copy.deepcopy(ensemble)):
        blocks = [network.get_submodule("layer2.0") for network in one.copies]
        assert all(block.masks is one.masks for block in blocks)
        assert sum(p is one.masks for p in one.parameters()) == 1


def test_the_training_cost_is_that_of_all_copies_and_the_teacher():
    method = method_of(copies=3, budget="macs:0.5")
    ensemble = without_blocks(prepared(method).model, ["layer1.1", "layer2.0"])
    with FlopCounterMode(display=False) as counter:
        ensemble.train()(images(2, dtype=torch.float32))
    assert method.macs_per_image(ensemble) == 3 * counter.get_total_flops() // 2 // 2
    assert method.macs_per_image(ensemble) > 9 * count_macs(ensemble, 32)


# -- the search -----------------------------------------------------------------------------------------------------
@pytest.fixture
def steps(monkeypatch):
    """Every step of a run: epoch, learning rate, the masks that the network computed with, and their gradient."""
    seen = []
    before = OED.before_step

    def watched(self, training):
        masks = training.model.masks
        if masks is not None:
            at = masks.detach().double().numpy().copy()
            rate = training.optimizer.param_groups[0]["lr"]
            seen.append((training.epoch, rate, at, np.array(masks.grad, dtype=float)))
        before(self, training)

    monkeypatch.setattr(OED, "before_step", watched)
    return seen


def test_masks_are_what_fista_makes_of_their_gradients_and_nothing_else_moves_them(tree, steps):
    """Momentum and weight decay are large: they would be seen. Here FISTA is written down once more, in numpy."""
    penalty = 0.4
    config = small(tree, "oed", width=4, sparsity=penalty, epochs=2, freeze_at=1.0, momentum=0.95, weight_decay=0.1)
    trained(config)
    assert [epoch for epoch, *_ in steps] == [0, 0, 0, 1, 1, 1]
    x = np.ones_like(steps[0][2])
    for index, (_, rate, at, gradient) in enumerate(steps):
        if index in (0, 3):
            y, a = x, 1.0  # it starts again with every epoch
        assert np.allclose(at, y, atol=1e-5)
        x, before = np.maximum(y - rate * (gradient + penalty), 0), x
        a, a_before = (1 + np.sqrt(1 + 4 * a * a)) / 2, a
        y = x + (a_before - 1) / a * (x - before)


def test_the_plan_shrinks_the_masks_sum_at_a_steady_pace_until_the_budget_is_met(tree, steps):
    config = small(tree, "oed", width=4, budget="macs:0.3", epochs=4)
    out = trained(config)
    search = [at.sum() for _, _, at, _ in steps]
    assert search[0] == 8 and len(search) <= 6  # 3 steps an epoch, half of 4 epochs
    # y is extrapolated past x, whose sum is at most the plan's
    assert all(total <= 8 * (1 - index / 6) + 1e-4 for index, total in enumerate(search) if index in (1, 3, 4))
    assert max(out.curves["lambda"]) > 0 and out.curves["lambda"][-1] == 0
    assert out.curves["at_size"].index(1.0) <= 1


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (0.99, []),
        (0.86, ["b"]),
        (0.69, ["b", "d"]),
        (0.51, ["b", "d"]),
        (0.49, ["b", "d", "a"]),
        (0.16, ["b", "d", "a"]),  # nearer to no block at all: one stays
    ],
)
def test_the_landing_is_the_nearest_cost_in_the_order_in_which_masks_vanish(target, expected):
    method = method_of()
    method.names, method.costs, method.target = list("abcd"), [0.2, 0.1, 0.3, 0.3], target
    method.fista = Fista.start(torch.tensor([0.5, 0.0, 0.9, 0.1]))  # b has vanished, d vanishes with the next step
    assert method._nearest(torch.tensor([0.5, 0.0, 0.9, 0.0])) == expected


def test_a_block_that_stays_keeps_the_mask_it_had_before_the_last_step():
    """b and d vanish in one step, in which the cost would fall below the budget; without b alone it is nearer."""
    method = method_of(train=64, epochs=3)  # 4 steps an epoch, 2 epochs to the freeze
    before = torch.tensor([0.8, 0.02, 0.9, 0.03])
    method.names, method.costs, method.target = list("abcd"), [0.2, 0.1, 0.3, 0.3], 0.8
    method.fista = Fista.start(before)
    model = SimpleNamespace(masks=nn.Parameter(before.clone()))
    training = SimpleNamespace(model=model, optimizer=SimpleNamespace(param_groups=[{"lr": 0.1}]), epoch=1)
    for gradient in (torch.zeros(4), torch.tensor([9.0, 0.0, 9.0, 0.0])):  # what comes after that step moves nothing
        method._gradient = gradient
        method.after_step(training)
        assert method._chosen == ["b"]
        assert torch.equal(method.fista.x, before) and torch.equal(model.masks.detach(), before)


def test_a_block_that_comes_back_in_the_last_step_of_the_search_does_not_stay_with_a_mask_of_0():
    """b was at 0 and is above it in the step in which d vanishes: b stays, with the mask that brought it back."""
    method = method_of(train=64, epochs=3)  # 4 steps an epoch, 2 epochs to the freeze
    before, gradient = torch.tensor([0.8, 0.0, 0.9, 0.02]), torch.tensor([0.0, -6.0, 0.0, 9.0])
    method.names, method.costs, method.target = list("abcd"), [0.2, 0.1, 0.3, 0.3], 0.7
    method.fista, method._gradient = Fista.start(before), gradient
    model = SimpleNamespace(masks=nn.Parameter(before.clone()))
    training = SimpleNamespace(model=model, optimizer=SimpleNamespace(param_groups=[{"lr": 0.1}]), epoch=1)
    method.after_step(training)
    assert method._chosen == ["d"]
    came_back = (0.8 + 0.6 + 0.9 - 1.5) / 3  # the plan: 3 of 8 steps are left to 4 masks
    assert method.fista.x.tolist() == pytest.approx([0.8, 0.6 - came_back, 0.9, 0.02])
    assert torch.equal(model.masks.detach(), method.fista.x)


def test_every_block_that_stays_has_a_mask_above_0():
    """Searches to their end, on gradients so rough that blocks come back again and again."""
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.1}])
    for seed in range(100):
        chance = torch.Generator().manual_seed(seed)
        method = method_of(train=64 * 20, epochs=2)  # 80 steps, in one epoch, to the freeze
        method.names, method.costs = list("abcdefgh"), (torch.rand(8, generator=chance) / 8).tolist()
        method.target = 1 - sum(method.costs) * float(torch.rand((), generator=chance))
        method.fista = Fista.start(torch.ones(8))
        training = SimpleNamespace(
            model=SimpleNamespace(masks=nn.Parameter(torch.ones(8))), optimizer=optimizer, epoch=0
        )
        while method._chosen is None:
            method._gradient = 8 * torch.randn(8, generator=chance)
            method.after_step(training)
        assert len(method._chosen) < 8
        assert all(mask > 0 for name, mask in method._values().items() if name not in method._chosen)


@pytest.mark.parametrize(
    "changes",
    [
        {"ratio": 0.5},
        {"budget": "params:0.4", "epochs": 1},
        {"budget": "macs:0.8", "arch": "mobilenet_v2", "epochs": 1},
        {"budget": "macs:0.5", "copies": 3, "precision": "bf16"},
    ],
    ids=str,
)
def test_a_run_lands_next_to_its_budget_and_ships_an_ordinary_network_of_the_same_function(tree, changes):
    config = small(tree, "oed", **{"width": 4, "epochs": 2} | changes)
    out = trained(config)
    dense = build_model(config.arch, 4, 32, 4)
    cost = count_params if (config.budget or "").startswith("params") else lambda model: count_macs(model, 32)
    share = cost(out.small) / cost(dense)
    assert share == pytest.approx(out.curves["cost_share"][-1], abs=1e-9)
    target = out.method.target if config.budget is None else float(config.budget.partition(":")[2])
    assert abs(share - target) <= max(out.method.costs) / 2 + 1e-9
    assert sum(isinstance(m, Shortcut) for m in out.small.modules()) == len(out.method.removed) > 0
    assert {type(m) for m in out.small.modules()} <= {type(m) for m in dense.modules()} | {Shortcut}
    small_network, ensemble = out.small.double(), out.network.double()
    assert relative_error(logits(small_network, images()), logits(ensemble, images())) < 1e-12
    assert out.small.state_dict().keys() < dense.state_dict().keys()


def test_the_budget_without_one_is_the_uniformly_pruned_network_s():
    method = method_of(ratio=0.6)
    wide = build_model("resnet18", 4, 32, 4)
    prepared(method)
    assert method.target == count_macs(bpl.slim(wide, bpl.prune_masks(wide, 0.6)), 32) / count_macs(wide, 32)


def test_blocks_that_are_gone_stay_gone(tree):
    out = trained(small(tree, "oed", width=4, sparsity=1.2, epochs=5, freeze_at=0.8, learning_rate=0.1))
    masks = {name: values for name, values in out.curves.items() if name.startswith("mask ")}
    assert len(masks) == 8 and 0 < len(out.method.removed) < 8
    for values in masks.values():
        first = values.index(0.0) if 0.0 in values else len(values)
        assert not any(values[first:]) and all(values[:first])
    assert out.curves["blocks"] == sorted(out.curves["blocks"], reverse=True)
    assert out.curves["blocks"][-1] == 8 - len(out.method.removed)
    assert out.curves["at_size"] == [0, 0, 0, 1, 1]
    assert out.curves["lambda"][:4] == pytest.approx([1.2] * 4)


@pytest.mark.parametrize("changes", [{"sparsity": 0.0, "learning_rate": 0.001}, {"ratio": 0.0}], ids=str)
def test_without_a_penalty_nothing_is_removed(tree, changes):
    out = trained(small(tree, "oed", width=4, epochs=1, **changes))
    assert count_macs(out.small, 32) == count_macs(build_model("resnet18", 4, 32, 4), 32)
    assert out.curves["blocks"] == [8.0] and out.curves["at_size"] == [1.0]


def test_momentum_goes_on_for_what_stays_and_shrinks_with_the_folded_masks():
    method = method_of(budget="macs:0.5")
    training = prepared(method)
    ensemble = training.model.train()
    method.loss(training, Batch(None, torch.tensor([0, 1])), ensemble(images(2, dtype=torch.float32))).backward()
    method.before_step(training)
    assert ensemble.masks.grad is None
    training.optimizer.step()
    old = {n: training.optimizer.state[p]["momentum_buffer"] for n, p in ensemble.named_parameters() if n != "masks"}
    method.fista = Fista.start(torch.linspace(0.3, 1.0, 8))
    method._chosen = ["layer1.0", "layer2.0"]
    training.epoch = 1
    method.after_epoch(training)
    new = {n: training.optimizer.state[p]["momentum_buffer"] for n, p in training.model.named_parameters()}
    assert torch.equal(new["copies.1.layer2.1.conv1.weight"], old["copies.1.layer2.1.block.conv1.weight"])
    assert torch.equal(new["copies.0.layer2.0.downsample.0.weight"], old["copies.0.layer2.0.block.downsample.0.weight"])
    assert torch.equal(new["teacher.weight"], old["teacher.weight"]) and old["teacher.weight"].any()
    for index, name in ((1, "layer1.1"), (7, "layer4.1")):
        expected = old[f"copies.1.{name}.block.bn2.weight"] * method.fista.x[index]
        assert torch.equal(new[f"copies.1.{name}.bn2.weight"], expected) and expected.any()


# -- refusals -------------------------------------------------------------------------------------------------------
def test_a_budget_nearer_to_no_block_than_to_one_is_refused_and_the_smallest_is_named():
    with pytest.raises(
        ValueError, match=r"budget macs:0.01 asks for 0.010 of the macs of resnet18, nearer to the .* that stay without"
    ) as caught:
        prepared(method_of(budget="macs:0.01"))
    smallest = str(caught.value).rpartition(" ")[2]
    method = method_of(budget=smallest)
    prepared(method)
    one_left = min(method._share(torch.eye(8)[block] > 0) for block in range(8))
    assert one_left <= method.target < one_left + 1e-3
    none_left = method._share(torch.zeros(8, dtype=torch.bool))
    for middle, fits in ((0.49, False), (0.51, True)):
        method = method_of(budget=f"macs:{none_left + middle * (one_left - none_left):.6f}")
        with contextlib.nullcontext() if fits else pytest.raises(ValueError, match="than to one block"):
            prepared(method)
    with pytest.raises(ValueError, match=r"ratio 0.7 asks for .* of the macs of mobilenet_v2, .* has macs:0\.\d+$"):
        prepared(method_of(arch="mobilenet_v2"))
    with pytest.raises(ValueError, match="asks for 0.010 of the params of resnet18, .* with a block has params:"):
        prepared(method_of(budget="params:0.01"))


def test_a_lambda_that_removes_all_blocks_is_refused_as_soon_as_they_are_at_0(tree, steps):
    config = small(tree, "oed", width=4, sparsity=1000.0, epochs=3, freeze_at=1.0)
    with pytest.raises(ValueError, match="sparsity is 1000: the masks of all 8 residual blocks of resnet18 are 0"):
        trained(config)
    assert {epoch for epoch, *_ in steps} == {0}


def test_the_command_line_says_that_no_block_would_be_left(places, capsys):
    words = "run --dataset synthetic --method oed --ratio 0.99 --tier quick --image-size 32 --device cpu"
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    assert ended.value.code == WRONG_USAGE
    assert capsys.readouterr().err.count("\n") == 1


def test_lambda_and_a_budget_exclude_each_other():
    with pytest.raises(ValueError, match="sparsity is 0.1 and budget is macs:0.5: give one of them"):
        method_of(sparsity=0.1, budget="macs:0.5")


def test_a_network_without_residual_blocks_is_refused():
    with pytest.raises(ValueError, match="VGG has no residual blocks"):
        method_of(arch="vgg16_bn").prepare(vgg())


# -- resuming -------------------------------------------------------------------------------------------------------
class Killed(Exception):
    pass


@pytest.mark.parametrize(
    ("fields", "epoch"),
    [({"budget": "macs:0.4"}, 1), ({"sparsity": 1.2, "precision": "bf16", "epochs": 5, "freeze_at": 0.8}, 3)],
    ids=["budget", "sparsity"],
)
def test_a_run_that_is_killed_and_resumed_ends_as_one_that_is_not(tree, tmp_path, monkeypatch, fields, epoch):
    """Killed in the search's last epoch, and in the run's last one, when the masks of the blocks that stay are folded.

    `epoch` is the index of the first: with a budget the second epoch, with a lambda one before which blocks are gone.
    """
    monkeypatch.setattr(train_module, "CHECKPOINT_SECONDS", -1.0)
    config = small(tree, "oed", width=4, learning_rate=0.1, **fields)
    whole = trained(config, checkpoint=tmp_path / "whole.pt")
    after_step, left = OED.after_step, 0

    def killed_step(self, training):
        nonlocal left
        after_step(self, training)
        left -= 1
        if left == 0:
            raise Killed

    monkeypatch.setattr(OED, "after_step", killed_step)
    for steps_to_go in (3 * epoch + 2, 4):  # 3 an epoch
        left = steps_to_go
        with pytest.raises(Killed):
            trained(config, checkpoint=tmp_path / "checkpoint.pt")
    monkeypatch.setattr(OED, "after_step", after_step)
    again = trained(config, checkpoint=tmp_path / "checkpoint.pt")
    assert same_weights(again.network, whole.network) and same_weights(again.small, whole.small)
    assert again.curves == whole.curves and again.training_macs == whole.training_macs
    assert again.method.removed == whole.method.removed != []
    assert again.curves["at_size"] == [0.0] * epoch + [1.0] * 2
    if config.sparsity is not None:
        assert again.curves["blocks"][epoch - 1] < 8  # so blocks were gone at the first resumption too


# -- files ----------------------------------------------------------------------------------------------------------
def shipped(name: str = "resnet18", dtype: torch.dtype = torch.float32) -> nn.Module:
    """A network without some of its blocks; of a ResNet one with a projection is among them, layer2.0."""
    model = network(name, dtype)
    return remove_blocks(model, list(residual_blocks(model))[1:10])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_without_blocks_comes_back_by_name_bit_by_bit(name, tmp_path):
    model, x = shipped(name), images(dtype=torch.float32)
    path = bpl.save_model(model, tmp_path / "net")
    widths = read_description(path)["widths"]
    gone = [name for name, layer in widths.items() if layer == {"kind": "removed"}]
    assert gone == [n for n, m in model.named_modules() if isinstance(m, Shortcut)] != []
    onto = [build_model(name, 4, 32, 4), copy.deepcopy(model)] if name == "resnet18" else []
    for fresh in [None, *onto]:
        loaded = bpl.load_model(path, fresh)
        assert torch.equal(logits(loaded, x), logits(model, x))
        assert same_state(dict(loaded.state_dict()), dict(model.state_dict()))
        assert count_macs(loaded, 32) == count_macs(model, 32)


def test_a_network_without_blocks_is_pruned_further_like_any_other(tmp_path):
    model, x = shipped(dtype=torch.float64), images()
    masks = bpl.prune_masks(model, 0.5)
    smaller = bpl.slim(model, masks)
    assert relative_error(logits(smaller, x), logits(bpl.apply_masks(copy.deepcopy(model), masks), x)) < 1e-12
    bpl.save_model(smaller, tmp_path / "net")
    assert torch.equal(logits(bpl.load_model(tmp_path / "net"), x), logits(smaller, x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.update({"layer9.0": {"kind": "removed"}}), "the network has no layer 'layer9.0'"),
        (lambda w: w.update({"conv1": {"kind": "removed"}}), "'conv1' is a Conv2d, not a residual block"),
        (lambda w: w.update({"layer1": {"kind": "removed"}}), "'layer1' is a Sequential, not a residual block"),
        (lambda w: w.update({"": {"kind": "removed"}}), "'' is a ResNet, not a residual block"),
        (lambda w: w.update({"layer2.0.conv1": w["layer1.0.conv1"]}), "the network has no layer 'layer2.0.conv1'"),
        (lambda w: w.update({"layer2.0.downsample": {"kind": "removed"}}), "not a residual block"),
        (lambda w: w.update({"layer2.0": {"kind": ["removed"]}}), r"is a BasicBlock, not a \['removed'\]"),
        (lambda w: w.update({"layer2.0": {"kind": "identity"}}), "is a BasicBlock, not a 'identity'"),
        (lambda w: w.pop("layer2.0"), "do not fit the widths"),
        (lambda w: w.update({"layer1.0": {"kind": "removed"}}), "has no layer 'layer1.0.conv1'"),
    ],
)
def test_a_description_with_wrong_removals_is_refused(change, message, tmp_path):
    path = bpl.save_model(shipped(), tmp_path / "net").with_suffix(".json")
    content = json.loads(path.read_text())
    change(content["widths"])
    path.write_text(json.dumps(content))
    with pytest.raises(ModelFileError, match=message):
        bpl.load_model(path)


def test_weights_of_a_removed_block_are_refused(tmp_path):
    path = bpl.save_model(shipped(), tmp_path / "net")
    tensors = load_file(path)
    save_file(tensors | {"layer2.0.conv1.weight": torch.zeros(8, 4, 3, 3)}, path)
    with pytest.raises(ModelFileError, match="layer2.0.conv1.weight"):
        bpl.load_model(path)


def test_onnx_and_the_clock_take_a_network_without_blocks(tmp_path):
    import onnxruntime

    model, x = shipped(), images(3, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"torch\.|onnxscript|onnx_ir|copyreg")
        path = bpl.export_onnx(model, tmp_path / "net.onnx", 32)
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    (got,) = session.run(["logits"], {"images": x.numpy()})
    np.testing.assert_allclose(got, logits(model, x).numpy(), atol=1e-4, rtol=1e-4)
    assert bpl.measure_latency(model, 32, seconds=0).median_ms > 0


def test_an_ensemble_is_what_the_loop_expects():
    """In evaluation the first copy's logits; in training one tensor for the copies and one for the teacher."""
    ensemble, x = OnlineEnsemble([network(), network()]).double(), images(3)
    assert ensemble.eval()(x).shape == (3, 4)
    copies, teacher = ensemble.train()(x)
    assert copies.shape == (2, 3, 4) and teacher.shape == (3, 4)
