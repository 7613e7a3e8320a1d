"""Masks and their removal: pruned channels emit exactly 0, and taking them out changes no logit."""

import copy
import itertools

import pytest
import torch
import torch_pruning
from exactness import (
    TOLERANCE,
    assert_exact,
    first_filters,
    images,
    logits,
    random_masks,
    randomise_statistics,
    relative_error,
    same_state,
    state,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from little_networks import CONV_OPTIONS, STRUCTURES, WIDTH, Net, block, chain, conv
from torch import nn

import bpl
from bpl.channels import ChannelGraph
from bpl.partner import partner_blocks
from bpl.pruning import CRITERIA, MaskHolder, masks_of_zeros
from bpl.pruning.criteria import Filters, fpgm
from bpl.pruning.masks import convs_of, kept_filters, prunable_sets

SIZE = 8
NETWORKS = ("resnet18", "resnet50", "resnet56", "vgg16_bn", "mobilenet_v2")
RATIOS = tuple(tenths / 10 for tenths in range(1, 10))


def grown(name: str, dtype: torch.dtype = torch.float64, width: int | None = 8, size: int = 32) -> nn.Module:
    return randomise_statistics(bpl.grow_partners(bpl.build_model(name, 10, size, width=width)).to(dtype))


# -- exactness ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("scope", "ratio"), [("inner", 0.1), ("inner", 0.9), ("all", 0.5)])
@pytest.mark.parametrize("name", NETWORKS)
def test_grown_masked_fused_and_slimmed_agree(name, scope, ratio):
    model = grown(name)
    small = assert_exact(model, images(), bpl.prune_masks(model, ratio, scope=scope))
    assert bpl.count_params(small) < bpl.count_params(bpl.fuse_partners(model))


@pytest.mark.parametrize("grown_first", [True, False])
@pytest.mark.parametrize(("name", "kind"), [("resnet50", "same"), ("resnet18", "dbb"), ("vgg16_bn", "acnet")])
def test_synchronised_normalisations_are_ordinary_ones(name, kind, grown_first, tmp_path):
    model = bpl.build_model(name, 10, 32, width=8)
    plain = bpl.prune_masks(model, 0.5)
    if grown_first:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(bpl.grow_partners(model, kind))
    else:
        model = bpl.grow_partners(nn.SyncBatchNorm.convert_sync_batchnorm(model), kind)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    model = randomise_statistics(model.double())
    masks = bpl.prune_masks(model, 0.5)
    assert masks.keys() == plain.keys()
    small = assert_exact(model, images(), masks)
    bpl.save_model(small, tmp_path / "small")
    loaded = bpl.load_model(tmp_path / "small")  # by its name: of ordinary layers
    assert torch.equal(logits(loaded, images()), logits(small, images()))


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2"])
def test_single_precision_agrees_to_its_own_rounding(name):
    model, x = grown(name, torch.float32), images(dtype=torch.float32)
    assert_exact(model, x, bpl.prune_masks(model, 0.7))


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("round_to", [8, 16])
def test_every_criterion_and_rounding_is_exact_and_gives_the_widths(criterion, round_to):
    model, x = grown("resnet18", width=24), images(size=32)
    masks = bpl.prune_masks(model, 0.6, criterion, "all", round_to)
    assert_exact(model, x, masks)
    for mask in masks.values():
        assert int(mask.sum()) == kept_filters(len(mask), 0.6, round_to)
        assert int(mask.sum()) % round_to == 0 or mask.all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("name", "scope"), list(itertools.product(NETWORKS, ["inner", "all"])))
def test_full_width_networks_agree_at_every_ratio(name, scope, dtype):
    model = grown(name, dtype, width=None, size=64)
    x = images(size=64, dtype=dtype)
    for ratio in RATIOS:
        for round_to in (1, 8, 16):
            assert_exact(model, x, first_filters(model, ratio, scope, round_to))


@pytest.mark.parametrize("together", [True, False], ids=["tied masks", "masks of their own"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_any_masks_on_any_structure_are_exact(structure, together):
    model = STRUCTURES[structure]().double()
    if together:  # the plain network in one half of the cases, the grown one in the other
        model = bpl.grow_partners(model)
    randomise_statistics(model)
    for seed in range(2):
        assert_exact(model, images(size=SIZE), random_masks(model, seed, together=together))


@pytest.mark.parametrize("options", CONV_OPTIONS.values(), ids=CONV_OPTIONS)
def test_any_masks_on_any_convolution_are_exact(options):
    model = randomise_statistics(bpl.grow_partners(chain(**options)).double(), tiny_variance=True)
    for seed in range(2):
        assert_exact(model, images(size=SIZE), random_masks(model, seed, together=seed == 0))


def mask_sets(model: nn.Module) -> st.SearchStrategy[dict[str, list[bool]]]:
    """Hypothesis' choice of masks: any subset of the convolutions, any filters, at least one kept."""
    sizes = {name: channels.size for name, channels in ChannelGraph(model).of_conv.items()}
    mask = {name: st.lists(st.booleans(), min_size=n, max_size=n).filter(any) for name, n in sizes.items()}
    return st.fixed_dictionaries({}, optional=mask)


class EverythingAtOnce(nn.Module):
    """A bottleneck with a gate, an inverted residual, a projection: tied, depthwise and gated channels."""

    def __init__(self):
        super().__init__()
        self.stem = block(3, 6)
        self.expand, self.wise = block(6, 8, 1), block(8, 8, groups=8)
        self.reduce, self.excite = conv(8, 3, 1), conv(3, 8, 1)
        self.project = nn.Sequential(conv(8, 6, 1), nn.BatchNorm2d(6))
        self.shortcut = nn.Sequential(conv(6, 6, 1, bias=False), nn.BatchNorm2d(6))
        self.head = nn.Linear(6 * 4, 5)

    def forward(self, x):
        x = self.stem(x)
        y = self.wise(self.expand(x))
        gate = torch.sigmoid(self.excite(torch.relu(self.reduce(y.mean((2, 3), keepdim=True)))))
        y = self.project(y * gate)
        x = torch.relu(self.shortcut(x) + y) + y
        return self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 2), 1))


EVERYTHING = randomise_statistics(bpl.grow_partners(EverythingAtOnce()).double(), seed=5)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(masks=mask_sets(EVERYTHING))
def test_masks_that_hypothesis_makes_up_are_exact(masks):
    assert_exact(EVERYTHING, images(size=SIZE), {name: torch.tensor(mask) for name, mask in masks.items()})


def test_slimming_step_by_step_is_slimming_at_once():
    model, x = grown("resnet18"), images()
    half = bpl.slim(model, bpl.prune_masks(model, 0.5))
    masks = bpl.prune_masks(half, 0.5)
    quarter = assert_exact(half, x, masks)
    assert {len(mask) for mask in masks.values()} == {4, 8, 16, 32} and quarter.layer1[0].conv1.out_channels == 2


def test_one_channel_is_enough_for_a_depthwise_block_and_may_be_slimmed_again():
    model = randomise_statistics(bpl.grow_partners(STRUCTURES["InvertedResidual"]()).double())
    masks = first_filters(model, 0.99)
    small = bpl.slim(model, masks)
    assert convs_of(small.wise[0])[0].weight.shape == (1, 1, 3, 3)
    assert_exact(small, images(size=SIZE), first_filters(small, 0.5))


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vgg16_bn", "mobilenet_v2"])
def test_an_independent_remover_agrees(name):
    model = randomise_statistics(bpl.build_model(name, 10, 32, width=8).double()).eval()
    x = images()
    masks = bpl.prune_masks(model, 0.5, scope="all" if "resnet" in name else "inner")
    small = bpl.slim(model, masks)
    oracle = bpl.apply_masks(copy.deepcopy(model), masks)
    graph = torch_pruning.DependencyGraph().build_dependency(oracle, example_inputs=x)
    for channels in prunable_sets(ChannelGraph(model), "all"):
        if (name := channels.convs[0]) in masks:
            gone = (~masks[name]).nonzero().flatten().tolist()
            conv = oracle.get_submodule(name)
            graph.get_pruning_group(conv, torch_pruning.prune_conv_out_channels, idxs=gone).prune()
    assert {n: p.shape for n, p in small.named_parameters()} == {n: p.shape for n, p in oracle.named_parameters()}
    assert same_state(state(small), state(oracle))
    assert relative_error(logits(small, x), logits(oracle, x)) <= TOLERANCE[torch.float64]


def test_slim_computes_the_same_in_training_mode_and_moves_the_same_statistics():
    model = grown("resnet18")
    masks = bpl.prune_masks(model, 0.6)
    masked, small = bpl.apply_masks(copy.deepcopy(model), masks).train(), bpl.slim(model, masks).train()
    x = images(4)
    assert relative_error(small(x), masked(x)) < 1e-12
    again = bpl.slim(masked, masks)
    for name, tensor in again.state_dict().items():
        torch.testing.assert_close(small.state_dict()[name], tensor, rtol=1e-12, atol=1e-12)


# -- what a plain look at the network does not show -----------------------------------------------------------------
class WithA(Net):
    """A block more than `Net`, and something between the blocks that keeps the channels of `untouched` only."""

    untouched: tuple[str, ...] = ("a.0", "last.0")

    def __init__(self):
        super().__init__()
        self.a = block()


class SigmoidInPlace(WithA):
    def middle(self, x):
        x.sigmoid_()
        return self.a(x)


class SumInPlaceByAnotherName(WithA):
    def middle(self, x):
        y = x
        y += 1
        return self.a(x)


class DifferenceInPlace(WithA):
    def middle(self, x):
        x.sub_(1)
        return self.a(x)


class InPlaceByOption(WithA):
    def middle(self, x):
        nn.functional.hardsigmoid(x, True)
        return self.a(x)


class ModuleInPlace(WithA):
    def __init__(self):
        super().__init__()
        self.gate = nn.Hardsigmoid(inplace=True)

    def middle(self, x):
        self.gate(x)
        return self.a(x)


class InPlaceThroughAView(WithA):
    def middle(self, x):
        torch.flatten(x, 1).add_(1)
        return self.a(x)


class IntoAGivenTensor(WithA):
    def middle(self, x):
        torch.add(x, 1, out=x)
        return self.a(x)


class ReluInPlace(WithA):
    """Zeros stay zeros: nothing is frozen."""

    untouched = ("stem.0", "a.0", "last.0")

    def middle(self, x):
        nn.functional.relu_(x)
        nn.functional.relu(x, inplace=True)
        x.mul_(3)
        return self.a(x)


class SumInPlaceOfResult(WithA):
    """As torchvision's residual blocks: both terms are zero in a masked channel."""

    untouched = ("last.0",)

    def middle(self, x):
        out = self.a(x)
        out += x
        return out


class NoZeroFromHardtanh(WithA):
    def __init__(self):
        super().__init__()
        self.act = nn.Hardtanh(0.3, 2.0)

    def middle(self, x):
        return self.a(self.act(x))


class ZeroFromHardtanh(NoZeroFromHardtanh):
    untouched = ("stem.0", "a.0", "last.0")

    def __init__(self):
        super().__init__()
        self.act = nn.Hardtanh(-1.0, 0.0)


class ClipsAboveZero(WithA):
    def middle(self, x):
        return self.a(x.clamp(min=0.1))


class ClipsToAMap(WithA):
    def middle(self, x):
        return self.a(torch.clamp(x, x.mean(), x.amax()))


class ClipsAtZero(WithA):
    untouched = ("stem.0", "a.0", "last.0")

    def middle(self, x):
        return self.a(nn.functional.hardtanh(torch.clip(x, None, 6).clamp_(0, max=5.0)))


class Join(nn.Module):
    """Gives back what it is given, if that is one map: it is no identity."""

    def forward(self, *maps):
        return sum(maps[1:], start=maps[0])


class JoinsMaps(WithA):
    untouched = ("last.0",)

    def __init__(self):
        super().__init__()
        self.join = Join()

    def middle(self, x):
        return self.join(x, self.a(x))


class OptionalSkip(nn.Module):
    def forward(self, x, skip=None):
        return x if skip is None else x + torch.sigmoid(skip)


class SkipsByName(WithA):
    untouched = ("last.0",)

    def __init__(self):
        super().__init__()
        self.join = OptionalSkip()

    def middle(self, x):
        return self.join(self.a(x), skip=x)


class FirstTwelve(nn.Module):
    """The identity on a map of a dozen channels, and on no other."""

    def forward(self, x):
        return x[:, :WIDTH]


class CutsAtAWidth(WithA):
    def __init__(self):
        super().__init__()
        self.cut = FirstTwelve()

    def middle(self, x):
        return self.a(self.cut(x))


class OwnIdentity(nn.Module):
    def forward(self, x):
        return x


class IdentityOnFeatures(WithA):
    """A layer of one's own that does nothing, on a map and on what is pooled."""

    untouched = ("stem.0", "a.0", "last.0")

    def __init__(self):
        super().__init__()
        self.nothing = OwnIdentity()

    def forward(self, x):
        return self.fc(self.nothing(self.last(self.nothing(self.a(self.stem(x)))).mean((2, 3))))


class ScaledByAConstant(WithA):
    untouched = ("a.0", "last.0")

    def middle(self, x):
        return self.a(x * torch.linspace(1, 2, WIDTH, dtype=torch.float64)[:, None, None])


class BehindAnAttribute(WithA):
    def middle(self, x):
        return self.a(x.data)


class WidthInASlice(WithA):
    def middle(self, x):
        return self.a(x) / x.shape[:2][1]


class ShapeAsAWhole(WithA):
    untouched = ("last.0",)

    def middle(self, x):
        return self.a(x).reshape(x.shape)


class ZerosOfAShape(WithA):
    untouched = ("last.0",)

    def middle(self, x):
        return self.a(x) + x.new_zeros(x.size())


class Opaque(nn.Module):
    def __init__(self, inside: nn.Module):
        super().__init__()
        self.inside = inside

    def forward(self, x):
        return self.inside(x) if x.sum() > 0 else self.inside(-x)


class SharedWithAClosedPart(WithA):
    untouched = ("last.0",)

    def __init__(self):
        super().__init__()
        self.b, self.closed = block(), Opaque(self.a)

    def middle(self, x):
        return self.b(self.a(x)) * self.closed(x).mean()


class HookedConv(WithA):
    untouched = ("last.0",)
    hooked = "a.0"

    def __init__(self):
        super().__init__()
        self.get_submodule(self.hooked).register_forward_hook(lambda module, inputs, output: output + 1)

    def middle(self, x):
        return self.a(x)


class HookedNorm(HookedConv):
    untouched = ("stem.0", "last.0")
    hooked = "a.1"


class HookedRelu(HookedNorm):
    hooked = "a.2"


class HookedLinear(HookedNorm):
    untouched = ("stem.0", "a.0")
    hooked = "fc"


class HookedBefore(WithA):
    untouched = ("last.0",)

    def __init__(self):
        super().__init__()
        self.a[0].register_forward_pre_hook(lambda module, inputs: inputs[0] + 1)

    def middle(self, x):
        return self.a(x)


HIDDEN = {
    kind.__name__: kind
    for kind in list(vars().values())
    if isinstance(kind, type) and issubclass(kind, WithA) and kind is not WithA
}


@pytest.mark.parametrize("grow", [True, False], ids=["grown", "plain"])
@pytest.mark.parametrize("structure", HIDDEN)
def test_what_hides_in_a_network_is_seen_and_the_rest_may_go(structure, grow):
    model = HIDDEN[structure]().double()
    if grow:
        bpl.grow_partners(model)
    randomise_statistics(model)
    masks = bpl.prune_masks(model, 0.5)
    for chosen in (masks, random_masks(model, 0), random_masks(model, 1, together=False)):
        assert_exact(model, images(size=SIZE), chosen)
    if structure != "WidthInASlice":
        assert tuple(name for name in masks if name != "b.0") == model.untouched


@pytest.mark.parametrize(("structure", "left"), [(HookedConv, "a.0"), (HookedNorm, "a.0"), (HookedBefore, "a.0")])
def test_a_convolution_with_hooks_grows_no_partner_and_says_why(structure, left):
    model = structure()
    bpl.grow_partners(model)
    assert partner_blocks(model).keys() == {"stem.0", "last.0"}
    assert "has forward hooks" in ChannelGraph(model).of_conv[left].frozen
    alone = nn.Sequential(*conv_and_norm())
    alone[0].register_forward_hook(lambda module, inputs, output: None)
    with pytest.raises(ValueError, match="nothing to grow in Sequential.*; '0' has forward hooks$"):
        bpl.grow_partners(alone)


def conv_and_norm() -> tuple[nn.Module, nn.Module]:
    return conv(3), nn.BatchNorm2d(WIDTH)


def test_hooks_on_a_block_are_the_fused_convolutions_and_those_inside_are_refused():
    model = randomise_statistics(bpl.grow_partners(Net()).double()).eval()
    handle = model.stem[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    model.stem[0].register_forward_pre_hook(lambda module, inputs: inputs[0] + 1)
    x = images(size=SIZE)
    assert_exact(model, x, bpl.prune_masks(model, 0.5))
    assert relative_error(logits(bpl.fuse_partners(model), x), logits(model, x)) < 1e-12
    handle.remove()
    model.stem[0].branches[1].conv.register_forward_hook(lambda module, inputs, output: 2 * output)
    with pytest.raises(ValueError, match="cannot fuse 'stem.0': its layer 'branches.1.conv' has forward hooks"):
        bpl.fuse_partners(model)


# -- what slim returns ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("with_partners", [True, False])
def test_a_slimmed_network_has_no_masks_no_hooks_and_no_buffers_of_its_own(with_partners):
    model = bpl.build_model("mobilenet_v2", 5, 32, width=8)
    if with_partners:
        model = bpl.grow_partners(model)
    small = bpl.slim(model, bpl.prune_masks(model, 0.5))
    assert {n.rpartition(".")[2] for n, _ in small.named_buffers()} == {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }
    assert small.state_dict().keys() == model.state_dict().keys()
    assert [type(m) for m in small.modules()] == [type(m) for m in model.modules()]
    for module in small.modules():
        assert not (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
        if isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)
            assert module.weight.is_leaf and module.weight.is_contiguous()
        elif isinstance(module, nn.BatchNorm2d):
            assert module.weight.shape == module.running_var.shape == (module.num_features,)


def test_slimming_shares_no_memory_with_its_input():
    model = Net()
    small = bpl.slim(model, {})
    assert same_state(small.state_dict(), model.state_dict())
    assert not {t.data_ptr() for t in model.state_dict().values()} & {t.data_ptr() for t in small.state_dict().values()}


def test_slimming_keeps_modes_dtype_memory_format_and_what_is_trained():
    model = bpl.grow_partners(Net()).to(torch.bfloat16, memory_format=torch.channels_last).train()
    model.last.eval().requires_grad_(False)
    small = bpl.slim(model, first_filters(model, 0.5))
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()]
    for old, new in zip(model.parameters(), small.parameters(), strict=True):
        assert new.dtype == old.dtype and new.requires_grad == old.requires_grad
        if new.dim() == 4:
            assert new.is_contiguous(memory_format=torch.channels_last)


def test_the_removed_filters_are_the_masked_ones_in_their_order():
    model = Net()
    mask = torch.zeros(WIDTH, dtype=torch.bool)
    mask[[1, 4, 9]] = True
    small = bpl.slim(model, {"stem.0": mask})
    assert torch.equal(small.stem[0].weight, model.stem[0].weight[[1, 4, 9]])
    assert torch.equal(small.last[0].weight, model.last[0].weight[:, [1, 4, 9]])


# -- zero, and zero only where it should be --------------------------------------------------------------------------
def emissions(model: nn.Module, masks: dict[str, torch.Tensor], x: torch.Tensor) -> dict[str, torch.Tensor]:
    """What each masked convolution's block emits behind its normalisation, by hooks on whatever stands last there."""
    seen, handles = {}, []
    sites = ChannelGraph(model).sites
    for name in masks:
        module = model.get_submodule(sites[name].norm or name)
        handles.append(
            module.register_forward_hook(lambda _m, _x, out, name=name: seen.__setitem__(name, out.detach()))
        )
    model(x)
    for handle in handles:
        handle.remove()
    return seen


def assert_silent(model: nn.Module, masks: dict[str, torch.Tensor], x: torch.Tensor) -> None:
    for name, out in emissions(model, masks, x).items():
        assert (out[:, ~masks[name]] == 0).all(), name
        assert out[:, masks[name]].abs().sum() > 0, name


@pytest.mark.parametrize("name", ["resnet18", "vgg16_bn", "mobilenet_v2"])
def test_pruned_channels_emit_exactly_zero_grown_and_fused_training_and_not(name):
    model = grown(name, torch.float32)
    masks = bpl.prune_masks(model, 0.5, scope="all")
    bpl.apply_masks(model, masks)
    for network in (model.train(), copy.deepcopy(model).eval(), bpl.fuse_partners(model).eval()):
        assert_silent(network, masks, images(4, dtype=torch.float32))


@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-2),
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-2, nesterov=True),
        lambda p: torch.optim.AdamW(p, 1e-2),
    ],
    ids=["SGD", "Nesterov", "AdamW"],
)
def test_pruned_channels_stay_silent_while_the_others_learn(make_optimizer):
    model = grown("resnet18", torch.float32, size=32).train()
    optimizer = make_optimizer(model.parameters())
    x, labels = images(8, 32, torch.float32), torch.arange(8)

    def step():
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(2):
        step()  # so that there is momentum to hold back
    masks = bpl.prune_masks(model, 0.5, scope="all")
    holder = MaskHolder(model, masks)
    holder.apply()
    holder.apply_to_momentum(optimizer)
    before = state(model)
    for _ in range(4):
        step()
        holder.apply()
        holder.apply_to_momentum(optimizer)
        assert_silent(model, masks, x)
    moved = [n for n, p in model.named_parameters() if not torch.equal(p, before[n])]
    assert len(moved) == len(list(model.parameters()))  # every tensor, in its kept part
    for tensor, mask in zip(holder.tensors, holder.masks, strict=True):
        for buffer in optimizer.state[tensor].values():
            if buffer.shape == tensor.shape:
                assert (buffer * (1 - mask) == 0).all() and buffer.abs().sum() > 0


def test_without_the_hold_on_momentum_pruned_filters_come_back():
    model = grown("resnet18", torch.float32, size=32).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    x, labels = images(8, 32, torch.float32), torch.arange(8)
    nn.functional.cross_entropy(model(x), labels).backward()
    optimizer.step()
    masks = bpl.prune_masks(model, 0.5)
    bpl.apply_masks(model, masks)
    optimizer.step()
    name = next(iter(masks))
    assert model.get_submodule(name).branches[0].conv.weight[~masks[name]].abs().sum() > 0


def test_masking_touches_nothing_that_is_kept():
    model = grown("resnet18")
    before, masks = state(model), bpl.prune_masks(model, 0.5)
    bpl.apply_masks(model, masks)
    for name, block_ in partner_blocks(model).items():
        mask = masks.get(name, torch.ones(block_.out_channels, dtype=torch.bool))
        for key, tensor in block_.state_dict().items():
            if tensor.dim() and "running" not in key:
                assert torch.equal(tensor[mask], before[f"{name}.{key}"][mask])
                assert (tensor[~mask] == 0).all()
    touched = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert {n.partition(".branches")[0] for n in touched} == set(masks)


def test_applying_masks_twice_is_applying_them_once_and_returns_the_model():
    model = grown("resnet18")
    masks = bpl.prune_masks(model, 0.5)
    assert bpl.apply_masks(model, masks) is model
    before = state(model)
    bpl.apply_masks(model, masks)
    assert same_state(before, model.state_dict())


def test_soft_masks_zero_the_filters_and_leave_the_normalisation():
    model = grown("resnet18")
    masks, before = bpl.prune_masks(model, 0.5), state(model)
    MaskHolder(model, masks, filters_only=True).apply()
    for name, mask in masks.items():
        for branch in model.get_submodule(name).branches:
            assert (branch.conv.weight[~mask] == 0).all()
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed and all(n.endswith("conv.weight") for n in changed)


def test_holding_the_readers_too_changes_no_logit():
    model, x = grown("resnet18"), images()
    masks = bpl.prune_masks(model, 0.5, scope="all")
    held = copy.deepcopy(model)
    MaskHolder(held, masks, readers=True).apply()
    assert relative_error(logits(held, x), logits(bpl.apply_masks(model, masks), x)) < 1e-12
    assert (held.layer1[0].conv2.branches[0].conv.weight[:, ~masks["layer1.0.conv1"]] == 0).all()
    small = bpl.slim(model, masks)
    norm = sum(float(p.detach().square().sum()) for p in small.parameters())
    assert sum(float(p.detach().square().sum()) for p in held.parameters()) == pytest.approx(norm, rel=1e-12)


# -- ranking --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("filters", [1, 2, 10, 64, 128, 256, 512])
@pytest.mark.parametrize("ratio", [0.0, 0.29, 0.3, 0.7, 0.99])
def test_kept_filters_follow_the_released_rule(filters, ratio):
    kept = kept_filters(filters, ratio)
    assert kept == filters - int(filters * ratio) >= 1
    assert [kept_filters(n, 0.7) for n in (64, 128, 256, 512)] == [20, 39, 77, 154]


@given(st.integers(1, 600), st.floats(0, 1, exclude_max=True), st.sampled_from([1, 2, 8, 16, 32]))
def test_rounded_widths_are_the_nearest_multiples(filters, ratio, round_to):
    kept, exact = kept_filters(filters, ratio, round_to), kept_filters(filters, ratio)
    assert 1 <= kept <= filters
    if kept < filters:
        assert kept % round_to == 0 and (abs(kept - exact) <= round_to / 2 or kept == round_to)


def test_masks_have_the_plain_names_and_one_entry_per_filter():
    model = bpl.build_model("resnet50", 5, 64, width=8)
    plain = bpl.prune_masks(model, 0.5, scope="all")
    sizes = {n: m.out_channels for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    assert {n: len(m) for n, m in plain.items()} == sizes and list(plain) == list(sizes)
    assert all(m.dtype == torch.bool and m.device.type == "cpu" for m in plain.values())
    grown_ = bpl.grow_partners(model)
    assert list(bpl.prune_masks(grown_, 0.5, scope="all")) == list(plain)
    assert list(bpl.prune_masks(bpl.fuse_partners(grown_), 0.5, scope="all")) == list(plain)


def test_ranking_leaves_the_model_alone():
    model = grown("resnet18")
    before = state(model)
    for criterion in CRITERIA:
        bpl.prune_masks(model, 0.5, criterion)
    assert same_state(before, model.state_dict())


def only(criterion: str, model: nn.Module, ratio: float = 0.5) -> torch.Tensor:
    return bpl.prune_masks(model, ratio, criterion)["stem.0"]


def smallest_go(scores: torch.Tensor, ratio: float = 0.5) -> torch.Tensor:
    mask = torch.ones(len(scores), dtype=torch.bool)
    mask[scores.argsort()[: int(len(scores) * ratio)]] = False
    return mask


def test_l1_and_l2_rank_by_their_norms():
    model = Net()
    weight = model.stem[0].weight.detach().flatten(1)
    assert torch.equal(only("l1", model), smallest_go(weight.abs().sum(1)))
    assert torch.equal(only("l2", model), smallest_go(weight.norm(dim=1)))


def test_gamma_ranks_by_its_absolute_value():
    model = randomise_statistics(Net())
    assert torch.equal(only("gamma", model), smallest_go(model.stem[1].weight.detach().abs()))


def test_folded_l2_ranks_the_kernel_that_ships():
    for model in (randomise_statistics(Net()), randomise_statistics(bpl.grow_partners(Net()))):
        if partner_blocks(model):
            shipped = bpl.fuse_partners(model).stem[0].weight
        else:
            norm = model.stem[1]
            shipped = model.stem[0].weight * (norm.weight / (norm.running_var + norm.eps).sqrt())[:, None, None, None]
        assert torch.equal(only("folded-l2", model), smallest_go(shipped.detach().flatten(1).norm(dim=1)))


def test_fpgm_is_the_sum_of_distances_to_all_other_filters():
    weight = torch.randn(7, 5, dtype=torch.float64)
    expected = torch.tensor([sum((a - b).square().sum().sqrt() for b in weight) for a in weight])
    got = fpgm(Filters(weight, weight, torch.ones(7), torch.Generator()))
    torch.testing.assert_close(got, expected.double(), rtol=1e-12, atol=0)
    model = Net()
    weight = model.stem[0].weight.detach().double().flatten(1)
    scores = torch.stack([(weight - w).norm(dim=1).sum() for w in weight])
    assert torch.equal(only("fpgm", model), smallest_go(scores))


def test_a_random_ranking_is_the_seeds_and_not_the_callers():
    model = Net()
    torch.manual_seed(1)
    one = bpl.prune_masks(model, 0.5, "random", seed=3)["stem.0"]
    torch.manual_seed(2)
    assert torch.equal(one, bpl.prune_masks(model, 0.5, "random", seed=3)["stem.0"])
    others = [bpl.prune_masks(model, 0.5, "random", seed=seed)["stem.0"] for seed in range(8)]
    assert len({tuple(mask.tolist()) for mask in others}) > 4


def test_a_block_is_ranked_by_its_original_branch():
    model = bpl.grow_partners(Net())
    original = model.stem[0].branches[0].conv.weight.detach().flatten(1).norm(dim=1)
    with torch.no_grad():
        model.stem[0].branches[1].conv.weight.mul_(100)
    assert torch.equal(only("l2", model), smallest_go(original))


def test_tied_layers_are_ranked_together_by_the_mean_of_normalised_scores():
    model = STRUCTURES["ResidualBeforeRelu"]()
    norms = [m.weight.detach().double().flatten(1).norm(dim=1) for m in (model.stem[0], model.b[0])]
    masks = bpl.prune_masks(model, 0.5, scope="all")
    expected = smallest_go(sum(n / n.mean() for n in norms))
    assert torch.equal(masks["stem.0"], expected) and torch.equal(masks["b.0"], expected)


def test_a_depthwise_convolution_shares_the_mask_of_the_one_before():
    masks = bpl.prune_masks(bpl.build_model("mobilenet_v2", 5, 32, width=8), 0.5)
    assert torch.equal(masks["features.2.conv.0.0"], masks["features.2.conv.1.0"])


# -- errors ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.5}, "ratio is 1.5: .*at least 0 and less than 1"),
        ({"ratio": 1}, "ratio is 1: "),
        ({"ratio": -0.1}, "ratio is -0.1: "),
        ({"ratio": float("nan")}, "ratio is nan: "),
        ({"round_to": 0}, "round_to is 0: .*at least 1"),
        ({"round_to": 2.5}, "round_to is 2.5: .*whole number"),
        ({"criterion": "l3"}, "unknown criterion 'l3': allowed are l1, l2, fpgm, gamma, folded-l2, random"),
        ({"criterion": ["l1"]}, "unknown criterion"),
        ({"scope": "outer"}, "unknown scope 'outer': allowed are inner, all"),
    ],
)
def test_a_bad_option_is_named_with_what_is_allowed(options, message):
    with pytest.raises(ValueError, match=message):
        bpl.prune_masks(Net(), **{"ratio": 0.5} | options)


class AllTied(WithA):
    """Every map is added to another, or goes through a sigmoid before it is read."""

    def forward(self, x):
        x = self.stem(x)
        return self.fc(torch.sigmoid(self.last(x + self.a(x))).mean((2, 3)))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), "its forward pass uses no convolution$"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3)), "1 of its 1 convolutions keep all filters, because it is the netw"),
        (
            AllTied,
            r"^nothing to prune in AllTied with scope 'inner': 2 of its 3 convolutions are tied by additions "
            r"\(scope 'all' prunes them too\); 1 of its 3 convolutions keep all filters, because 'fc' would read a",
        ),
    ],
)
def test_nothing_to_prune_is_an_error_that_says_why(model, message):
    with pytest.raises(ValueError, match=message):
        bpl.prune_masks(model(), 0.5)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"stem.9": torch.ones(WIDTH, dtype=torch.bool)}, "no convolution is called 'stem.9': .*stem.0"),
        ({"stem.1": torch.ones(WIDTH, dtype=torch.bool)}, "no convolution is called 'stem.1'"),
        ({"stem.0": torch.ones(5, dtype=torch.bool)}, r"'stem.0' is torch.bool of shape \(5,\): .*\(12,\)"),
        ({"stem.0": torch.ones(WIDTH, 1, dtype=torch.bool)}, r"shape \(12, 1\)"),
        ({"stem.0": torch.ones(WIDTH)}, "'stem.0' is torch.float32"),
        ({"stem.0": [True] * WIDTH}, "'stem.0' is a list: it must be a bool tensor"),
        ({"stem.0": torch.zeros(WIDTH, dtype=torch.bool)}, "'stem.0' keeps none of its 12 filters"),
    ],
)
@pytest.mark.parametrize("function", [bpl.apply_masks, bpl.slim], ids=["apply", "slim"])
def test_a_mask_that_does_not_fit_is_named_and_changes_nothing(function, masks, message):
    model = Net()
    before = state(model)
    with pytest.raises(ValueError, match=message):
        function(model, {"last.0": torch.arange(WIDTH) < 6} | masks)
    assert same_state(before, model.state_dict())


def test_a_weight_that_is_computed_cannot_be_masked():
    model = STRUCTURES["Parametrised"]()
    with pytest.raises(ValueError, match="'a' computes its weight from other parameters: it cannot be masked"):
        bpl.apply_masks(model, {"a": torch.arange(WIDTH) < 6})


def test_logits_of_a_network_are_of_evaluation_mode_and_every_mode_is_restored():
    model = Net().train()
    model.last[1].eval()
    modes, before = [m.training for m in model.modules()], state(model)
    x = images(size=SIZE, dtype=torch.float32)
    expected = copy.deepcopy(model).eval()(x)
    assert torch.equal(logits(model, x), expected)
    assert [m.training for m in model.modules()] == modes and same_state(before, model.state_dict())


# -- what cannot be ranked ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("criterion", ["l1", "l2", "fpgm", "folded-l2"])
def test_a_network_whose_weights_are_not_finite_cannot_be_ranked(criterion):
    """NaN compares with nothing: an order of such scores would be the order of the filters."""
    model = Net()
    model.stem[0].weight.data[3, 0] = float("nan")
    with pytest.raises(ValueError, match=f"criterion '{criterion}' cannot rank convolution 'stem.0': .*not all finite"):
        bpl.prune_masks(model, 0.5, criterion)


def test_a_convolution_without_a_gamma_cannot_be_ranked_by_it():
    fused = bpl.fuse_partners(bpl.grow_partners(Net()))
    with pytest.raises(ValueError, match="criterion 'gamma' cannot rank convolution 'stem.0': no batch normalisation"):
        bpl.prune_masks(fused, 0.5, "gamma")
    assert bpl.prune_masks(fused, 0.5)["stem.0"].sum() == WIDTH / 2


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"last.0": 3, "nonsense": 2}, "no convolution is called 'nonsense': the model's are stem.0, "),
        ([3], r"the widths are \[3\]: they must be a number of filters for a conv's name"),
        ({"last.0": 3}, "the width of 'stem.0' is None: it must be a whole number of 1 to 12"),
        ({"stem.0": 13, "last.0": 3}, "the width of 'stem.0' is 13: it must be a whole number of 1 to 12"),
    ],
)
def test_widths_that_do_not_fit_are_refused(widths, message):
    with pytest.raises(ValueError, match=message):
        bpl.prune_masks(Net(), 0.0, widths=widths)


def test_convolutions_that_share_their_channels_have_one_width():
    model = bpl.build_model("resnet18", 4, 32, 8)
    shared = next(s for s in ChannelGraph(model).sets if len(s.convs) > 2)
    widths = {name: s.size for s in ChannelGraph(model).sets for name in s.convs}
    with pytest.raises(ValueError, match="the widths of convolutions that share their channels differ: "):
        bpl.prune_masks(model, 0.0, scope="all", widths=widths | {shared.convs[1]: 3})
    name = shared.convs[0]
    with pytest.raises(ValueError, match=f"the width of '{name}' is 3: with scope 'inner' it keeps all of its "):
        bpl.prune_masks(model, 0.0, widths=widths | dict.fromkeys(shared.convs, 3))
    assert bpl.prune_masks(model, 0.0, widths=widths).keys() < widths.keys()  # all of its filters are what it keeps
    masks = bpl.prune_masks(model, 0.0, scope="all", widths=widths | dict.fromkeys(shared.convs, 3))
    assert {int(masks[name].sum()) for name in shared.convs} == {3}


class AddedToItself(Net):
    """An addition that ties no other convolution: both of its sides are made of one."""

    def __init__(self):
        super().__init__()
        self.a = block(WIDTH)

    def middle(self, x):
        x = self.a(x)
        return x + 0.1 * torch.relu(x)


def test_an_addition_of_a_map_with_itself_ties_it_to_nothing():
    model = AddedToItself().double()
    masks = bpl.prune_masks(model, 0.5)
    assert masks["a.0"].sum() == WIDTH / 2
    assert_exact(randomise_statistics(model), images(size=SIZE), masks)


class OfAnotherRank(Net):
    """A map times its mean over the width: with eight channels and eight rows the shapes fit, by chance."""

    def __init__(self):
        super().__init__()
        self.stem, self.last = block(3, SIZE), block(SIZE)

    def middle(self, x):
        return x * x.mean(3)


def test_maps_of_different_numbers_of_dimensions_are_left_whole():
    masks = bpl.prune_masks(OfAnotherRank(), 0.5)
    assert list(masks) == ["last.0"]


def test_held_readers_of_a_flattened_map_are_the_columns_of_the_channel():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).eval()
    x, masks = torch.randn(2, 3, 4, 4), {"0": torch.tensor([True, False, True, True])}
    expected = bpl.apply_masks(model, masks)(x)
    MaskHolder(model, masks, readers=True).apply()
    assert torch.equal(model(x), expected)
    assert (model[4].weight == 0).all(0).tolist() == [4 <= column < 8 for column in range(16)]


def test_a_channel_that_emits_a_constant_is_no_channel_of_zeros():
    model = bpl.build_model("resnet18", 4, 32, width=8)
    with torch.no_grad():
        model.layer1[0].bn1.weight[0] = 0
        model.layer1[0].bn1.bias[0] = 1  # emits 1 whatever the image
        model.layer1[1].bn1.weight[0] = 0
    found = {name: mask.logical_not().nonzero().flatten().tolist() for name, mask in masks_of_zeros(model).items()}
    assert found == {"layer1.1.conv1": [0]}
