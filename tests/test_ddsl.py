"""DDSL: ADMM against closed forms, the dean's gradient against finite differences, the joint training, its cost."""

import copy
import json
from contextlib import nullcontext
from functools import partial

import lightning_fabric
import pytest
import torch
import torch.nn.functional as F
from exactness import images as noise
from exactness import logits, randomise_statistics, relative_error
from support import (  # noqa: F401
    SMALL,
    interrupted,
    made_up_record,
    places_fixture,
    same_weights,
    small,
    train_module,
    trained,
    tree_fixture,
)
from torch import nn

import bpl
from bpl import report
from bpl.config import RunConfig
from bpl.data import load_images, make_split
from bpl.distill import distillation_loss
from bpl.measure import count_macs
from bpl.methods import REGISTRY, Batch, Material, Training, ddsl
from bpl.methods import dean as dean_module
from bpl.methods.dean import BOUND, Dean, slope
from bpl.models import build_model
from bpl.pruning import admm
from bpl.pruning.masks import kept_filters
from bpl.recording import equivalence
from bpl.train import predict

pytestmark = pytest.mark.usefixtures("places")


# -- ADMM -----------------------------------------------------------------------------------------------------------
def quadratic(seed: int, channels: int = 6, each: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """A positive definite matrix and a target for 1/2 w'Aw - b'w, w the flattened channels, float64."""
    chance = torch.Generator().manual_seed(seed)
    root = torch.randn(channels * each, channels * each, generator=chance, dtype=torch.float64)
    matrix = root @ root.T / (channels * each) + 0.5 * torch.eye(channels * each, dtype=torch.float64)
    return matrix, torch.randn(channels * each, generator=chance, dtype=torch.float64)


def largest(point: torch.Tensor, kept: int) -> torch.Tensor:
    """The support of the projection: the rows of largest norm, as a mask (N, 1)."""
    mask = torch.zeros(len(point), 1, dtype=point.dtype)
    mask[point.norm(dim=1).argsort(descending=True)[:kept]] = 1
    return mask


def solve(matrix, target, support, rhos, channels: int = 6):
    """ADMM with exact W steps, one for each rho; returns W, Z and the residuals."""
    w = {"w": torch.linalg.solve(matrix, target).view(channels, -1)}
    u = {"w": torch.zeros_like(w["w"])}
    z = admm.z_step(w, u, {"w": support(w["w"])})
    history, last = [], rhos[0]
    for rho in rhos:
        u, last = admm.rescale(u, last, rho), rho
        towards = (z["w"] - u["w"]).flatten()
        eye = torch.eye(len(matrix), dtype=torch.float64)
        w = {"w": torch.linalg.solve(matrix + rho * eye, target + rho * towards).view(channels, -1)}
        before, z = z, admm.z_step(w, u, {"w": support(w["w"] + u["w"])})
        u = admm.u_step(w, z, u)
        history.append(admm.residuals(w, z, before))
    return w["w"], z["w"], torch.tensor(history)


@pytest.mark.parametrize("rhos", [[1.0] * 200, [0.3, 3.0] * 100, [0.1 * 1.02**k for k in range(200)]], ids=len)
@pytest.mark.parametrize("seed", range(3))
def test_admm_ends_at_the_known_minimum_on_a_given_support_whatever_rho_does(seed, rhos):
    matrix, target = quadratic(seed)
    kept = torch.tensor([1, 0, 1, 1, 0, 0], dtype=torch.float64)[:, None]
    w, z, history = solve(matrix, target, lambda _: kept, rhos)
    there = kept.expand(6, 3).flatten().bool()
    expected = torch.zeros(18, dtype=torch.float64)
    expected[there] = torch.linalg.solve(matrix[there][:, there], target[there])
    assert relative_error(z.flatten(), expected) < 1e-9
    assert relative_error(w.flatten(), expected) < 1e-9
    assert (history[-1] < 1e-9).all()
    assert (history[60:80].amax(0) < 0.1 * history[:3].amax(0)).all()  # they fall, not only in the end


@pytest.mark.parametrize("seed", range(5))
def test_admm_finds_the_projection_on_k_channels(seed):
    """For 1/2 |w - b|^2 the minimum with at most k channels is b with all but its k largest rows set to zero."""
    _, target = quadratic(seed)
    matrix = torch.eye(18, dtype=torch.float64)
    w, z, history = solve(matrix, target, partial(largest, kept=2), [2.0] * 100)
    expected = target.view(6, 3) * largest(target.view(6, 3), 2)
    assert relative_error(z, expected) < 1e-9
    assert relative_error(w, expected) < 1e-9
    assert (history[-1] < 1e-9).all()


def test_without_rescaling_another_rho_would_be_another_multiplier():
    u = {"a": torch.randn(3), "b": torch.randn(2, 2)}
    for name, tensor in admm.rescale(u, 0.5, 2.0).items():
        assert torch.allclose(2.0 * tensor, 0.5 * u[name])


def test_the_gradient_of_the_penalty_is_w_minus_z_plus_u():
    w = {
        name: torch.randn(shape, requires_grad=True) for name, shape in {"a": (4, 3), "b": (4,), "other": (2,)}.items()
    }
    z, u = ({name: torch.randn_like(w[name]) for name in ("a", "b")} for _ in range(2))
    slopes = torch.autograd.grad(admm.penalty(w, z, u), list(w.values()), materialize_grads=True)
    for name, slope_of in zip(w, slopes, strict=True):
        expected = w[name] - z[name] + u[name] if name in z else torch.zeros(2)
        assert torch.allclose(slope_of, expected)
    assert admm.penalty(w, {}, {}) == 0


def test_residuals_are_shares_of_the_larger_norm():
    w = {"a": torch.tensor([3.0, 4.0]), "not in z": torch.tensor([100.0])}
    z, before = {"a": torch.tensor([3.0, 0.0])}, {"a": torch.tensor([0.0, 0.0])}
    assert admm.residuals(w, z, before) == pytest.approx((4 / 5, 3 / 5))
    assert admm.residuals({"a": z["a"]}, z, z) == (0.0, 0.0)


# -- the dean -------------------------------------------------------------------------------------------------------
def test_a_dean_starts_with_the_given_strengths_and_stays_within_its_bound(monkeypatch):
    monkeypatch.setattr(dean_module, "RATE", 1e-2)
    dean = Dean(5, 2, seed=0)
    assert torch.equal(dean(torch.randn(5)), torch.ones(2))
    for sign in (-1.0, 1.0):
        for _ in range(500):
            dean.learn(dean(torch.ones(5)), torch.full((2,), sign))
        factors = dean(torch.ones(5)).detach()
        assert ((factors > 1 / BOUND) & (factors < BOUND)).all()
        assert torch.allclose(factors, torch.full((2,), BOUND**-sign), rtol=0.05)


def test_a_dean_is_the_same_whatever_chance_was_drawn_before():
    one = Dean(5, 2, seed=3)
    torch.rand(7)
    assert same_weights(one, Dean(5, 2, seed=3))
    assert not same_weights(one, Dean(5, 2, seed=4))


def test_the_slope_is_that_of_finite_differences_through_a_step_with_momentum_and_weight_decay():
    chance = torch.Generator().manual_seed(0)
    x, y, x2, y2, start = (torch.randn(5, 4, generator=chance, dtype=torch.float64) for _ in range(5))
    terms = (lambda w: (x @ w.T).square().mean(), lambda w: (x * w - y).tanh().sum(), lambda w: w.pow(4).sum())
    judge = lambda w: (x2 * w.exp() - y2).square().sum()  # noqa: E731

    def step(strengths) -> torch.Tensor:
        w = nn.Parameter(start.clone())
        optimizer = torch.optim.SGD([w], 0.1, 0.9, weight_decay=0.01)
        for factor in (0.3, 1.0):  # the first step fills the momentum
            loss = terms[0](w) + sum(s * term(w) for s, term in zip(strengths, terms[1:], strict=True)) * (factor == 1)
            optimizer.zero_grad()
            loss.backward()
            if factor == 1:
                before = w.detach().clone()
            optimizer.step()
        return before, w.detach()

    strengths, tiny = [0.4, 0.7], 1e-5
    before, after = step(strengths)
    gradient = torch.autograd.functional.jacobian(judge, after)
    for i in range(2):
        term = torch.autograd.functional.jacobian(terms[1 + i], before)
        ends = [judge(step([s + sign * tiny * (i == j) for j, s in enumerate(strengths)])[1]) for sign in (1, -1)]
        assert float(slope(0.1, [gradient], [term])) == pytest.approx(float(ends[0] - ends[1]) / (2 * tiny), rel=1e-7)


cross_entropy = partial(F.cross_entropy, label_smoothing=0.1)  # the recipe's


class DoubleMaterial(Material):
    """Everything in float64, and the held-out images that were asked for last."""

    def inputs(self, indices):
        self.asked = indices
        return super().inputs(indices).double()

    def infer(self, network, inputs):
        return network(inputs).detach()


@pytest.fixture
def double(tree, monkeypatch):
    """A method in the middle of its ADMM phase, a training and a batch, in float64."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    config = small(tree, "ddsl", epochs=10, batch_size=8, width=4, ratio=0.5, rho=0.3, distill_weight=0.8)
    pictures = load_images(config.dataset, 32, progress=False)
    split = make_split(pictures, config.split, 0)
    teacher = randomise_statistics(build_model("resnet18", 4, 32, 4)).double()
    method = REGISTRY["ddsl"](config, DoubleMaterial(pictures, split.train, lambda: teacher, nullcontext))
    model = method.prepare(build_model("resnet18", 4, 32, 4).double()).train()
    part = method.training_part(split.train)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9, weight_decay=1e-3)
    training = Training(model, optimizer, 4, 10)
    batch = Batch(method.material.inputs(part[:8]), pictures.labels[part[:8]])
    method.dean.double()
    method.gap = method.gap.double()
    chance = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in method.dean.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=chance) * 0.3)
    method._project(model)
    for _ in range(2):  # momentum and multipliers that are not zero
        method.steps = 1
        method.loss(training, batch, model(batch.inputs)).backward()
        optimizer.step()
        optimizer.zero_grad()
        method._project(model)
    method.steps = 0  # the next step is looked at
    return method, training, batch


@pytest.mark.parametrize("phase", ["ADMM", "retrain"])
def test_the_meta_gradient_is_that_of_finite_differences_through_the_true_step(double, phase):
    method, training, batch = double
    model, optimizer, dean = training.model, training.optimizer, method.dean
    if phase == "retrain":
        method.z, method.u = {}, {}
    saved = [copy.deepcopy(thing.state_dict()) for thing in (model, optimizer, dean)]
    z, u, strengths, gap = method.z, method.u, method.strengths, method.gap
    multipliers = {name: float(strengths[1]) * tensor for name, tensor in u.items()}
    rho = method.config.rho * ddsl.GROWTH ** ((4 - method.start_epoch) / (method.freeze_epoch - method.start_epoch))

    def step(move: torch.Tensor | None = None) -> None:
        """One step of the loop from the saved state, with the dean's parameters moved."""
        for thing, state in zip((model, optimizer, dean), copy.deepcopy(saved), strict=True):
            thing.load_state_dict(state)
        method.u, method.strengths, method.gap, method.steps = u, strengths, gap, 0
        if move is not None:
            nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(dean.parameters()) + move, dean.parameters())
        loss = method.loss(training, batch, None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def objective() -> float:
        """The held-out augmented Lagrangian, written with multipliers instead of U (a constant apart)."""
        chosen = method.material.asked
        copied = copy.deepcopy(model)  # batch statistics of the held-out images, the running ones left alone
        value = cross_entropy(copied(method.material.inputs(chosen)), method.material.images.labels[chosen])
        for name, y in multipliers.items():
            off = model.get_parameter(name) - z[name]
            value = value + rho / 2 * off.square().sum() + (y * off).sum()
        return float(value)

    step()
    method.after_step(training)
    gradient = torch.cat([p.grad.flatten() for p in dean.parameters()])
    assert gradient.abs().max() > 1e-6
    chance = torch.Generator().manual_seed(1)
    for _ in range(6):
        direction = torch.randn(len(gradient), generator=chance, dtype=torch.float64)
        ends = []
        for sign in (1, -1):
            step(sign * 1e-5 * direction)
            ends.append(objective())
        assert float(gradient @ direction) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4, abs=1e-8)
    strength_of = dean.out.bias.grad
    assert (strength_of[1] == 0) == (phase == "retrain")  # there rho has nothing to act on


@pytest.mark.parametrize(("shift", "sign"), [(0, -1), (1, 1)], ids=["a teacher that is right", "one that is wrong"])
def test_the_dean_is_told_to_listen_to_a_teacher_that_is_right_and_not_to_one_that_is_wrong(double, shift, sign):
    """Judged on the images of the step themselves."""
    method, training, batch = double
    method.held_out, method.z, method.u = torch.arange(0, 80, 10), {}, {}  # two images of each class
    training.optimizer.state.clear()
    with torch.no_grad():  # a student that knows nothing
        training.model.fc.weight.zero_()
        training.model.fc.bias.zero_()
    labels = method.material.images.labels[method.held_out]
    answer = 8 * F.one_hot((labels + shift) % 4, 4).double()
    method.material.dense_network = lambda inputs: answer
    method.loss(training, Batch(method.material.inputs(method.held_out), labels), None).backward()
    training.optimizer.step()
    told = []
    method.dean.learn = lambda factors, slopes: told.append(slopes)
    method.after_step(training)
    assert torch.sign(told[0][0]) == sign


def test_held_out_batches_are_drawn_anew_from_the_held_out_images_alone(double):
    method, training, batch = double
    method.batch, drawn = 4, []
    for _ in range(3 * ddsl.LOOK_AHEAD_EVERY):
        method.material.asked = None
        method.loss(training, batch, training.model(batch.inputs)).backward()
        training.optimizer.step()
        method.after_step(training)
        if method.material.asked is not None:
            drawn.append(set(method.material.asked.tolist()))
    assert len(drawn) == 3
    assert all(len(batch) == 4 and batch < set(method.held_out.tolist()) for batch in drawn)
    assert drawn[1:] != drawn[:-1]


def test_a_look_ahead_leaves_statistics_and_chance_as_they_are():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(), nn.Linear(4 * 36, 2))
    before, chance = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    method = type("Method", (), {"material": type("Material", (), {"autocast": staticmethod(nullcontext)})})
    out = ddsl.DDSL._forward(method, model, torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert out.requires_grad
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(chance, torch.get_rng_state())


# -- the joint training -----------------------------------------------------------------------------------------------
# 3 steps an epoch; first projection after epoch 1, freeze after 3
FOUR = {"epochs": 4, "freeze_at": 0.75, "teacher_epochs": 1}


@pytest.fixture(scope="module")
def teacher(tree) -> nn.Module:
    """The dense network that every run here would train for itself."""
    return trained(small(tree, "ddsl", **FOUR).dense()).small


@pytest.fixture
def run(tree, teacher):
    """Train by DDSL, with the ready teacher."""

    def train(**changes):
        config = small(tree, "ddsl", **FOUR | changes)
        return config, trained(config, dense=lambda: copy.deepcopy(teacher))

    return train


@pytest.fixture(scope="module")
def whole(tree, teacher):
    """Runs of both arms as they are: config and outcome, by strengths."""
    done = {}

    def get(strengths: str):
        if strengths not in done:
            config = small(tree, "ddsl", **FOUR | {"strengths": strengths})
            done[strengths] = config, trained(config, dense=lambda: copy.deepcopy(teacher))
        return done[strengths]

    return get


def test_the_loss_is_cross_entropy_distillation_and_pull(double):
    method, training, batch = double
    method.steps = 1  # no look-ahead
    outputs = training.model(batch.inputs)
    alpha, rho = method.strengths.tolist()
    expected = cross_entropy(outputs, batch.labels)
    expected = expected + alpha * distillation_loss(outputs, method.teacher(batch.inputs), 4.0)
    for name, z in method.z.items():
        expected = expected + rho / 2 * (training.model.get_parameter(name) - z + method.u[name]).square().sum()
    assert float(method.loss(training, batch, outputs)) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize(
    "changes", [{}, {"scope": "all"}, {"round_to": 2, "ratio": 0.4}, {"arch": "mobilenet_v2"}], ids=str
)
def test_z_is_the_masked_network_with_as_many_channels_as_the_ratio_leaves(tree, changes):
    config = small(tree, "ddsl", **FOUR | changes)
    pictures = load_images(config.dataset, 32, progress=False)
    method = REGISTRY["ddsl"](config, Material(pictures, torch.arange(56), None, nullcontext))
    model = method.prepare(randomise_statistics(build_model(config.arch, 4, 32, 8)))
    method._project(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    primal, dual = method._project(model)
    assert 0 < primal < 1
    assert 0 < dual < 1
    masked, moved = copy.deepcopy(model), copy.deepcopy(model)
    for name, z in method.z.items():
        masked.get_parameter(name).data.copy_(z)
        # U = W + U_before - Z: what a kept channel has is in Z already, so its U is 0
        assert not (method.u[name] * z).any()
        moved.get_parameter(name).data.copy_(z + method.u[name])
    for name, mask in method.masks.items():
        weight = masked.get_submodule(name).weight.detach()
        assert torch.equal(weight.flatten(1).any(1), mask)
        assert int(mask.sum()) == kept_filters(len(mask), config.ratio, config.round_to)
    assert all(torch.equal(mask, method._rank(moved)[name]) for name, mask in method.masks.items())
    # Z is a network whose pruned channels are silent: masking it anew, or cutting them, changes nothing
    x = noise(dtype=torch.float32)
    expected = logits(masked, x)
    assert torch.equal(logits(bpl.apply_masks(masked, method.masks), x), expected)
    assert relative_error(logits(method.as_shipped(masked), x), expected) < 1e-5


def test_what_a_channel_resists_adds_up_and_brings_it_back(double):
    """By W alone the channel would stay pruned: it is W + U that is projected."""
    method, training, _ = double
    model, name = training.model, "layer1.0.conv1"
    before = {key: tensor.clone() for key, tensor in method.u.items()}
    assert any(tensor.any() for tensor in before.values())
    method._project(model)
    for key, tensor in method.u.items():
        assert torch.allclose(tensor, before[key] + model.get_parameter(key) - method.z[key])
    pruned = int((~method.masks[name]).nonzero()[0])
    assert torch.equal(method._rank(model)[name], method.masks[name])
    with torch.no_grad():
        model.get_parameter(f"{name}.weight")[pruned] = 0.0
    method.u[f"{name}.weight"][pruned] = 10.0
    method._project(model)
    assert method.masks[name][pruned]
    assert method.z[f"{name}.weight"][pruned].eq(10.0).all()
    assert not method._rank(model)[name][pruned]


def test_scales_and_shifts_are_pulled_too_since_a_filters_size_alone_means_nothing(double):
    method, training, _ = double
    assert {"layer1.0.conv1.weight", "layer1.0.bn1.weight", "layer1.0.bn1.bias"} <= set(method.z)
    assert not {"layer1.0.conv2.weight", "layer1.0.bn2.weight", "fc.weight"} & set(method.z)  # tied; not pruned
    model, x = training.model, noise(4)
    before = model(x)
    with torch.no_grad():
        model.layer1[0].conv1.weight.mul_(0.1)
    assert relative_error(model(x), before) < 1e-3  # nine tenths of the way to 0, and the function is the same


def test_residuals_fall_until_the_freeze(run):
    """Without momentum three steps are enough of a W step; the recipe's momentum needs some twenty of them."""
    _, out = run(epochs=12, freeze_at=0.6, momentum=0.0, rho=10.0, strengths="fixed")
    primal, dual = (out.curves[f"{which}_residual"] for which in ("primal", "dual"))
    assert [p > 0 for p in primal] == [False] + [True] * 6 + [False] * 5  # projections after epochs 2 to 7
    assert [d > 0 for d in dual] == [False] * 2 + [True] * 5 + [False] * 5
    assert min(primal[4:7]) < 0.2 * primal[1]
    rho = out.curves["sparsity_strength"]
    assert rho == pytest.approx([0.0] * 2 + [10.0 * 10 ** (k / 5) for k in range(5)] + [0.0] * 5, rel=1e-5)
    assert [float(out.method.given(epoch)[1]) for epoch in (0, 2, 7, 11)] == pytest.approx([10, 10, 100, 100])
    assert out.curves["at_size"] == [0.0] * 6 + [1.0] * 6
    assert {len(values) for values in out.curves.values()} == {12}
    assert json.dumps(out.curves)


def test_a_dean_that_does_not_learn_is_the_fixed_arm_to_the_bit(run, whole, monkeypatch):
    _, fixed = whole("fixed")
    monkeypatch.setattr(Dean, "learn", lambda self, factors, slopes: None)
    _, dean = run(strengths="dean")
    assert same_weights(dean.network, fixed.network)
    assert dean.curves == fixed.curves
    assert fixed.curves["distill_strength"] == [1.0] * 4


def test_only_the_dean_learns_from_the_labels_of_the_held_out_images(tree, teacher, whole):
    held = whole("dean")[1].method.held_out
    assert torch.equal(held, whole("fixed")[1].method.held_out)
    split = make_split(load_images(str(tree), 32, progress=False), "protocol", 0)
    assert len(held) == 6  # a tenth of 56
    assert set(held.tolist()) < set(split.train.tolist())

    def relabel(labels, split):
        labels[held] = (labels[held] + 1) % 4
        return labels

    for strengths in ("fixed", "dean"):
        config, one = whole(strengths)
        other = trained(config, relabel=relabel, dense=lambda: copy.deepcopy(teacher))
        assert same_weights(one.network, other.network) == (strengths == "fixed")
        assert (one.curves["distill_strength"] == other.curves["distill_strength"]) == (strengths == "fixed")


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16"},
        *(pytest.param(c, marks=pytest.mark.slow) for c in ({"scope": "all"}, {"arch": "mobilenet_v2"})),
    ],
    ids=str,
)
def test_what_ships_is_the_trained_network(run, tree, changes):
    config, out = run(**changes)
    pictures = load_images(str(tree), 32, progress=False)
    test = make_split(pictures, "protocol", 0).test
    assert equivalence(out.network, predict(out.small, pictures, test), pictures, test)["relative_error"] < 1e-5
    assert count_macs(out.small, 32) < 0.6 * count_macs(build_model(config.arch, 4, 32, 8), 32)
    assert len(set(out.curves["distill_strength"])) > 1


def test_training_on_the_smaller_network_is_training_on_the_masked_one_for_the_dean_too(run, teacher, monkeypatch):
    fabric = lightning_fabric.Fabric
    monkeypatch.setattr(lightning_fabric, "Fabric", lambda **options: fabric(**options | {"precision": "64-true"}))
    predict = train_module.predict
    monkeypatch.setattr(train_module, "predict", lambda model, *part: predict(lambda x: model(x.double()), *part))
    monkeypatch.setattr(ddsl, "LOOK_AHEAD_EVERY", 2)
    forward = ddsl.DDSL._forward  # Fabric turns the inputs of the loop's own forward pass into float64 as well
    monkeypatch.setattr(ddsl.DDSL, "_forward", lambda self, model, x: forward(self, model, x.to(model.fc.weight)))
    slimmed, masked = (run(slim_at=when)[1] for when in ("freeze", "none"))
    assert slimmed.curves["loss"] == pytest.approx(masked.curves["loss"], rel=1e-5)
    assert slimmed.curves["distill_strength"] == pytest.approx(masked.curves["distill_strength"], rel=1e-5)
    assert count_macs(slimmed.network, 32) < count_macs(masked.network, 32)


def test_one_epoch_ranks_and_freezes_at_once(run):
    _, out = run(epochs=1)
    assert out.curves["at_size"] == [1.0]
    assert out.curves["sparsity_strength"] == out.curves["dual_residual"] == [0.0]


# -- cost, files, errors ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("strengths", ["fixed", "dean"])
def test_the_training_cost_counts_teacher_and_look_aheads(whole, strengths):
    config, out = whole(strengths)
    dense, thin = (count_macs(network, 32) for network in (build_model("resnet18", 4, 32, 8), out.small))
    # a look-ahead in 5 steps: forward, backward for KD alone, forward and backward on 6 held-out images beside 16
    more = (1 + 2 + 3 * 6 / 16) / 5 if strengths == "dean" else 0
    steps = 48 * (3 * round((4 + more) * dense) + round((3 + more) * thin + dense))  # 3 epochs dense, 1 at its size
    assert out.training_macs == pytest.approx(3 * dense * 48 * config.teacher_epochs + steps, abs=48 * 4)


@pytest.mark.parametrize(
    ("strengths", "step"), [("dean", 5), ("dean", 11), pytest.param("fixed", 8, marks=pytest.mark.slow)]
)
def test_a_run_that_was_stopped_ends_as_one_that_was_not(whole, tmp_path, monkeypatch, strengths, step):
    config, uninterrupted = whole(strengths)
    again = interrupted(config, step, tmp_path / "checkpoint.pt", monkeypatch)
    assert same_weights(again.network, uninterrupted.network)
    assert same_weights(again.small, uninterrupted.small)
    assert (again.curves, again.training_macs) == (uninterrupted.curves, uninterrupted.training_macs)


def test_too_few_images_to_hold_some_out_are_refused():
    config = RunConfig("synthetic", "ddsl")
    method = REGISTRY["ddsl"](config, None)
    with pytest.raises(ValueError, match="the training part has 3 images: ddsl holds 2 out and needs 2 more"):
        method.training_part(torch.arange(3))
    method.training_part(torch.arange(4))


@pytest.mark.parametrize("rho", [0, -1, float("nan"), "0.1"])
def test_a_rho_that_is_no_penalty_is_refused(rho):
    with pytest.raises(ValueError, match="rho is .*: it must be a number above 0"):
        RunConfig("ucm", "ddsl", rho=rho)


@pytest.mark.parametrize("rate", [0.1, 0.05, 1e-3])
def test_a_step_goes_the_same_share_of_the_way_whatever_the_learning_rate(rate):
    assert RunConfig("ucm", "ddsl", learning_rate=rate).rho * rate == pytest.approx(0.01)
    assert RunConfig("ucm", "ddsl", learning_rate=rate, rho=0.3).rho == 0.3
    assert RunConfig("ucm", "bpl", learning_rate=rate).rho is None


# -- the figure -------------------------------------------------------------------------------------------------------
def rows(**changes) -> list[report.Row]:
    curves = {
        "loss": [2.0, 1.5, 1.2, 1.0],
        "distill_strength": [1.0, 1.5, 2.0, 2.5],
        "sparsity_strength": [0.0, 0.2, 0.8, 0.0],
        "primal_residual": [0.0, 0.8, 0.1, 0.0],
        "dual_residual": [0.0, 0.0, 0.05, 0.0],
    } | changes
    return report.group(
        made_up_record(RunConfig("ucm", "ddsl", strengths=strengths, seed=seed), curves=curves)
        for strengths in ("dean", "fixed")
        for seed in range(2)
    )


@pytest.mark.parametrize("draw", [report.strengths, report.residuals])
def test_the_figures_show_both_arms_and_change_with_the_numbers(draw):
    svg = draw(rows())._repr_svg_()
    assert svg == draw(rows())._repr_svg_()
    assert svg != draw(rows(sparsity_strength=[0.0, 0.2, 0.7, 0.0], primal_residual=[0, 0.7, 0.1, 0]))._repr_svg_()
    assert "stroke-dasharray" in svg  # the second arm's line style
    assert "inf" not in svg.lower().replace("info", "")
    assert "nan" not in svg.lower()


@pytest.mark.parametrize("draw", [report.strengths, report.residuals])
def test_without_records_the_figures_are_one_sentence(draw):
    other = report.group([made_up_record(RunConfig("ucm", "bpl"))])
    nothing = {name: [0.0] for name in ("distill_strength", "sparsity_strength", "primal_residual", "dual_residual")}
    for nothing_to_draw in ([], other, rows(**nothing)):
        assert isinstance(draw(nothing_to_draw), report.Markdown)
