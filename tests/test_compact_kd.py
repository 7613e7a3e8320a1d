"""Compact structure learning: what a channel costs, landing on a budget, the penalty and its steering, what ships."""

import contextlib
import copy
import json
import operator
import re
from types import SimpleNamespace

import little_networks
import pytest
import torch
from exactness import images, logits, randomise_statistics, relative_error
from support import (  # noqa: F401
    interrupted,
    no_stopwatch_fixture,
    places_fixture,
    same_weights,
    small,
    trained,
    tree_fixture,
)
from torch import nn

import bpl
from bpl.block_outputs import WithBlockOutputs, block_of, block_outputs
from bpl.budget import COSTS, Budget
from bpl.channels import ChannelGraph
from bpl.distill import feature_loss
from bpl.measure import count_macs, count_params
from bpl.methods import Batch, Training, compact_kd
from bpl.methods.compact_kd import CompactKD, block_factors, course, prices, steer
from bpl.models import build_model
from bpl.pruning.channel_cost import ChannelCost
from bpl.pruning.gammas import channel_scales, effective_widths, gamma_penalty
from bpl.pruning.masks import SCOPES, prunable_sets
from bpl.pruning.within_budget import masks_within, smallest_widths
from bpl.schedule import SCHEDULES, steps_an_epoch

pytestmark = pytest.mark.usefixtures("places")
COUNT = {"macs": count_macs, "params": lambda model, size: count_params(model)}
NETWORKS = {"resnet18": {"width": 16}, "resnet56": {"width": 8}, "mobilenet_v2": {"width": 16}}


def network(arch: str) -> nn.Module:
    return build_model(arch, 5, 32, **NETWORKS[arch])


def cut(model: nn.Module, sets: list, widths: list[int]) -> nn.Module:
    """The network with the first channels of every set only."""
    kept = zip(sets, widths, strict=True)
    return bpl.slim(model, {name: torch.arange(s.size) < width for s, width in kept for name in s.convs})


def random_widths(sets: list, seed: int = 0) -> list[int]:
    chance = torch.Generator().manual_seed(seed)
    return [int(torch.randint(1, s.size + 1, (), generator=chance)) for s in sets]


# -- what a channel costs -----------------------------------------------------------------------------------------
def assert_cost_is_measured_cost(model: nn.Module, size: int, scope: str) -> None:
    graph = ChannelGraph(model)
    sets = prunable_sets(graph, scope)
    for cost in COSTS:
        counted = ChannelCost(graph, sets, cost, size)
        assert counted.total(counted.sizes) == counted.full == COUNT[cost](model, size)
        widths = random_widths(sets)
        assert counted.total(widths) == COUNT[cost](cut(model, sets, widths), size), cost


@pytest.mark.parametrize("structure", little_networks.STRUCTURES)
def test_the_cost_of_any_widths_is_that_of_a_network_cut_to_them(structure):
    assert_cost_is_measured_cost(little_networks.STRUCTURES[structure](), 8, "all")


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v2"])
def test_the_cost_of_any_widths_is_that_of_a_real_network_cut_to_them(arch, scope):
    assert_cost_is_measured_cost(network(arch), 32, scope)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize(
    ("structure", "scope"),
    [("InvertedResidual", "inner"), ("FlattenMap", "inner"), ("ResidualAfterRelu", "all"), ("PreActivation", "all")],
)
def test_a_channel_costs_what_a_network_without_it_saves(structure, scope, cost):
    model = little_networks.STRUCTURES[structure]()
    graph = ChannelGraph(model)
    sets = prunable_sets(graph, scope)
    widths = [max(2, width) for width in random_widths(sets)]
    here = COUNT[cost](cut(model, sets, widths), 8)
    saved = [
        here - COUNT[cost](cut(model, sets, [n - (s == t) for t, n in enumerate(widths)]), 8) for s in range(len(sets))
    ]
    assert ChannelCost(graph, sets, cost, 8).of_channel(widths) == saved
    assert min(saved) > 0


def test_a_channel_is_cheaper_where_fewer_read_it():
    model = little_networks.STRUCTURES["InvertedResidual"]()
    graph = ChannelGraph(model)
    sets = prunable_sets(graph, "all")
    cost = ChannelCost(graph, sets, "macs", 8)
    dense, thin = cost.of_channel(cost.sizes), cost.of_channel([n / 2 for n in cost.sizes])
    assert all(t < d for t, d in zip(thin, dense, strict=True))


def test_a_cost_that_is_not_known_and_a_network_with_partners_are_refused():
    model = little_networks.chain()
    sets = prunable_sets(ChannelGraph(model))
    with pytest.raises(ValueError, match="unknown cost 'time': allowed are macs, params"):
        ChannelCost(ChannelGraph(model), sets, "time", 8)
    grown = ChannelGraph(bpl.grow_partners(model))
    with pytest.raises(ValueError, match="'0.0' has a partner"):
        ChannelCost(grown, prunable_sets(grown), "macs", 8)


# -- gammas -------------------------------------------------------------------------------------------------------
def test_channels_at_work_are_counted_between_one_and_all_whatever_the_scale():
    chance = torch.Generator().manual_seed(0)
    some = torch.rand(40, generator=chance)
    few = torch.zeros(40).index_fill(0, torch.tensor([1, 5, 20]), 0.3)
    one = torch.zeros(40).index_fill(0, torch.tensor([7]), 1e-6)
    assert effective_widths([few, torch.full((40,), 2.0), one, torch.zeros(40)]) == pytest.approx([3, 40, 1, 40])
    assert 1 < effective_widths([some])[0] < 40
    assert effective_widths([some * 1e-3]) == pytest.approx(effective_widths([some]))


def test_the_penalty_has_the_gradient_of_finite_differences():
    model = randomise_statistics(little_networks.STRUCTURES["InvertedResidual"]()).double()
    sets = prunable_sets(ChannelGraph(model), "all")
    weights = [0.5 + s for s in range(len(sets))]
    gammas = [model.get_submodule(name).weight for channels in sets for name in channels.norms]

    def penalty() -> torch.Tensor:
        return gamma_penalty(channel_scales(model, sets), weights)

    gradients = torch.autograd.grad(penalty(), gammas)
    for gamma, gradient in zip(gammas, gradients, strict=True):
        for c in range(len(gamma)):
            with torch.no_grad():
                gamma[c] += 1e-6
                above = penalty()
                gamma[c] -= 2e-6
                below = penalty()
                gamma[c] += 1e-6
            assert float(gradient[c]) == pytest.approx(float(above - below) / 2e-6, rel=1e-6)
    assert {len(channels.norms) for channels in sets} > {2}  # the expanded channels pass two normalisations
    expected = sum(
        w * float(model.get_submodule(name).weight.detach().abs().sum()) / len(channels.norms)
        for w, channels in zip(weights, sets, strict=True)
        for name in channels.norms
    )
    assert float(penalty()) == pytest.approx(expected)


def test_channels_without_a_normalisation_are_refused():
    model = little_networks.STRUCTURES["NoNorm"]()
    with pytest.raises(ValueError, match="the channels of 'a' have no gamma"):
        channel_scales(model, prunable_sets(ChannelGraph(model)))


# -- landing on a budget ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("arch", NETWORKS)
def test_the_measured_cost_is_within_one_percent_of_the_budget_and_not_above(arch, cost):
    model = randomise_statistics(network(arch))
    graph = ChannelGraph(model)
    sets = prunable_sets(graph)
    counted, scales = ChannelCost(graph, sets, cost, 32), channel_scales(model, sets)
    for share in (0.15, 0.26, 0.7):
        masks = masks_within(counted, scales, share * counted.full)
        named = {name: mask for s, mask in zip(sets, masks, strict=True) for name in s.convs}
        measured = COUNT[cost](bpl.slim(model, named), 32)
        assert 0.99 * share * counted.full <= measured <= share * counted.full, share


@pytest.fixture
def ranked():
    """A cost, and scores of its channels."""
    model = randomise_statistics(network("mobilenet_v2"))
    graph = ChannelGraph(model)
    sets = prunable_sets(graph)
    return ChannelCost(graph, sets, "params", 32), [scale.detach() for scale in channel_scales(model, sets)]


def test_the_strongest_channels_of_a_set_stay_and_what_still_fits_is_filled_up(ranked):
    cost, scores = ranked
    allowed = 0.4 * cost.full
    masks = masks_within(cost, scores, allowed)
    widths = [int(mask.sum()) for mask in masks]
    assert min(widths) >= 1
    assert 0 < sum(widths) < sum(cost.sizes)
    for score, mask in zip(scores, masks, strict=True):
        assert mask.all() or score[mask].min() >= score[~mask].max()
    for s, n in enumerate(widths):
        if n < cost.sizes[s]:
            assert cost.total([w + (s == t) for t, w in enumerate(widths)]) > allowed


def test_one_threshold_holds_for_all_sets():
    """On equal sets, scores relative to the mean above the threshold stay, those below go: checked one by one."""
    model = nn.Sequential(*[little_networks.block(3 if i == 0 else 12, 12) for i in range(6)], nn.AdaptiveAvgPool2d(1))
    model.append(nn.Flatten()).append(nn.Linear(12, 5))
    graph = ChannelGraph(model)
    sets = prunable_sets(graph)
    cost = ChannelCost(graph, sets, "macs", 8)
    scores = [torch.rand(12, generator=torch.Generator().manual_seed(s)) for s in range(len(sets))]
    masks = masks_within(cost, scores, 0.5 * cost.full)
    relative = [score / score.mean() for score in scores]
    dropped = torch.cat([r[~m] for r, m in zip(relative, masks, strict=True)])
    kept = torch.cat([r[m] for r, m in zip(relative, masks, strict=True)])
    out_of_order = (kept < dropped.max()).sum()  # filled up from below the threshold
    assert out_of_order <= len(sets)
    assert len(dropped) > 10


def test_a_set_of_small_scales_is_not_a_set_of_dead_channels(ranked):
    cost, scores = ranked
    same = masks_within(cost, [score * 10.0 ** (s % 5 - 3) for s, score in enumerate(scores)], 0.3 * cost.full)
    assert all(torch.equal(a, b) for a, b in zip(same, masks_within(cost, scores, 0.3 * cost.full), strict=True))


def test_dead_channels_go_first(ranked):
    cost, scores = ranked
    dead = [torch.arange(len(score)) % 2 == 0 for score in scores]
    scores = [score.masked_fill(d, 0.0) for score, d in zip(scores, dead, strict=True)]
    alive = cost.total([int((~d).sum()) for d in dead])
    assert all(torch.equal(m, ~d) for m, d in zip(masks_within(cost, scores, alive), dead, strict=True))


def test_widths_are_multiples_where_asked(ranked):
    cost, scores = ranked
    masks = masks_within(cost, scores, 0.5 * cost.full, round_to=8)
    widths = [int(mask.sum()) for mask in masks]
    assert all(width % 8 == 0 or width == size for width, size in zip(widths, cost.sizes, strict=True))
    assert 0.95 * 0.5 * cost.full < cost.total(widths) <= 0.5 * cost.full
    assert smallest_widths([4, 8, 20], 8) == [4, 8, 8]


def test_the_smallest_network_is_reached_and_a_smaller_one_refused(ranked):
    cost, scores = ranked
    least = cost.total([1] * len(scores))
    assert all(int(mask.sum()) == 1 for mask in masks_within(cost, scores, least))
    with pytest.raises(ValueError, match=f"at least {least} of {cost.full} must stay"):
        masks_within(cost, scores, least - 1)


# -- block outputs ------------------------------------------------------------------------------------------------
def test_block_outputs_are_what_the_blocks_give():
    model = randomise_statistics(network("resnet18")).train()
    blocks = block_outputs(ChannelGraph(model))
    assert blocks == {f"layer{i}.{j}": f"layer{i}.{j}.{c}" for i, j, c in _resnet18_blocks()}
    wrapped, x = WithBlockOutputs(copy.deepcopy(model), blocks), images(4, dtype=torch.float32)
    out, maps = wrapped(x)
    y = model.maxpool(model.relu(model.bn1(model.conv1(x))))
    for block, given in zip(blocks, maps, strict=True):
        y = model.get_submodule(block)(y)
        assert torch.equal(given, y)
    assert torch.equal(out, model.fc(model.avgpool(y).flatten(1)))


def _resnet18_blocks() -> list[tuple[int, int, str]]:
    return [(i, j, "downsample.0" if i > 1 and j == 0 else "conv2") for i in range(1, 5) for j in range(2)]


@pytest.mark.parametrize(("arch", "width", "blocks"), [("mobilenet_v2", 8, 17), ("vgg16_bn", 4, 5)])
def test_block_outputs_have_the_channels_of_their_convolution(arch, width, blocks):
    model = build_model(arch, 5, 32, width)
    ends = block_outputs(ChannelGraph(model))
    _, maps = WithBlockOutputs(model, ends).logits_and_blocks(images(2, dtype=torch.float32))
    assert len(maps) == len(ends) == blocks
    assert [m.shape[1] for m in maps] == [model.get_submodule(conv).out_channels for conv in ends.values()]
    if arch == "vgg16_bn":
        assert all(m.min() == 0 for m in maps)  # its ReLU works in place: what is compared is what goes on


def test_no_hook_is_left_behind_even_by_a_pass_that_fails():
    model = network("resnet18")
    wrapped = WithBlockOutputs(model, block_outputs(ChannelGraph(model)))
    wrapped(images(2, dtype=torch.float32))
    with pytest.raises(RuntimeError):
        wrapped(torch.zeros(2, 4, 32, 32))
    assert not any(module._forward_hooks for module in model.modules())
    x = images(2, dtype=torch.float32)
    assert torch.equal(wrapped.eval()(x), model(x))
    assert same_weights(copy.deepcopy(wrapped), wrapped)


@pytest.mark.parametrize("scope", SCOPES)
def test_a_set_lies_in_its_residual_block_or_in_its_stage(scope):
    graph = ChannelGraph(network("mobilenet_v2"))
    found = {channels.convs[0]: block_of(graph, channels) for channels in prunable_sets(graph, scope)}
    assert found["features.3.conv.0.0"] == "features.3"
    assert found["features.0.0"] == "stride 2"  # the stem's channels go on into the first block's depthwise convolution
    assert found["features.18.0"] == "stride 32"
    assert ("features.2.conv.2" in found) == (scope == "all")
    if scope == "all":
        assert found["features.2.conv.2"] == "stride 4"  # tied over two blocks


def test_the_distance_of_features_is_that_of_unit_vectors():
    chance = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 4, 5, 5, generator=chance)
    assert float(feature_loss(maps, 7 * maps)) == pytest.approx(0, abs=1e-6)
    assert float(feature_loss(maps, -maps)) == pytest.approx(4, rel=1e-5)
    other = torch.randn(3, 4, 5, 5, generator=chance)
    cosine = torch.cosine_similarity(maps.flatten(1), other.flatten(1))
    assert float(feature_loss(maps, other)) == pytest.approx(float((2 - 2 * cosine).mean()), rel=1e-5)


# -- steering -----------------------------------------------------------------------------------------------------
def test_the_strength_rises_above_the_course_and_falls_below():
    assert steer(0.1, 0.5, 0.5) == pytest.approx(0.1)
    assert steer(0.1, 0.55, 0.5) == pytest.approx(0.121)
    assert steer(0.1, 0.45, 0.5) == pytest.approx(0.081)
    assert (steer(0.1, 1.0, 0.01), steer(0.1, 0.01, 1.0)) == (0.2, 0.05)
    assert [course(0.9, 0.3, done) for done in (0, 0.5, 1)] == pytest.approx([0.9, 0.6, 0.3])


def test_a_channel_pays_its_price_and_a_block_that_lags_more():
    graph = ChannelGraph(network("resnet18"))
    sets = prunable_sets(graph)
    cost = ChannelCost(graph, sets, "macs", 32)
    paid = prices(cost, cost.sizes)
    assert sum(n * price for n, price in zip(cost.sizes, paid, strict=True)) == pytest.approx(sum(cost.sizes))
    assert paid[0] > 2 * paid[-1]  # an early channel has 4 times the pixels per doubling of the filters that read it
    blocks = [block_of(graph, channels) for channels in sets]
    assert list(block_factors(cost, blocks, [n / 2 for n in cost.sizes]).values()) == pytest.approx([1.0] * 8)
    thin = [1, *cost.sizes[1:]]
    factors = block_factors(cost, blocks, thin)
    assert factors["layer1.0"] < 0.1 < 1 < factors["layer1.1"]


# -- the method ---------------------------------------------------------------------------------------------------
def teacher(config) -> nn.Module:
    """A network that looks trained, in no time."""
    torch.manual_seed(1)
    model = build_model(config.arch, 4, config.image_size, config.width)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model


def learnt(tree, **changes):
    config = small(tree, "compact_kd", **{"epochs": 4} | changes)
    return config, trained(config, dense=lambda: teacher(config))


def by_hand(config, dense=None) -> CompactKD:
    """The method without a training loop."""
    material = SimpleNamespace(
        dense_network=(dense or teacher(config)).eval().requires_grad_(False),
        autocast=contextlib.nullcontext,
        train=range(56),
    )
    return CompactKD(config, material)


@pytest.fixture(scope="module")
def whole(tree):
    """A run with a teacher of its own: 3 steps of 16 images an epoch, the removal after the second of four epochs."""
    config = small(tree, "compact_kd", epochs=4, teacher_epochs=1, budget="params:0.4")
    return config, trained(config)


@pytest.fixture
def removals(monkeypatch):
    """Every removal of a run: the network before, the masks, the network after."""
    seen = []
    freeze = CompactKD._freeze

    def watched(self, training, masks):
        before = copy.deepcopy(training.model.network)
        freeze(self, training, masks)
        seen.append((before, self.masks, copy.deepcopy(training.model.network)))

    monkeypatch.setattr(CompactKD, "_freeze", watched)
    return seen


@pytest.mark.parametrize(
    "changes",
    [
        {"budget": "macs:0.4"},
        {"budget": "params:0.3", "precision": "bf16", "epochs": 2},
        {"budget": "params:0.5", "arch": "mobilenet_v2", "epochs": 2},
        {"budget": "macs:0.3", "scope": "all", "epochs": 2},
        {"budget": "macs:0.6", "feature_weight": 0, "epochs": 1},
        pytest.param({"budget": "macs:0.5", "arch": "vgg16_bn", "width": 4}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_run_ends_within_its_budget_after_one_exact_removal(tree, removals, changes):
    config, out = learnt(tree, **changes)
    ((before, masks, after),) = removals
    x = images(4, dtype=torch.float32)
    assert relative_error(logits(after, x), logits(bpl.apply_masks(before, masks), x)) < 1e-5
    assert torch.equal(logits(out.small, x), logits(out.network, x))

    budget = Budget.parse(config.budget)
    share = budget.cost_of(out.small, 32) / budget.cost_of(teacher(config), 32)
    assert 0.97 * budget.share <= share <= budget.share  # a channel of these tiny networks may be more than 1 %
    assert budget.cost_of(after, 32) == budget.cost_of(out.small, 32)
    assert out.curves["cost_share"][-1] == pytest.approx(share) or config.epochs == 1
    assert out.curves["at_size"] == [float(e + 1 >= config.epochs // 2) for e in range(config.epochs)]
    assert {len(values) for values in out.curves.values()} == {config.epochs}
    assert type(out.small) is type(before)
    assert not any(module._forward_hooks for module in out.small.modules())


def test_without_a_budget_the_uniformly_pruned_network_is_the_budget(tree):
    config = small(tree, "compact_kd", ratio=0.5, round_to=4)
    method, model = by_hand(config), teacher(config)
    method.prepare(copy.deepcopy(model))
    assert method.allowed == count_macs(bpl.slim(model, bpl.prune_masks(model, 0.5, round_to=4)), 32)


def test_the_smallest_network_there_is_within_reach_of_its_own_budget(tree):
    """As a share of the dense network's cost, and back, it would round to more than itself."""
    config = small(tree, "compact_kd", ratio=0.9, round_to=16, width=24)
    method = by_hand(config)
    scales = [scale.detach() for scale in channel_scales(method.prepare(teacher(config)).network, method.sets)]
    assert {int(m.sum()) for m in masks_within(method.cost, scales, method.allowed, 16)} == {16}


@pytest.mark.parametrize("kind", COSTS)
def test_a_budget_out_of_reach_is_refused_before_the_teacher_is_trained(tree, kind):
    config = small(tree, "compact_kd", budget=f"{kind}:0.001", round_to=2)
    model = teacher(config)
    with pytest.raises(ValueError, match=r"budget is '\w+:0.001': resnet18 .* cannot go below") as refused:
        CompactKD(config, None).prepare(model)  # there is no teacher to be had
    least = re.search(rf"{kind}:[\d.]+$", str(refused.value)).group(0)
    method = by_hand(small(tree, "compact_kd", budget=least, round_to=2))
    scales = [scale.detach() for scale in channel_scales(method.prepare(model).network, method.sets)]
    assert {int(m.sum()) for m in masks_within(method.cost, scales, method.allowed, 2)} == {2}


def test_groups_of_channels_wider_than_every_layer_leave_nothing_to_remove(tree):
    config = small(tree, "compact_kd", budget="macs:0.5", round_to=1000)
    message = "budget is .macs:0.5.: round_to 1000 leaves nothing to remove of resnet18 with scope .inner., whose"
    with pytest.raises(ValueError, match=message):
        CompactKD(config, None).prepare(teacher(config))


def test_the_student_starts_as_its_teacher_and_the_teacher_does_not_learn(tree):
    config = small(tree, "compact_kd", epochs=1, learning_rate=0.0, budget="macs:0.9")
    dense = teacher(config)
    before = copy.deepcopy(dense)
    out = trained(config, dense=lambda: dense)  # at a rate of 0 the student stays as it started
    assert same_weights(before, dense)
    assert torch.equal(out.small.conv1.weight, before.conv1.weight)
    assert torch.equal(out.small.fc.weight, before.fc.weight)


def test_the_loss_is_the_sum_of_its_parts_and_the_penalty_ends_with_the_removal(tree):
    config = small(
        tree, "compact_kd", budget="macs:0.5", distill_weight=0.7, temperature=2.0, feature_weight=0.3, sparsity=0.1
    )
    dense = teacher(config)
    method = by_hand(config, dense)
    model = method.prepare(build_model("resnet18", 4, 32, 8)).train()
    assert same_weights(model.network, dense)
    x, labels = images(6, dtype=torch.float32), torch.arange(6) % 4
    training = Training(model, None, 0, 4)
    outputs = model(x)
    got = method.loss(training, Batch(x, labels), outputs)

    student, maps = outputs
    taught, taught_maps = WithBlockOutputs(dense, method.outputs).logits_and_blocks(x)
    divergence = nn.functional.kl_div(
        (student / 2).log_softmax(1), (taught / 2).softmax(1), reduction="none"
    ).sum(1).mean()  # fmt: skip
    far = torch.stack([feature_loss(m, t) for m, t in zip(maps, taught_maps, strict=True)])
    assert len(far) == 8
    assert far.min() > 1e-3  # batch statistics in the student, running ones in the teacher
    price = method.cost.of_channel(effective_widths(channel_scales(model.network, method.sets)))
    mean = sum(map(operator.mul, method.cost.sizes, method.cost.of_channel(method.cost.sizes))) / sum(method.cost.sizes)
    gammas = [model.network.get_submodule(s.norms[0]).weight.abs().sum() for s in method.sets]
    penalty = sum(0.1 * p / mean * g for p, g in zip(price, gammas, strict=True))
    rest = nn.functional.cross_entropy(student, labels, label_smoothing=config.label_smoothing)
    rest = rest + 0.7 * 4 * divergence + 0.3 * far.mean()
    assert float(got) == pytest.approx(float(rest + penalty), rel=1e-5)
    assert float(penalty) > 0.1 * float(rest)
    method.masks = {}
    assert float(method.loss(training, Batch(x, labels), outputs)) == pytest.approx(float(rest), rel=1e-5)


def test_block_outputs_are_compared_channel_by_channel_after_the_removal(tree):
    """A student that is its teacher without some channels of a block's output is at no distance from it there."""
    config = small(tree, "compact_kd", arch="mobilenet_v2")
    method, model = by_hand(config), randomise_statistics(teacher(config))
    method.prepare(teacher(config))
    block, conv = "features.17", method.outputs["features.17"]
    mask = torch.arange(model.get_submodule(conv).out_channels) % 3 == 0
    maps = torch.rand(2, len(mask), 2, 2)
    assert torch.equal(method._still_there(block, maps), maps)
    method.masks = {conv: mask}
    assert torch.equal(method._still_there(block, maps), maps[:, ::3])
    x = images(2, dtype=torch.float32)
    wrapped = [WithBlockOutputs(m, [block]).eval() for m in (bpl.slim(model, method.masks), model)]
    ours, theirs = (w.logits_and_blocks(x)[1][0] for w in wrapped)
    assert float(feature_loss(ours, method._still_there(block, theirs))) < 1e-6
    assert float(feature_loss(ours, theirs[:, : ours.shape[1]])) > 1e-3


def test_the_penalty_empties_the_channels_that_go(tree):
    free, pressed = (
        learnt(tree, budget="macs:0.5", sparsity=sparsity, learning_rate=0.1)[1].curves for sparsity in (0, 0.2)
    )
    assert free["strength"] == [0.0] * 4
    assert pressed["strength"] == [0.2, 0.2, 0.0, 0.0]
    assert pressed["removed_scale"][1] < 0.9 * free["removed_scale"][1]  # about 0.8, by the processor's rounding
    assert pressed["cost_share"][1] < free["cost_share"][1] - 0.05


def test_the_strength_is_steered_by_the_cost_that_is_left(tree, monkeypatch):
    calls = []
    real = compact_kd.steer
    monkeypatch.setattr(compact_kd, "steer", lambda *args: calls.append((*args, real(*args))) or calls[-1][-1])
    _, out = learnt(tree, budget="macs:0.4", epochs=6)
    assert len(calls) == 2  # three epochs of search, and the last one ends it
    assert out.curves["strength"] == [calls[0][0], calls[0][-1], calls[1][-1], 0.0, 0.0, 0.0]
    first = out.method.first_share
    for epoch, (strength, left, wanted, new) in enumerate(calls, start=1):
        assert left == out.curves["cost_share"][epoch - 1]
        assert wanted == pytest.approx(first + (out.method.last_share - first) * epoch / 3)
        assert (new > strength) == (left > wanted)


def test_the_first_strength_brings_a_scale_that_nothing_holds_to_the_budgets_share_of_it_at_the_freeze(tree):
    """SGD with momentum on the penalty alone, at the schedule's own rates."""
    config = small(tree, "compact_kd", epochs=100, budget="macs:0.4")
    method = by_hand(config)
    method.prepare(teacher(config))
    mean_scale = float(torch.cat([s.detach() for s in channel_scales(method.teacher, method.sets)]).mean())
    gamma = nn.Parameter(torch.tensor(mean_scale))
    optimizer = torch.optim.SGD([gamma], lr=1.0, momentum=config.momentum)
    for step in range(3 * 50):  # 56 images in batches of 16, half of the epochs
        optimizer.param_groups[0]["lr"] = SCHEDULES[config.schedule](step, 3 * 100, config.learning_rate)
        optimizer.zero_grad()
        (method.strength * gamma).backward()
        optimizer.step()
    assert method.last_share == pytest.approx(0.4, abs=1e-3)
    # the last steps' momentum is still under way
    assert 0 < float(gamma) - method.last_share * mean_scale < 0.05 * mean_scale


def test_training_costs_the_student_three_times_and_the_teacher_once(whole):
    config, out = whole
    dense, student, seen = count_macs(teacher(config), 32), count_macs(out.small, 32), 48
    teaching = 3 * dense * seen
    assert out.training_macs == teaching + 2 * (3 * dense + dense) * seen + 2 * (3 * student + dense) * seen


@pytest.mark.parametrize(("images", "steps", "seen"), [(56, 3, 48), (32, 2, 32), (16, 1, 16), (5, 1, 5)])
def test_a_last_smaller_batch_is_dropped_unless_it_is_the_only_one(tree, images, steps, seen):
    config = small(tree, "compact_kd", teacher_epochs=2)
    assert steps_an_epoch(images, config.batch_size) == steps
    method = by_hand(config)
    method.material.train = range(images)
    assert method.macs_before() == 3 * count_macs(teacher(config), 32) * seen * 2


def test_what_ships_can_be_saved(whole, tmp_path):
    x, (_, out) = images(4, dtype=torch.float32), whole
    bpl.save_model(out.small, tmp_path / "small")
    assert relative_error(logits(bpl.load_model(tmp_path / "small"), x), logits(out.small, x)) < 1e-5


@pytest.mark.parametrize("step", [5, 11], ids=["before the removal", "after it"])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(tree, tmp_path, monkeypatch, whole, step):
    config, uninterrupted = whole
    again = interrupted(config, step, tmp_path / "checkpoint.pt", monkeypatch)
    assert same_weights(again.network, uninterrupted.network)
    assert same_weights(again.small, uninterrupted.small)
    assert (again.curves, again.training_macs) == (uninterrupted.curves, uninterrupted.training_macs)


def test_a_run_leaves_a_record(tree, no_stopwatch):
    record = bpl.run(small(tree, "compact_kd", epochs=2, teacher_epochs=1, budget="params:0.4"), progress=False)
    assert 0.97 * 0.4 <= record.cost["params"] / record.cost["dense_params"] <= 0.4
    assert record.equivalence == {"relative_error": 0.0, "same_top1": 1.0}
    assert json.dumps(record.curves)
