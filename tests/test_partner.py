"""Extension and fusion: what grows, what stays as it is, and that fusing changes no logit."""

import copy

import pytest
import torch
from exactness import TOLERANCE, images, logits, randomise_statistics, relative_error, same_state, state
from little_networks import CONV_OPTIONS, STRUCTURES, WIDTH, Net, chain, conv
from torch import nn

import bpl
from bpl.partner import partner_blocks
from bpl.partner_conv import PartnerConv2d, fold_norm

SIZE = 8


def assert_fuses_exactly(model: nn.Module, x: torch.Tensor) -> nn.Module:
    before = state(model)
    fused = bpl.fuse_partners(model)
    assert same_state(before, model.state_dict())
    assert not partner_blocks(fused)
    error = relative_error(logits(fused, x), logits(model, x))
    assert error <= TOLERANCE[x.dtype], f"{error:.1e}"
    return fused


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet56", "vgg16_bn", "mobilenet_v2"])
def test_fused_logits_are_the_grown_ones(name, dtype):
    grown = bpl.grow_partners(bpl.build_model(name, 10, 32, width=8)).to(dtype)
    assert_fuses_exactly(randomise_statistics(grown), images(dtype=dtype))


@pytest.mark.parametrize("options", CONV_OPTIONS.values(), ids=CONV_OPTIONS)
def test_every_kind_of_convolution_fuses_exactly(options):
    grown = bpl.grow_partners(chain(**options)).double()
    assert len(partner_blocks(grown)) == 3
    assert_fuses_exactly(randomise_statistics(grown, tiny_variance=True), images(size=SIZE))


@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_structure_fuses_exactly(structure):
    grown = bpl.grow_partners(STRUCTURES[structure]()).double()
    assert_fuses_exactly(randomise_statistics(grown), images(size=SIZE))


def test_a_fused_convolution_is_the_sum_of_the_folded_branches():
    block = PartnerConv2d(conv(2, 3), nn.BatchNorm2d(3), stage=1).double()
    randomise_statistics(block)
    fused = block.fuse()
    kernel, bias = 0, 0
    for branch in block.branches:
        gamma, s = branch.norm.weight, (branch.norm.running_var + branch.norm.eps).sqrt()
        kernel = kernel + (gamma / s)[:, None, None, None] * branch.conv.weight
        bias = bias + branch.norm.bias + (branch.conv.bias - branch.norm.running_mean) * gamma / s
    torch.testing.assert_close(fused.weight, kernel, rtol=1e-14, atol=0)
    torch.testing.assert_close(fused.bias, bias, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("affine", [True, False])
def test_folding_is_the_normalisation_in_evaluation_mode(affine):
    layer, norm = conv(2, 3).double(), nn.BatchNorm2d(3, affine=affine, eps=0.1).double().eval()
    randomise_statistics(norm)
    kernel, bias = fold_norm(layer, norm)
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(nn.functional.conv2d(x, kernel, bias, padding=1), norm(layer(x)), rtol=1e-12, atol=1e-12)


def test_every_branch_starts_with_gamma_one_half_and_its_own_fresh_weights():
    model = bpl.build_model("resnet18", 5, 32, width=8)
    originals = {n: m.weight for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    for name, block in partner_blocks(bpl.grow_partners(model)).items():
        first, second = block.branches
        assert first.conv.weight is originals[name]  # trained weights are not lost
        assert not torch.equal(first.conv.weight, second.conv.weight)
        assert 0.5 < float(second.conv.weight.detach().std() / first.conv.weight.detach().std()) < 2
        for branch in block.branches:
            assert (branch.norm.weight == 0.5).all() and (branch.norm.bias == 0).all()
        assert (second.norm.running_mean == 0).all() and (second.norm.running_var == 1).all()


def test_a_trained_network_keeps_which_of_its_channels_count():
    layer, norm = conv(4, 6, bias=False), nn.BatchNorm2d(6)
    nn.init.uniform_(norm.weight, 0.1, 3)
    trained = norm.weight.detach().clone()
    first, second = PartnerConv2d(layer, norm, stage=1).branches
    torch.testing.assert_close(first.norm.weight.detach(), trained / 2, rtol=0, atol=0)
    assert (second.norm.weight == 0.5).all()


def test_two_fresh_branches_have_the_scale_of_one():
    layer, x = conv(16, 64, bias=False), torch.randn(16, 16, 8, 8)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out")
    block = PartnerConv2d(layer, nn.BatchNorm2d(64), stage=1).train()
    assert float(block(x).detach().std()) == pytest.approx(0.5 * 2**0.5, rel=0.05)


def test_what_has_a_kernel_of_two_to_six_and_a_normalisation_of_its_own_grows():
    kernels = {1: 0, 2: 1, 3: 1, 5: 1, 6: 1, 7: 0}
    for kernel, grown in kernels.items():
        model = nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), conv(4, 4, kernel), nn.BatchNorm2d(4))
        assert len(partner_blocks(bpl.grow_partners(model))) == 1 + grown, kernel


@pytest.mark.parametrize(
    ("structure", "grows"),
    [
        ("NoNorm", set()),
        ("OtherNorm", set()),
        ("NormWithoutAffine", set()),
        ("NormWithoutStatistics", set()),
        ("TwoReaders", set()),
        ("SharedConv", set()),
        ("SharedNorm", set()),
        ("NormUsedTwice", set()),
        ("WeightStandardisation", set()),
        ("Parametrised", set()),
        ("ActivationInNorm", set()),
        ("BorrowedWeight", set()),
        ("TiedWeights", set()),
        ("PreActivation", {"a"}),
        ("HarmlessSubclass", {"a"}),
        ("TwoNames", {"a"}),
        ("FunctionalRelu", {"a"}),
    ],
)
def test_a_layer_that_no_single_block_owns_is_left_alone(structure, grows):
    model = STRUCTURES[structure]()
    special = {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    blocks = set(partner_blocks(bpl.grow_partners(model)))
    assert blocks & special - {"stem.0", "last.0"} == grows


def test_a_block_with_two_names_grows_under_both():
    grown = bpl.grow_partners(STRUCTURES["TwoNames"]())
    assert isinstance(grown.a, PartnerConv2d) and grown.features[0] is grown.a
    assert isinstance(grown.n, nn.Identity) and grown.features[1] is grown.n


def test_the_released_networks_have_as_many_partners_as_the_paper():
    for name, blocks in (("resnet50", 16), ("resnet101", 33)):
        with torch.device("meta"):
            model = bpl.build_model(name, 5, 256, width=4)
        assert len(partner_blocks(bpl.grow_partners(model))) == blocks


def test_growing_twice_is_growing_once():
    grown = bpl.grow_partners(bpl.build_model("resnet18", 5, 32, width=8))
    before = state(grown)
    assert bpl.grow_partners(grown) is grown
    assert same_state(before, grown.state_dict())


def test_only_what_has_no_partner_yet_grows_one():
    model = nn.Sequential(conv(3, 4), nn.BatchNorm2d(4))
    bpl.grow_partners(model)
    first = model[0]
    model.append(conv(4, 4)).append(nn.BatchNorm2d(4))
    assert list(partner_blocks(bpl.grow_partners(model))) == ["0", "2"] and model[0] is first


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Flatten(), nn.Linear(12, 2)),
        nn.Sequential(conv(3, 4, 1), nn.BatchNorm2d(4)),
        nn.Sequential(conv(3, 4), nn.ReLU(), nn.BatchNorm2d(4)),
        nn.Sequential(conv(3, 4), nn.GroupNorm(2, 4)),
    ],
    ids=["no convolution", "1 x 1", "activation between", "GroupNorm"],
)
def test_nothing_to_grow_is_an_error_that_names_the_network(model):
    before = state(model)
    with pytest.raises(ValueError, match="nothing to grow in Sequential: none of its [01] convolutions"):
        bpl.grow_partners(model)
    assert same_state(before, model.state_dict())


class Twice(nn.Module):
    """One encoder for two images, as in networks that look for changes."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(conv(3, WIDTH), nn.BatchNorm2d(WIDTH), nn.ReLU())
        self.head = conv(2 * WIDTH, 2, 1)

    def forward(self, before, after):
        return self.head(torch.cat((self.encoder(before), self.encoder(after)), 1))


def test_a_part_that_is_used_twice_is_named_and_can_be_grown_by_itself():
    model = randomise_statistics(Twice().double())
    with pytest.raises(
        ValueError, match="of its 2 convolutions 1 are used more than once .*; no other one has a kernel"
    ):
        bpl.grow_partners(model)
    bpl.grow_partners(model.encoder)
    small = copy.deepcopy(randomise_statistics(model))
    small.encoder = bpl.fuse_partners(model.encoder)
    pair = images(size=SIZE), images(size=SIZE).flip(3)
    assert not torch.equal(*pair)
    assert bpl.check_same(model, small, pair) < 1e-12


def test_frozen_blocks_are_left_as_they_are():
    """A partner in them would change what they compute, and never learn."""
    model = Net()
    model.stem.requires_grad_(False)
    frozen = state(model.stem)
    grown = bpl.grow_partners(model)
    assert partner_blocks(grown) and not partner_blocks(grown.stem)
    assert same_state(frozen, grown.stem.state_dict())
    with pytest.raises(ValueError, match=r"of its 3 convolutions 3 are frozen \(requires_grad"):
        bpl.grow_partners(chain().requires_grad_(False))


def test_modes_are_kept_even_where_they_are_mixed():
    for training in (True, False):
        model = Net().train(training)
        model.last[1].train(not training)  # a normalisation frozen for fine-tuning, or the reverse
        grown = bpl.grow_partners(model)
        expected = {name: training for name, _ in grown.named_modules()}
        for name in ("last.0.branches.0.norm", "last.0.branches.1.norm", "last.1"):
            expected[name] = not training
        assert {name: module.training for name, module in grown.named_modules()} == expected
        assert bpl.fuse_partners(grown).last[0].training is training


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtype_is_kept(dtype):
    grown = bpl.grow_partners(Net().to(dtype))
    for model in (grown, bpl.fuse_partners(grown)):
        assert {p.dtype for p in model.parameters()} == {dtype}


def test_device_is_kept():
    grown = bpl.grow_partners(Net().to("meta"))
    for model in (grown, bpl.fuse_partners(grown)):
        assert {t.device.type for t in model.state_dict().values()} == {"meta"}


def test_memory_format_is_kept():
    grown = bpl.grow_partners(Net().to(memory_format=torch.channels_last))
    for model in (grown, bpl.fuse_partners(grown)):
        kernels = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]
        assert kernels and all(w.is_contiguous(memory_format=torch.channels_last) for w in kernels)


def test_what_is_not_trained_stays_not_trained():
    model = Net()
    model.last.requires_grad_(False)
    grown = bpl.grow_partners(model)
    fused = bpl.fuse_partners(grown)
    for network in (grown, fused):
        assert not any(p.requires_grad for p in network.last.parameters())
        assert all(p.requires_grad for p in network.stem.parameters())


def test_fusing_a_network_without_partners_copies_it():
    model = Net()
    copied = bpl.fuse_partners(model)
    assert copied is not model and same_state(copied.state_dict(), model.state_dict())
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in copied.parameters()}


def test_a_fused_network_is_made_of_ordinary_modules():
    fused = bpl.fuse_partners(bpl.grow_partners(bpl.build_model("resnet50", 5, 64, width=8)))
    assert all(type(module).__module__.startswith(("torch.nn", "torchvision")) for module in fused.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in fused.modules())
    conv2 = fused.layer1[0].conv2
    assert conv2.bias is not None and type(fused.layer1[0].bn2) is nn.Identity


def test_a_subclass_of_convolution_stays_what_it_is():
    grown = randomise_statistics(bpl.grow_partners(STRUCTURES["HarmlessSubclass"]().double()))
    fused = assert_fuses_exactly(grown, images(size=SIZE))
    assert type(fused.a).__name__ == "SamePaddingConv"


def test_a_grown_network_trains_every_branch():
    grown = bpl.grow_partners(Net()).train()
    grown(images(4, SIZE, torch.float32)).square().sum().backward()
    for block in partner_blocks(grown).values():
        for parameter in block.parameters():
            assert parameter.grad is not None
            assert parameter.grad.abs().sum() > 0 or parameter.dim() == 1  # a bias before a normalisation has no effect


def test_fusing_after_training_steps_is_exact():
    grown = bpl.grow_partners(Net()).double().train()
    optimizer = torch.optim.SGD(grown.parameters(), 0.05, momentum=0.9)
    for step in range(5):
        grown(images(4, SIZE, seed=step)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert_fuses_exactly(grown, images(size=SIZE))


def test_a_block_reparameterizes_itself_in_place():
    grown = randomise_statistics(bpl.grow_partners(Net()).double()).eval()
    expected = grown(images(size=SIZE)).detach()
    for block in partner_blocks(grown).values():
        block.reparameterize()
        assert type(block) is nn.Conv2d and not block.training
    assert relative_error(grown(images(size=SIZE)).detach(), expected) < 1e-12
    assert same_state(state(copy.deepcopy(grown)), state(grown))


@pytest.mark.parametrize("inplace", [True, False])
def test_timm_fuses_partners_too(inplace):
    from timm.utils.model import reparameterize_model

    grown = randomise_statistics(bpl.grow_partners(bpl.build_model("resnet18", 5, 32, width=8)).double()).eval()
    expected = grown(images()).detach()
    fused = reparameterize_model(grown, inplace=inplace)
    assert (fused is grown) is inplace and not partner_blocks(fused)
    assert relative_error(fused(images()).detach(), expected) < 1e-12


def test_state_of_a_grown_network_loads_into_another():
    one, other = (bpl.grow_partners(Net()) for _ in range(2))
    other.load_state_dict(one.state_dict())
    x = images(size=SIZE, dtype=torch.float32)
    assert torch.equal(logits(one, x), logits(other, x))
    assert one.stem[0].branches[0].conv.weight.shape == (WIDTH, 3, 3, 3)


class Listed(nn.Module):
    """Goes through a plain list of its own layers, of some of them or of all."""

    def __init__(self, registered_only: bool):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.conv, self.norm, self.act = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        self.steps = {"second": [self.conv, (self.norm, self.act)]}
        if not registered_only:
            self.steps["first"] = list(self.first)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        for layer in self.steps.get("first", self.first):
            x = layer(x)
        conv, (norm, act) = self.steps["second"]
        return self.head(act(norm(conv(x))).mean((2, 3)))


def test_a_layer_that_a_plain_list_holds_gets_no_partner_that_the_forward_pass_would_miss():
    grown = bpl.grow_partners(Listed(registered_only=True)).double()
    assert list(partner_blocks(grown)) == ["first.0"]
    grown(images(size=SIZE)).sum().backward()
    assert all(parameter.grad is not None for parameter in grown.parameters())  # each of them is used
    assert_fuses_exactly(randomise_statistics(grown), images(size=SIZE))


def test_a_network_whose_layers_all_are_in_plain_lists_is_refused_by_what_to_do():
    with pytest.raises(ValueError, match=r"2 are held in a plain list too.*nn\.ModuleList"):
        bpl.grow_partners(Listed(registered_only=False))
