"""Networks this library has never heard of: what grows, what is pruned, and that all of it is exact.

`foreign_matrix` takes each network through the README's lines and asks torch-pruning for a second opinion. What it
wrote to data/results is compared here with what the code gives today: with `-m slow` for all, else for the smallest.
"""

import copy
import json

import foreign_matrix
import pytest
import timm
import torch
from exactness import assert_exact, images, logits, randomise_statistics, relative_error
from foreign_matrix import NETWORKS, RECORD, build, examine
from little_networks import WIDTH, Net, conv
from torch import nn
from torchvision import models as tv

import bpl
from bpl.channels import ChannelGraph
from bpl.norm_act import take_apart
from bpl.partner import partner_blocks
from bpl.report import foreign

# How many blocks get a partner, counted in the networks' own code: k x k convolutions with a batch normalisation each.
PARTNERS = {
    "torchvision/resnet18": 16, "torchvision/resnet50": 16, "torchvision/vgg11_bn": 8, "torchvision/mobilenet_v2": 18,
    "torchvision/regnet_x_400mf": 23, "torchvision/regnet_y_400mf": 17, "torchvision/efficientnet_b0": 17,
    "torchvision/densenet121": 0, "torchvision/convnext_tiny": 0,
    "timm/resnet18": 16, "timm/resnet50": 16, "timm/vgg11_bn": 8, "timm/mobilenetv2_100": 18, "timm/regnetx_002": 14,
    "timm/regnety_002": 14, "timm/efficientnet_b0": 17, "timm/tf_efficientnet_b0": 17, "timm/densenet121": 0,
    "timm/convnext_atto": 0,
    "torchvision/alexnet": 0, "torchvision/googlenet": 19, "torchvision/mnasnet0_5": 18,
    "torchvision/mobilenet_v3_small": 12, "torchvision/resnext50_32x4d": 16, "torchvision/shufflenet_v2_x0_5": 20,
    "torchvision/squeezenet1_1": 0, "torchvision/wide_resnet50_2": 16,
    "timm/ghostnet_100": 42, "timm/mobilenetv3_small_050": 12, "timm/repvgg_a0": 22, "timm/resnet26d": 11,
    "timm/seresnet18": 16,
}  # fmt: skip
FAST = ("timm/regnetx_002", "timm/mobilenetv3_small_050", "torchvision/squeezenet1_1")
NO_SECOND_OPINION = ("torchvision/shufflenet_v2_x0_5",)  # torch-pruning 1.6 stops with an error at its channel shuffle
ALL_TIED = ("timm/repvgg_a0",)  # additions join every channel to another: nothing to prune with scope "inner"
OUT_OF_REACH = ("torchvision/convnext_tiny",)  # nothing to grow and nothing to prune


@pytest.fixture(scope="module")
def recorded() -> dict[str, dict]:
    return {row["network"]: row for row in json.loads(RECORD.read_text())}


# -- the matrix ---------------------------------------------------------------------------------------------------
def test_the_recorded_matrix_is_whole_and_everything_in_it_holds(recorded):
    assert tuple(recorded) == NETWORKS and PARTNERS.keys() == recorded.keys()
    for network, row in recorded.items():
        assert row["partners"] == PARTNERS[network]
        assert (row["no_partners"] is None) == (row["partners"] > 0)
        assert row["trains"] == (True if row["partners"] else None)
        answers = [row[name] for name in ("exact", "comes_back", "onnx_agrees", "torch_pruning_agrees")]
        if network in OUT_OF_REACH:
            assert row["no_pruning"] and answers == [None] * 4
        else:
            assert (row["no_pruning"] is not None) == (network in ALL_TIED)
            assert answers == [True] * 3 + [None if network in NO_SECOND_OPINION else True]
            assert (
                row["macs_all"] < row["macs"] and row["macs_all"] <= (row["macs_inner"] or row["macs"]) <= row["macs"]
            )


@pytest.mark.parametrize(
    "network", [pytest.param(one, marks=[] if one in FAST else [pytest.mark.slow]) for one in NETWORKS]
)
def test_a_network_does_what_is_recorded(network, recorded):
    fast = network in FAST
    row, expected = examine(network, onnx=not fast), dict(recorded[network])
    if fast:  # torch's exporter takes seconds
        del row["onnx_agrees"], expected["onnx_agrees"]
    assert row == expected


def test_the_pages_tables_say_what_is_recorded(recorded):
    rows = list(recorded.values())
    table = foreign.networks_table(rows, "A caption.", "tab-x").text
    lines = {tuple(line.split(" | ")[:2]): line.split(" | ") for line in table.splitlines() if line.startswith("| `")}
    assert len(lines) == len(NETWORKS)
    cells = lines["| `regnetx_002`", "timm"]
    row = recorded["timm/regnetx_002"]
    assert cells[2] == f"{row['partners']} of {row['convolutions']}"
    assert float(cells[5].replace("−", "-")) == pytest.approx(100 * (row["macs_all"] / row["macs"] - 1), abs=0.005)
    failed = foreign.networks_table([row | {"exact": False}], "A caption.", "tab-x").text
    assert cells[6] == "✓" and "✗" in failed and "✗" not in table
    reasons = foreign.reasons_table(rows, "A caption.", "tab-y").text
    assert "timm `vgg11_bn` 1" in reasons and reasons.count("\n| ") == len({*_reasons(rows)}) + 2
    with pytest.raises(ValueError, match="no words for the reason 'it is Monday'"):
        foreign.reasons_table([row | {"left_alone": {"it is Monday": 1}}], "A caption.", "tab-y")


def _reasons(rows: list[dict]) -> list[str]:
    return [foreign.in_words(reason) for row in rows for reason in row["left_alone"]]


def test_a_second_opinion_that_differs_is_seen():
    """The oracle is asked, and its answer counts: it removes other channels than the ones that were masked."""
    model = randomise_statistics(build("torchvision/squeezenet1_1").double().eval())
    masks = bpl.prune_masks(model, 0.5)
    x, masked = images(2, 64), bpl.apply_masks(copy.deepcopy(model), masks)
    small = bpl.slim(model, masks)
    assert foreign_matrix.oracle_agrees(copy.deepcopy(masked), small, masks, "inner", x)
    others = masks | {"features.0": ~masks["features.0"]}
    assert not foreign_matrix.oracle_agrees(masked, small, others, "inner", x)


# -- what is left alone, and said so ------------------------------------------------------------------------------
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


def test_random_depth_of_residual_branches_keeps_no_channel():
    """torchvision's EfficientNet scales whole branches of single images: a channel of zeros stays one."""
    assert foreign_matrix.left_alone(tv.efficientnet_b0(num_classes=7)) == {}


@pytest.mark.parametrize("training", [True, False])
def test_googlenets_heads_for_training_are_grown_and_slimmed_with_the_rest(training):
    model = tv.googlenet(num_classes=7, aux_logits=True, init_weights=False).train(training)
    randomise_statistics(bpl.grow_partners(model).double())
    masks = bpl.prune_masks(model, 0.5)
    assert {"aux1.conv.conv", "aux2.conv.conv"} <= masks.keys()
    small = assert_exact(model, images(), masks)
    assert small.aux1.conv.conv.out_channels == 64
    assert small.train()(images()).aux_logits1.shape == (len(images()), 7)


def test_timms_stochastic_depth_fixes_no_channel_in_either_mode():
    model = timm.create_model("efficientnet_b0", drop_path_rate=0.2, num_classes=7)
    plain = timm.create_model("efficientnet_b0", num_classes=7)
    modes = [bpl.prune_masks(net, 0.5, scope="all").keys() for net in (model.train(), model.eval(), plain)]
    assert modes[0] == modes[1] == modes[2]


def test_the_input_size_does_not_matter():
    model = bpl.grow_partners(timm.create_model("mobilenetv3_small_050", num_classes=7)).double().eval()
    model = randomise_statistics(model)
    assert_exact(model, images(2, 33), bpl.prune_masks(model, 0.5))


def test_partners_of_a_foreign_network_train():
    model = bpl.grow_partners(tv.efficientnet_b0(num_classes=3)).train()
    loss = model(torch.randn(4, 3, 32, 32)).square().mean() + bpl.diversity_loss(model)
    loss.backward()
    for block in partner_blocks(model).values():
        assert block.branches[1].conv.weight.grad.abs().sum() > 0


# -- normalisations that hold their activation --------------------------------------------------------------------
class NormAct(nn.BatchNorm2d):
    """As timm's BatchNormAct2d."""

    def __init__(self, channels: int, act: nn.Module | None = None):
        super().__init__(channels)
        self.drop, self.act = nn.Dropout(0.5), act or nn.SiLU()

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


class ActFirst(NormAct):
    def forward(self, x):
        return nn.BatchNorm2d.forward(self, self.act(x))


class Louder(NormAct):
    """Says nothing of the factor in its children."""

    def forward(self, x):
        return 2 * super().forward(x)


class OnlyInTraining(NormAct):
    def forward(self, x):
        return super().forward(x) if self.training else nn.BatchNorm2d.forward(self, x)


class OneMoreParameter(NormAct):
    def __init__(self, channels: int):
        super().__init__(channels)
        self.shift = nn.Parameter(torch.zeros(channels, 1, 1))


class WithNormAct(Net):
    def __init__(self, norm: type = NormAct):
        super().__init__()
        self.a, self.n, self.b = conv(), norm(WIDTH), conv()

    def middle(self, x):
        return self.b(self.n(self.a(x)))


@pytest.mark.parametrize("training", [True, False])
def test_a_normalisation_is_taken_apart_into_its_own_parts(training):
    norm = randomise_statistics(nn.Sequential(NormAct(5))).double()[0].train(training)
    plain, rest = take_apart(norm)
    assert type(plain) is nn.BatchNorm2d and type(rest) is nn.Sequential and list(rest) == [norm.drop, norm.act]
    assert plain.weight is norm.weight and plain.running_var is norm.running_var
    assert {plain.training, rest.training, rest[0].training} == {training}
    x = torch.randn(3, 5, 4, 4, dtype=torch.float64)
    expected, parts = copy.deepcopy(norm), copy.deepcopy(nn.Sequential(plain, rest))
    torch.manual_seed(1)
    once = expected(x)
    torch.manual_seed(1)
    assert torch.equal(parts(x), once)
    assert torch.equal(parts[0].running_mean, expected.running_mean)


def test_taking_apart_changes_no_layer_and_no_chance():
    norm = NormAct(5)
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    take_apart(norm)
    assert torch.equal(torch.rand(4), expected)
    assert all(torch.equal(norm.state_dict()[name], tensor) for name, tensor in before.items()) and norm.training


@pytest.mark.parametrize("norm", [ActFirst, Louder, OnlyInTraining, OneMoreParameter, nn.InstanceNorm2d])
def test_what_is_more_than_a_normalisation_and_its_layers_is_not_taken_apart(norm):
    assert take_apart(norm(WIDTH)) is None
    model = WithNormAct(norm)
    bpl.grow_partners(model)
    assert partner_blocks(model).keys() == {"stem.0", "last.0"} and isinstance(model.n, norm)


def test_a_normalisation_that_is_left_alone_is_named():
    model = nn.Sequential(conv(3), Louder(WIDTH))
    with pytest.raises(ValueError, match="nothing to grow.*Louder is not a batch normalisation and other layers after"):
        bpl.grow_partners(model)


@pytest.mark.parametrize("act", [nn.ReLU, nn.Identity, nn.Hardswish, nn.Sigmoid])
def test_a_block_with_its_activation_in_the_normalisation_grows_exactly_and_comes_back(act, tmp_path):
    def fresh():
        return WithNormAct(lambda channels: NormAct(channels, act()))

    model = randomise_statistics(bpl.grow_partners(fresh()).double()).eval()
    assert partner_blocks(model).keys() == {"stem.0", "a", "last.0"}
    x = images(size=8)
    small = assert_exact(model, x, bpl.prune_masks(model, 0.5))
    assert small.a.out_channels == (WIDTH if act is nn.Sigmoid else WIDTH // 2)  # sigmoid(0) is read as 1/2
    bpl.save_model(small, tmp_path / "net")
    assert torch.equal(logits(bpl.load_model(tmp_path / "net", fresh()), x), logits(small, x))


# -- linear layers of a class of their own ------------------------------------------------------------------------
class OwnForward(nn.Linear):
    """As timm's Linear."""

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight, self.bias)


class ByPosition(nn.Linear):
    """Weighs its inputs by where they stand: it cannot lose one."""

    def forward(self, x):
        return super().forward(x * torch.arange(self.in_features).to(x))


@pytest.mark.parametrize(("kind", "kept"), [(OwnForward, WIDTH // 2), (ByPosition, WIDTH)])
def test_a_linear_layer_that_only_multiplies_is_one(kind, kept):
    model = Net()
    model.fc = kind(WIDTH, 5)
    model = randomise_statistics(model.double()).eval()
    small = assert_exact(model, images(size=8), bpl.prune_masks(model, 0.5))
    assert small.last[0].out_channels == small.fc.in_features == kept


# -- parts that cannot be traced ----------------------------------------------------------------------------------
class Branching(nn.Module):
    """Its forward pass depends on the values that it gets."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = conv(), nn.BatchNorm2d(WIDTH)

    def forward(self, x):
        y = self.norm(self.conv(x))
        return y if x.mean() > 0 else -y


class WithBranching(Net):
    def __init__(self):
        super().__init__()
        self.a, self.part = nn.Sequential(conv(), nn.BatchNorm2d(WIDTH), nn.ReLU()), nn.Sequential(Branching())

    def middle(self, x):
        return self.part(self.a(x))


def test_a_part_that_cannot_be_traced_is_left_whole_and_the_rest_is_exact():
    model = WithBranching()
    graph = ChannelGraph(model)
    assert graph.closed.keys() == {"part.0"} and "TraceError" in graph.closed["part.0"]
    assert graph.of_conv["a.0"].frozen == "Branching reads it, and what that does to single channels is not known"
    assert [node.name for node in graph.traced.nodes if "part" in node.name] == ["part_0"]  # no half of it is left
    model = randomise_statistics(bpl.grow_partners(model).double()).eval()
    assert partner_blocks(model).keys() == {"stem.0", "a.0", "last.0"}
    masks = bpl.prune_masks(model, 0.5)
    assert masks.keys() == {"stem.0", "last.0"}
    for x in (images(size=8), -images(size=8)):
        assert relative_error(logits(model, x), logits(bpl.fuse_partners(model), x)) < 1e-12
        assert_exact(model, x, masks)


def test_where_nothing_else_is_left_the_part_is_named():
    model = nn.Sequential(Branching(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match=r"nothing to grow in Sequential.*; '0' cannot be traced \(TraceError: "):
        bpl.grow_partners(model)
    with pytest.raises(ValueError, match=r"nothing to prune in Sequential.*; '0' cannot be traced"):
        bpl.prune_masks(model, 0.5)


# -- modules that ask for their version ---------------------------------------------------------------------------
class Versioned(Net):
    """As torchvision's MNASNet."""

    _version = 2

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *others):
        if local_metadata.get("version") != 2:
            raise ValueError(f"version should be 2 instead of {local_metadata.get('version')}")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *others)


def test_a_module_that_asks_for_its_version_comes_back(tmp_path):
    model = Versioned().eval()
    bpl.save_model(model, tmp_path / "net")
    x = images(size=8, dtype=torch.float32)
    assert torch.equal(logits(bpl.load_model(tmp_path / "net", Versioned()), x), logits(model, x))
