"""Pruning by feature maps (FCS, HRank) and mutual learning: what is looked at, scores, resuming, what is counted."""

import copy
import sys
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exactness import images as random_images
from exactness import logits, randomise_statistics, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from little_networks import (
    FunctionalRelu,
    InvertedResidual,
    NoNorm,
    ResidualAfterRelu,
    ResidualBeforeRelu,
    Standardised,
)
from sklearn.cluster import KMeans
from support import places_fixture, same_weights, small, trained, tree_fixture  # noqa: F401
from torch import nn

from bpl.channels import ChannelGraph
from bpl.data import load_images, make_split
from bpl.measure import count_macs
from bpl.methods import REGISTRY, Batch, Material, Training, fcs_mlft
from bpl.methods.fcs_mlft import Peers, mutual_loss
from bpl.models import build_model
from bpl.partner import grow_partners
from bpl.pruning import prune_masks, slim
from bpl.pruning.feature_maps import inner_products, l1_norms, mean_over_images, ranks
from bpl.pruning.masks import choose_masks, kept_filters, prunable_sets
from bpl.pruning.similarity import cosine_similarities, keep_dissimilar, norm_bins

pytestmark = pytest.mark.usefixtures("places")


# -- which maps are looked at -------------------------------------------------------------------------------------
def seen_by(model: nn.Module, name: str, x: torch.Tensor) -> torch.Tensor:
    """What a module of a network reads."""
    seen = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    logits(model, x)
    hook.remove()
    return seen[0]


def maps_of(model: nn.Module, conv: str, *batches: torch.Tensor) -> torch.Tensor:
    """A convolution's maps (N, B, H, W) as `mean_over_images` takes them; exact for 2, 4 or 8 images."""
    raw = mean_over_images(ChannelGraph(model), [conv], batches, lambda maps: maps.transpose(0, 1))[conv][0]
    return raw * sum(len(batch) for batch in batches)


@pytest.mark.parametrize(
    ("build", "conv", "reader"),
    [
        (FunctionalRelu, "a", "b"),
        (Standardised, "a", "b"),
        (NoNorm, "a", "b"),  # SiLU
        (ResidualBeforeRelu, "a.0", "b.0"),
        (InvertedResidual, "expand.0", "wise.0"),
        (lambda: grow_partners(FunctionalRelu()), "a", "b"),
        (partial(build_model, "resnet18", 4, 32, 8), "layer2.0.conv1", "layer2.0.conv2"),
        (partial(build_model, "mobilenet_v2", 4, 32, 8), "features.3.conv.1.0", "features.3.conv.2"),
    ],
    ids=["functional", "standardised", "no norm", "residual", "depthwise", "partner", "resnet", "mobilenet"],
)
def test_the_map_of_a_filter_is_what_the_next_layer_reads(build, conv, reader):
    model = randomise_statistics(build()).eval()
    x = random_images(4, 32 if hasattr(model, "bpl_arch") else 8, torch.float32)
    assert torch.equal(maps_of(model, conv, x).transpose(0, 1), seen_by(model, reader, x))


def test_where_an_addition_comes_before_the_activation_the_map_is_what_is_added():
    """torchvision adds in place, into the very tensor that is the map."""
    model = randomise_statistics(build_model("resnet18", 4, 32, 8)).eval()
    x, added = random_images(2, 32, torch.float32), []
    hook = model.layer2[1].bn2.register_forward_hook(lambda _, inputs, output: added.append(output.clone()))
    model(x)
    hook.remove()
    maps = maps_of(model, "layer2.1.conv2", x).transpose(0, 1)
    assert torch.equal(maps, added[0])
    assert maps.min() < 0


def test_the_mean_over_images_does_not_depend_on_the_batches():
    model = randomise_statistics(build_model("resnet18", 4, 32, 8)).eval().double()
    graph, x = ChannelGraph(model), random_images(7, 32)
    whole = mean_over_images(graph, graph.sites, [x], l1_norms, inner_products)
    parts = mean_over_images(graph, graph.sites, x.split(3), l1_norms, inner_products)
    assert list(whole) == list(graph.sites)
    for name, values in whole.items():
        for one, other in zip(values, parts[name], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_no_image_is_an_error():
    graph = ChannelGraph(build_model("resnet18", 4, 32, 8).eval())
    with pytest.raises(ValueError, match="no image to take feature maps of"):
        mean_over_images(graph, ["conv1"], [], l1_norms)


# -- statistics of maps -------------------------------------------------------------------------------------------
def test_norms_inner_products_and_cosines_are_those_of_numpy():
    maps = random_images(4, 6, torch.float32)
    maps[:, 1] = 0
    numbers = maps.double().numpy()
    vectors = [numbers[:, channel].ravel() for channel in range(3)]
    np.testing.assert_allclose(l1_norms(maps), [np.abs(v).sum() for v in vectors], rtol=1e-12)
    products = inner_products(maps)
    np.testing.assert_allclose(products, [[a @ b for b in vectors] for a in vectors], rtol=1e-12)
    lengths = [np.linalg.norm(v) for v in vectors]
    expected = [
        [a @ b / (x * y) if x and y else 0 for b, y in zip(vectors, lengths, strict=True)]
        for a, x in zip(vectors, lengths, strict=True)
    ]
    np.testing.assert_allclose(cosine_similarities(products), expected, rtol=1e-12, atol=1e-15)


def test_a_cosine_does_not_depend_on_the_scale_of_a_channel():
    maps = random_images(4, 6)
    scaled = maps * torch.tensor([1.0, 1e-6, -1e4], dtype=torch.float64).view(3, 1, 1)
    signs = torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    one, other = (cosine_similarities(inner_products(m)) for m in (maps, scaled))
    torch.testing.assert_close(other, one * signs[:, None] * signs)


def test_ranks_are_those_of_numpy():
    chance = torch.Generator().manual_seed(0)
    maps = torch.randn(5, 6, 9, 7, generator=chance)
    for rank in range(4):  # channels of rank 0 to 3, up to float32's rounding; the others have full rank
        factors = torch.randn(5, 9, rank, generator=chance), torch.randn(5, rank, 7, generator=chance)
        maps[:, rank] = factors[0] @ factors[1]
    expected = np.linalg.matrix_rank(maps.numpy()).sum(0)
    assert ranks(maps).tolist() == expected.tolist() == [0, 5, 10, 15, 35, 35]


# -- bins ---------------------------------------------------------------------------------------------------------
def as_partition(labels) -> set[frozenset[int]]:
    """The bins, whatever their numbers."""
    labels = np.asarray(labels)
    return {frozenset(np.flatnonzero(labels == label).tolist()) for label in np.unique(labels)}


def test_bins_are_scikit_learns_clusters_of_the_norms():
    norms = torch.rand(40, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 100
    theirs = KMeans(6, n_init=10, random_state=3).fit_predict(norms[:, None].numpy())
    assert as_partition(norm_bins(norms, 6, seed=3)) == as_partition(theirs)


def test_bins_find_clusters_that_are_there_and_are_intervals():
    norms = torch.tensor([5.0, 100.0, 5.1, 31.0, 30.0, 101.0, 4.9], dtype=torch.float64)
    assert as_partition(norm_bins(norms, 3, seed=0)) == {frozenset({0, 2, 6}), frozenset({3, 4}), frozenset({1, 5})}


@pytest.mark.parametrize(
    ("norms", "bins", "clusters"),
    [
        ([1.0, 2.0, 4.0], 8, 3),
        ([2.0, 2.0, 2.0, 3.0], 8, 2),
        ([0.0, 0.0, 0.0], 8, 1),
        ([7.0], 8, 1),
        ([1.0, 2.0, 3.0], 1, 1),
        ([1.0, 1.0 + 1e-12, 1.0 - 1e-12, 5.0], 4, 2),  # twins up to rounding
        ([1e-300, 2e-300, 1.0], 3, 2),
    ],
    ids=["fewer channels", "equal norms", "all zero", "one channel", "one bin", "rounding", "tiny"],
)
def test_there_are_never_more_bins_than_different_norms(norms, bins, clusters):
    labels = norm_bins(
        torch.tensor(norms, dtype=torch.float64), bins, seed=0
    )  # scikit-learn's warnings are errors here
    assert labels.shape == (len(norms),)
    assert len(labels.unique()) == clusters


def test_without_scikit_learn_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(ValueError, match=r"needs scikit-learn, .* pip install -e '.\[fcs\]'"):
        norm_bins(torch.rand(4), 2, seed=0)


# -- redundant channels -------------------------------------------------------------------------------------------
def by_the_book(norms, cosines, labels, kept) -> list[bool]:
    """The rule of `keep_dissimilar`, looking for the most similar pair anew after every removal."""
    left = list(range(len(norms)))
    while len(left) > kept:
        dead = [c for c in left if norms[c] == 0]
        if dead:
            left.remove(dead[0])
            continue
        pairs = [(i, j) for i in left for j in left if i < j]
        within = [pair for pair in pairs if labels[pair[0]] == labels[pair[1]]]
        i, j = max(within or pairs, key=lambda pair: cosines[pair])
        left.remove(i if norms[i] < norms[j] else j)
    return [c in left for c in range(len(norms))]


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6), channels=st.integers(1, 12), bins=st.integers(1, 5), dead=st.integers(0, 3),
    share=st.floats(0, 1),
)  # fmt: skip
def test_the_most_similar_pair_in_a_bin_loses_its_smaller_channel_again_and_again(seed, channels, bins, dead, share):
    chance = np.random.default_rng(seed)
    maps = np.maximum(chance.normal(size=(channels, 20)), 0)
    maps[: min(dead, channels)] = 0
    norms, products = maps.sum(1), maps @ maps.T
    cosines = cosine_similarities(torch.from_numpy(products))
    labels = chance.integers(0, bins, channels)
    kept = 1 + int(share * (channels - 1))
    mask = keep_dissimilar(torch.from_numpy(norms), cosines, torch.from_numpy(labels), kept)
    assert mask.tolist() == by_the_book(norms, cosines.numpy(), labels, kept)
    assert mask.sum() == kept


def test_channels_of_different_bins_are_compared_only_when_every_bin_is_down_to_one():
    norms = torch.tensor([1.0, 2.0, 10.0, 20.0])
    cosines = torch.eye(4)
    cosines[1, 2] = cosines[2, 1] = 1.0  # proportional, in different bins
    cosines[0, 1] = cosines[1, 0] = 0.1
    cosines[2, 3] = cosines[3, 2] = -0.5
    keep = partial(keep_dissimilar, norms, cosines, torch.tensor([0, 0, 1, 1]))
    assert keep(3).tolist() == [False, True, True, True]
    assert keep(2).tolist() == [False, True, False, True]  # opposite, but of one bin: before any pair across
    assert keep(1).tolist() == [False, False, False, True]


def test_dead_channels_go_first_and_no_more_of_them_than_must():
    norms, cosines = torch.tensor([3.0, 0.0, 3.0, 0.0]), torch.ones(4, 4)
    assert keep_dissimilar(norms, cosines, torch.zeros(4), 3).tolist() == [True, False, True, True]
    assert keep_dissimilar(norms, cosines, torch.zeros(4), 2).tolist() == [True, False, True, False]


# -- a network whose redundancy is known --------------------------------------------------------------------------
TWINS = {1: 0, 4: 2, 9: 3, 11: 7}  # a channel -> the one that it repeats


class Whole(Material):
    """Material with images and a dense network from outside, for a method that is used without the loop."""

    def __init__(self, network: nn.Module, x: torch.Tensor):
        super().__init__(None, torch.arange(len(x)), lambda: network, None)
        self.dense_network = network
        self.x = x

    def inputs(self, indices):
        return self.x[indices]


def method_on(tree, name: str, network: nn.Module, x: torch.Tensor, **changes):
    return REGISTRY[name](small(tree, name, **changes), Whole(network, x))


def repeat(model: nn.Module, twins: dict[int, int], *layers: str) -> nn.Module:
    """Make channels of these layers repeat others, and all of them the largest by every norm."""
    with torch.no_grad():
        for layer in (model.get_submodule(name) for name in layers):
            layer.weight[list(twins.values())] *= 3.0
            if isinstance(layer, nn.BatchNorm2d):
                layer.bias[list(twins.values())] += 2.0
            for tensor in layer.state_dict().values():
                if tensor.dim():
                    tensor[list(twins)] = tensor[list(twins.values())]
    return model


@pytest.fixture
def redundant():
    """A little network: 4 of the 12 channels that `b` reads repeat others."""
    model = randomise_statistics(FunctionalRelu(), negative=False).double().eval()
    return repeat(model, TWINS, "a", "n")


def removed(masks: dict[str, torch.Tensor], conv: str) -> set[int]:
    return set((~masks[conv]).nonzero().flatten().tolist())


def test_fcs_removes_one_of_every_two_equal_channels_and_the_norms_do_not(tree, redundant):
    x = random_images(9, 8)
    chosen = {
        criterion: method_on(tree, "fcs_mlft", redundant, x, criterion=criterion, ratio=0.34, bins=3).choose(redundant)
        for criterion in ("fcs", "kernel-norm", "feature-norm")
    }
    gone = removed(chosen["fcs"], "a")
    assert len(gone) == len(TWINS)
    assert all(len(gone & {one, other}) == 1 for one, other in TWINS.items())
    for criterion in ("kernel-norm", "feature-norm"):
        gone = removed(chosen[criterion], "a")
        assert len(gone) == len(TWINS)
        assert not gone & (TWINS.keys() | set(TWINS.values()))


def test_what_fcs_removes_was_redundant_its_readers_can_do_without(tree, redundant):
    x = random_images(9, 8)
    masks = method_on(tree, "fcs_mlft", redundant, x, ratio=0.34, bins=3).choose(redundant)
    masks = {"a": masks["a"]}
    merged = copy.deepcopy(redundant)
    with torch.no_grad():
        for one, other in TWINS.items():
            lost, left = (one, other) if other not in removed(masks, "a") else (other, one)
            merged.b.weight[:, left] += merged.b.weight[:, lost]
    assert relative_error(logits(slim(merged, masks), x), logits(redundant, x)) < 1e-12
    assert relative_error(logits(slim(redundant, masks), x), logits(redundant, x)) > 1e-3


@pytest.mark.parametrize("seed", range(5))  # which of several cosines of 1 is largest is rounding
def test_channels_that_an_addition_ties_are_redundant_only_if_they_are_at_every_producer(tree, seed):
    """What is read is the sum of stem, `a` and `b`: two pairs are alike in all of them, one in the stem, one in `a`."""
    everywhere = {9: 3, 11: 7}
    model = randomise_statistics(ResidualAfterRelu(), seed, negative=False).double().eval()
    repeat(model, {1: 0} | everywhere, "stem.0", "stem.1")
    repeat(model, {4: 2} | everywhere, "a.0", "a.1")
    repeat(model, everywhere, "b.0", "b.1")
    method = method_on(tree, "fcs_mlft", model, random_images(9, 8, seed=seed), scope="all", ratio=0.17, bins=1)
    masks = method.choose(model)
    assert torch.equal(masks["stem.0"], masks["a.0"]) and torch.equal(masks["a.0"], masks["b.0"])
    gone = removed(masks, "a.0")
    assert len(gone) == 2
    assert all(len(gone & {one, other}) == 1 for one, other in everywhere.items())


def test_a_dead_channel_is_the_first_to_go(tree, redundant):
    with torch.no_grad():
        redundant.n.weight[6] = 0.0
        redundant.n.bias[6] = -1.0
    masks = method_on(tree, "fcs_mlft", redundant, random_images(9, 8), ratio=0.1, bins=3).choose(redundant)
    assert removed(masks, "a") == {6}


# -- the methods choose what their definitions say ----------------------------------------------------------------
@pytest.fixture(scope="module")
def wide():
    return randomise_statistics(build_model("resnet18", 4, 32, 8), seed=3).eval().requires_grad_(False)


def expected_masks(wide: nn.Module, x: torch.Tensor, score, ratio: float) -> dict[str, list[bool]]:
    """Masks of the first convolutions of the blocks by a score of what the second ones read."""
    masks = {}
    for name in [n for n, _ in wide.named_modules() if n.endswith("conv1") and n != "conv1"]:
        scores = score(wide, name, seen_by(wide, name.replace("conv1", "conv2"), x).double().numpy())
        order = np.argsort(-scores, kind="stable")[: kept_filters(len(scores), ratio)]
        masks[name] = [c in order for c in range(len(scores))]
    return masks


@pytest.mark.parametrize(
    ("method", "criterion", "score"),
    [
        ("hrank", "rank", lambda _, name, maps: np.linalg.matrix_rank(maps.astype(np.float32)).mean(0)),
        ("fcs_mlft", "feature-norm", lambda _, name, maps: np.abs(maps).sum((0, 2, 3))),
        (
            "fcs_mlft",
            "kernel-norm",
            lambda model, name, maps: model.get_submodule(name).weight.abs().double().sum((1, 2, 3)).numpy(),
        ),
    ],
    ids=["hrank", "feature-norm", "kernel-norm"],
)
def test_the_filters_of_highest_score_stay(tree, wide, method, criterion, score):
    x = random_images(20, 32, torch.float32)
    masks = method_on(tree, method, wide, x, criterion=criterion, ratio=0.6).choose(wide)
    assert list(masks) == list(prune_masks(wide, 0.6))
    for name, expected in expected_masks(wide, x, score, 0.6).items():
        assert masks[name].tolist() == expected, name


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.7, 0.95])
@pytest.mark.parametrize(("scope", "round_to"), [("inner", 1), ("all", 4)])
def test_as_many_filters_stay_as_with_every_other_method(tree, wide, ratio, scope, round_to):
    x, sizes = random_images(3, 32, torch.float32), {"ratio": ratio, "scope": scope, "round_to": round_to}
    expected = {name: int(mask.sum()) for name, mask in prune_masks(wide, ratio, "l1", scope, round_to).items()}
    for method in ("fcs_mlft", "hrank"):
        masks = method_on(tree, method, wide, x, **sizes, bins=4).choose(wide)
        assert {name: int(mask.sum()) for name, mask in masks.items()} == expected


def test_a_choice_of_masks_refuses_what_prune_masks_refuses(wide):
    graph = ChannelGraph(wide)
    with pytest.raises(ValueError, match=r"ratio is 1\.0"):
        choose_masks(graph, 1.0, "inner", 1, None)
    with pytest.raises(ValueError, match="unknown scope 'outer'"):
        choose_masks(graph, 0.5, "outer", 1, None)
    assert not prunable_sets(ChannelGraph(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1))))


def test_the_images_looked_at_are_of_the_training_part_each_once(tree):
    images = load_images(str(tree), 32, progress=False)
    part = make_split(images, "protocol", 0).train
    drawn = {}
    for samples, seed in ((10, 0), (10, 1), (10_000, 0)):
        config = small(tree, "hrank", samples=samples, seed=seed)
        drawn[samples, seed] = REGISTRY["hrank"](config, Material(images, part, None, None)).sample().tolist()
    assert all(len(set(indices)) == len(indices) and set(indices) <= set(part.tolist()) for indices in drawn.values())
    assert len(drawn[10, 0]) == 10
    assert drawn[10, 0] != drawn[10, 1]
    assert sorted(drawn[10_000, 0]) == sorted(part.tolist())  # more than there are: all


# -- mutual learning ----------------------------------------------------------------------------------------------
def test_each_peer_learns_from_the_labels_and_from_the_other_as_it_is(tree):
    """The gradient of L1 = CE(p1, y) + KL(p2 || p1) with respect to the logits is (p1 - y) + (p1 - p2), over B."""
    chance = torch.Generator().manual_seed(0)
    first, second = (torch.randn(6, 4, generator=chance, requires_grad=True) for _ in range(2))
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    method = REGISTRY["fcs_mlft"](small(tree, "fcs_mlft", distill_weight=0.5, label_smoothing=0), None)
    batch = Batch(None, labels)
    loss = method.loss(Training(None, None, 0, 1), batch, (first, second))
    loss.backward()
    p1, p2, y = first.detach().softmax(1), second.detach().softmax(1), F.one_hot(labels, 4)
    kl = (p2 * (p2 / p1).log()).sum(1).mean() + (p1 * (p1 / p2).log()).sum(1).mean()
    ce = -(p1.log()[range(6), labels].mean() + p2.log()[range(6), labels].mean())
    torch.testing.assert_close(loss.detach(), ce + 0.5 * kl)
    torch.testing.assert_close(first.grad, ((p1 - y) + 0.5 * (p1 - p2)) / 6)
    torch.testing.assert_close(second.grad, ((p2 - y) + 0.5 * (p2 - p1)) / 6)


def test_peers_that_agree_have_nothing_to_tell_each_other():
    same = torch.randn(6, 4, requires_grad=True)
    loss = mutual_loss(same, same.detach().clone(), 1.0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert same.grad.abs().max() < 1e-6


@pytest.fixture(scope="module")
def dense(tree):
    """A dense network of the little tree, trained once for all tests that follow; a copy for each."""
    network = trained(small(tree, "dense", epochs=2)).small
    return lambda: copy.deepcopy(network)


def fine_tuned(tree, dense, method="fcs_mlft", **changes):
    settings = {"epochs": 2, "teacher_epochs": 2, "samples": 12, "bins": 3} | changes
    config = small(tree, method, **settings)
    return config, trained(config, dense=dense)


def material(tree, dense) -> Material:
    images = load_images(str(tree), 32, progress=False)
    return Material(images, make_split(images, "protocol", 0).train, dense, None)


def test_the_peers_are_the_dense_network_without_different_filters(tree, dense):
    method = REGISTRY["fcs_mlft"](small(tree, "fcs_mlft", samples=12), material(tree, dense))
    peers = method.prepare(dense())
    assert all(parameter.requires_grad for parameter in peers.parameters())
    assert same_weights(peers.first, slim(dense(), method.masks))
    assert same_weights(peers.second, slim(dense(), method.peer_masks))
    assert not same_weights(peers.first, peers.second)
    assert count_macs(peers.first, 32) == count_macs(peers.second, 32)
    assert method.masks.keys() == method.peer_masks.keys()


def test_the_first_peer_ships(tree, dense):
    method = REGISTRY["fcs_mlft"](small(tree, "fcs_mlft", samples=12), material(tree, dense))
    peers = method.prepare(dense())
    for network in (method.as_shipped(peers), method.as_trained(peers), method.finish(peers)):
        assert not isinstance(network, Peers)
        assert same_weights(network, peers.first)


def test_two_peers_with_the_same_filters_are_refused(tree, dense, monkeypatch):
    def never_by_chance(network, ratio, criterion, *rest, **seed):
        return prune_masks(network, ratio, "l1", *rest, **seed)

    monkeypatch.setattr(fcs_mlft, "prune_masks", never_by_chance)
    with pytest.raises(ValueError, match="both peers of mutual learning would keep the same filters"):
        fine_tuned(tree, dense, criterion="kernel-norm", ratio=0.5)


def test_a_ratio_that_removes_nothing_is_refused_for_two_peers_and_allowed_for_one_network(tree, dense):
    with pytest.raises(ValueError, match=r"ratio is 0\.0 .*two peers .*fine_tune tft"):
        fine_tuned(tree, lambda: pytest.fail("the dense network was trained first"), ratio=0)
    _, out = fine_tuned(tree, dense, ratio=0, fine_tune="tft", epochs=1)
    assert count_macs(out.small, 32) == count_macs(dense(), 32)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("fcs_mlft", {}),
        ("fcs_mlft", {"fine_tune": "tft", "scope": "all"}),
        ("fcs_mlft", {"criterion": "feature-norm", "precision": "bf16"}),
        ("hrank", {"round_to": 4}),
    ],
    ids=str,
)
def test_a_fine_tuned_network_ships_small_and_learns(tree, dense, method, changes):
    config, out = fine_tuned(tree, dense, method, **{"epochs": 4} | changes)
    shape = dense()
    narrow = slim(shape, prune_masks(shape, config.ratio, scope=config.scope, round_to=config.round_to))
    assert count_macs(out.small, 32) == count_macs(narrow, 32)
    assert same_weights(out.small, out.network)  # `Trained.network` is the first peer
    assert out.curves["at_size"] == [1.0] * 4
    assert out.curves["loss"][-1] < 0.9 * out.curves["loss"][0]
    assert not same_weights(out.small, slim(dense(), out.method.masks))


def test_mutual_learning_changes_the_first_peer_and_costs_twice_as_much(tree, dense):
    (config, alone), (_, mutual), (_, deaf) = (
        fine_tuned(tree, dense, **changes)
        for changes in ({"fine_tune": "tft"}, {"fine_tune": "mlft"}, {"fine_tune": "mlft", "distill_weight": 0})
    )
    images = 56 - 56 % config.batch_size
    before = 3 * count_macs(dense(), 32) * images * config.teacher_epochs + count_macs(dense(), 32) * 12
    step = 3 * count_macs(alone.small, 32) * images * config.epochs
    assert alone.training_macs == before + step
    assert mutual.training_macs == before + 2 * step
    assert not same_weights(mutual.small, alone.small)
    assert same_weights(deaf.small, alone.small)  # a peer that is not listened to changes nothing


def test_criteria_on_kernels_look_at_no_image(tree, dense):
    _, kernels = fine_tuned(tree, dense, criterion="kernel-norm", fine_tune="tft", epochs=1)
    _, maps = fine_tuned(tree, dense, criterion="feature-norm", fine_tune="tft", epochs=1)
    assert maps.training_macs - kernels.training_macs == 12 * count_macs(dense(), 32)


# -- kill and resume ----------------------------------------------------------------------------------------------
class Killed(BaseException):
    """Nothing catches it: as good as a kill, for what is on the disk."""


@pytest.mark.parametrize(
    ("method", "changes"), [("fcs_mlft", {}), ("fcs_mlft", {"fine_tune": "tft"}), ("hrank", {})], ids=str
)
def test_a_run_that_was_killed_goes_on_without_choosing_again(tree, dense, tmp_path, monkeypatch, method, changes):
    """What was chosen is in the checkpoint: feature maps, K-means and the dense network are needed once."""
    monkeypatch.setattr(sys.modules["bpl.train"], "CHECKPOINT_SECONDS", -1.0)
    config, whole = fine_tuned(tree, dense, method, epochs=3, **changes)
    run = partial(trained, config, checkpoint=tmp_path / "checkpoint.pt")
    kind, steps = REGISTRY[method], []

    def dies(self, training):
        steps.append(training.epoch)
        if len(steps) == 5:  # an epoch has 3 steps: in the midst of the second
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(kind, "after_step", dies)
        run(dense=dense)

    def never(*_):
        raise AssertionError("the filters were chosen again")

    monkeypatch.setattr(kind, "choose", never)
    resumed = run(dense=never)
    assert same_weights(resumed.small, whole.small)
    assert resumed.curves == whole.curves
    assert resumed.training_macs == whole.training_macs
    assert all(torch.equal(mask, whole.method.masks[name]) for name, mask in resumed.method.masks.items())
