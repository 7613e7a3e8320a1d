"""The channel analysis: what may go, what may not and why, and how it sees the network's geometry."""

import pytest
import torch
from little_networks import STRUCTURES, WIDTH, Net, chain
from torch import nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel

import bpl
from bpl.channels import ChannelGraph
from bpl.pruning.masks import prunable_sets

ALL_OF_NET = {"stem.0", "last.0"}


def prunable(model: nn.Module, scope: str) -> set[str]:
    return {name for channels in prunable_sets(ChannelGraph(model), scope) for name in channels.convs}


@pytest.mark.parametrize(
    ("structure", "inner", "everything"),
    [
        ("FunctionalRelu", ALL_OF_NET | {"a", "b"}, set()),
        ("FlattenMap", ALL_OF_NET, set()),
        ("ViewMap", ALL_OF_NET, set()),
        ("Concatenation", ALL_OF_NET, set()),
        ("Gate", ALL_OF_NET | {"a.0", "reduce", "expand"}, set()),
        ("LinearGate", ALL_OF_NET, set()),
        ("SigmoidThenConv", {"last.0"}, set()),
        ("PlusOne", {"last.0"}, set()),
        ("SpatialGate", {"last.0"}, set()),
        ("BroadcastAdd", {"last.0"}, set()),
        ("ResidualBeforeRelu", {"a.0", "last.0"}, {"stem.0", "b.0"}),
        ("ResidualAfterRelu", {"last.0"}, {"stem.0", "a.0", "b.0"}),
        ("PreActivation", {"a", "last.0"}, {"stem.0", "b"}),
        ("OtherNorm", ALL_OF_NET, set()),
        ("NoNorm", ALL_OF_NET | {"a", "b"}, set()),
        ("NormWithoutAffine", ALL_OF_NET, set()),
        ("NormWithoutStatistics", ALL_OF_NET | {"a"}, set()),
        ("SharedConv", {"last.0"}, set()),
        ("SharedNorm", ALL_OF_NET, set()),
        ("TiedWeights", {"last.0"}, set()),
        ("BorrowedWeight", {"last.0"}, set()),
        ("SlopePerChannel", ALL_OF_NET, set()),
        ("LayerScale", {"last.0"}, set()),
        ("ScalarScale", ALL_OF_NET, set()),
        ("SlicedChannels", {"last.0"}, set()),
        ("SlicedSpace", ALL_OF_NET, set()),
        ("Chunks", {"last.0"}, set()),
        ("PaddedShortcut", {"a.0.0", "last.0"}, set()),
        ("PaddedWithOnes", {"last.0"}, set()),
        ("PaddedWithZeros", ALL_OF_NET, set()),
        ("DividedByWidth", {"last.0"}, set()),
        ("LinearAlongWidth", {"last.0"}, set()),
        ("ChannelMean", {"stem.0"}, set()),
        ("MeanTwice", ALL_OF_NET, set()),
        ("WeightStandardisation", {"last.0"}, set()),
        ("HarmlessSubclass", ALL_OF_NET | {"a"}, set()),
        ("Parametrised", {"last.0"}, set()),
        ("ActivationInNorm", ALL_OF_NET, set()),
        ("Transposed", {"last.0"}, set()),
        ("Resampled", ALL_OF_NET, set()),
        ("DepthwiseOnInput", ALL_OF_NET, set()),
        ("DepthwiseAfterConcatenation", {"last.0"}, set()),
        ("InvertedResidual", {"expand.0", "wise.0", "last.0"}, {"stem.0", "project.0"}),
        ("PatchedActivation", {"last.0"}, set()),
        ("PatchedNorm", ALL_OF_NET, set()),
        ("ClosedActivation", {"last.0"}, set()),
        ("ClosedPool", ALL_OF_NET, set()),
        ("EqualisedRateIn", {"last.0"}, set()),
        ("EqualisedRateOut", {"last.0"}, set()),
        ("PooledRows", {"stem.0"}, set()),
        ("PooledRowsByModule", {"stem.0"}, set()),
        ("PaddedVector", {"stem.0"}, set()),
        ("PlusZero", ALL_OF_NET, set()),
        ("PlusThreeByName", {"last.0"}, set()),
        ("SwishByHand", ALL_OF_NET, set()),
        ("SlopeTwice", ALL_OF_NET | {"a"}, set()),
        ("Flag", ALL_OF_NET, set()),
        ("OptionalActivation", {"last.0"}, set()),
        ("KeepsItsMap", ALL_OF_NET, set()),
        ("ReadsKernelSize", ALL_OF_NET | {"a.0"}, set()),
    ],
)
def test_exactly_the_channels_that_can_go_are_prunable(structure, inner, everything):
    model = STRUCTURES[structure]()
    assert prunable(model, "inner") == inner
    assert prunable(model, "all") == inner | everything


@pytest.mark.parametrize(
    ("structure", "conv", "reason"),
    [
        ("Concatenation", "a.0", "cat"),
        ("SigmoidThenConv", "stem.0", "not 0"),
        ("LayerScale", "stem.0", "not known"),
        ("BroadcastAdd", "stem.0", "broadcast"),
        ("SharedConv", "a", "used 2 times"),
        ("TiedWeights", "a.0", "used 2 times"),
        ("SlopePerChannel", "a", "slope per channel"),
        ("WeightStandardisation", "a", "computes its weights"),
        ("NormWithoutAffine", "a", "no gamma and beta"),
        ("ActivationInNorm", "a", "not 0 where gamma and beta are"),
        ("DividedByWidth", "stem.0", "number of channels"),
        ("OtherNorm", "a", "GroupNorm"),
    ],
)
def test_a_frozen_set_says_why(structure, conv, reason):
    assert reason in ChannelGraph(STRUCTURES[structure]()).of_conv[conv].frozen


def test_a_map_that_the_forward_pass_keeps_is_in_nobodys_way(tmp_path):
    model = bpl.grow_partners(STRUCTURES["KeepsItsMap"]())
    assert not hasattr(model, "kept")  # nothing of the analysis stays on the network
    x = torch.randn(2, 3, 8, 8)
    model(x).sum().backward()
    before = model.kept
    small = bpl.slim(bpl.fuse_partners(model), bpl.prune_masks(model, 0.5))
    assert model.kept is before and not small.kept.requires_grad
    assert bpl.count_macs(small, 8) < bpl.count_macs(model, 8)
    torch.save(small, tmp_path / "small.pt")
    prune.l1_unstructured(model.fc, "weight", 0.5)  # a weight with a history, and no parameter
    assert torch.equal(bpl.fuse_partners(model.eval()).fc.weight, model.fc.weight)


def test_a_forward_pass_on_the_object_itself_is_refused():
    model = Net()
    model.forward = lambda x: torch.sigmoid(Net.forward(model, x))
    with pytest.raises(ValueError, match="^cannot trace this Net: its forward pass was replaced on the object"):
        bpl.grow_partners(model)


@pytest.mark.parametrize(
    ("wrapped", "error", "message"),
    [
        (nn.DataParallel, ValueError, "this DataParallel: give it the network inside, model.module"),
        (AveragedModel, ValueError, "this AveragedModel: give it the network inside, model.module"),
        (torch.compile, ValueError, "this OptimizedModule: give it the network that was compiled"),
        (torch.jit.script, ValueError, "this RecursiveScriptModule: give it the network that was scripted"),
        (lambda _: "resnet18", TypeError, "the model is 'resnet18', a str: it must be a torch.nn.Module"),
    ],
    ids=["DataParallel", "averaged", "compiled", "scripted", "no network"],
)
def test_a_wrapper_is_refused_with_where_the_network_is(wrapped, error, message, tmp_path):
    model = wrapped(bpl.build_model("resnet18", 5, 32, width=8))
    for function in (
        bpl.grow_partners,
        lambda model: bpl.prune_masks(model, 0.5),
        lambda model: bpl.slim(model, {}),
        lambda model: bpl.save_model(model, tmp_path / "net"),
        lambda model: bpl.export_onnx(model, tmp_path / "net.onnx", 32),
    ):
        with pytest.raises(error, match=message):
            function(model)
    assert not list(tmp_path.iterdir())


def test_inner_of_the_known_networks_is_what_the_design_says():
    resnet50 = prunable(bpl.build_model("resnet50", 5, 256, width=8), "inner")
    assert "conv1" in resnet50 and "layer1.0.conv1" in resnet50 and "layer4.2.conv2" in resnet50
    assert not any(name.endswith(("conv3", "downsample.0")) for name in resnet50) and len(resnet50) == 1 + 2 * 16
    resnet18 = prunable(bpl.build_model("resnet18", 5, 64, width=8), "inner")
    assert resnet18 == {f"layer{stage}.{block}.conv1" for stage in (1, 2, 3, 4) for block in (0, 1)}
    vgg = bpl.build_model("vgg16_bn", 5, 64, width=8)
    convs = {name for name, module in vgg.named_modules() if isinstance(module, nn.Conv2d)}
    assert prunable(vgg, "inner") == convs
    mobilenet = bpl.build_model("mobilenet_v2", 5, 64, width=8)
    depthwise = {n for n, m in mobilenet.named_modules() if isinstance(m, nn.Conv2d) and m.groups > 1}
    assert depthwise <= prunable(mobilenet, "inner")


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet56"])
def test_with_scope_all_every_channel_of_a_residual_network_may_go(name):
    model = bpl.build_model(name, 5, 64, width=8)
    assert prunable(model, "all") == {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}


def test_the_analysis_is_the_same_with_partners_and_after_fusing():
    model = bpl.build_model("mobilenet_v2", 5, 32, width=8)

    def seen(network):
        return [(s.size, s.convs, s.readers, s.tied, s.frozen) for s in ChannelGraph(network).sets]

    plain = seen(model)
    grown = bpl.grow_partners(model)
    assert seen(grown) == plain
    assert seen(bpl.fuse_partners(grown)) == plain


def test_strides_count_convolutions_and_pooling_modules_and_calls():
    class Pools(Net):
        def middle(self, x):
            return nn.functional.avg_pool2d(nn.functional.max_pool2d(x, 2), kernel_size=2, stride=(1, 1))

    class Modules(nn.Sequential):
        def __init__(self):
            super().__init__(*chain(stride=2, padding=1))
            self.insert(1, nn.MaxPool2d(3, 2, 1))

    assert {name: site.stride for name, site in ChannelGraph(Pools()).sites.items()} == {"stem.0": 1, "last.0": 2}
    assert [site.stride for site in ChannelGraph(Modules()).sites.values()] == [1, 4, 4]


def test_stages_of_resnet50_are_its_four():
    blocks = bpl.partner.partner_blocks(bpl.grow_partners(bpl.build_model("resnet50", 5, 256, width=8)))
    assert {(name.split(".")[0], block.stage) for name, block in blocks.items()} == {
        ("layer1", 4),
        ("layer2", 8),
        ("layer3", 16),
        ("layer4", 32),
    }


def test_a_linear_reader_of_a_map_reads_height_times_width_features_per_channel():
    readers = ChannelGraph(STRUCTURES["FlattenMap"]()).of_conv["last.0"].readers
    assert readers == [("fc", 16)]


def test_the_analysis_leaves_the_chance_of_the_caller_alone():
    torch.manual_seed(3)
    ChannelGraph(STRUCTURES["HarmlessSubclass"]())
    after = torch.rand(1)
    torch.manual_seed(3)
    STRUCTURES["HarmlessSubclass"]()
    assert torch.equal(after, torch.rand(1))


def test_a_forward_pass_that_branches_on_values_is_refused_in_one_sentence():
    class Branching(Net):
        def middle(self, x):
            return x if x.sum() > 0 else -x

    for function in (bpl.grow_partners, lambda m: bpl.prune_masks(m, 0.5), lambda m: bpl.slim(m, {})):
        with pytest.raises(
            ValueError, match="cannot trace Branching: torch.fx cannot follow its forward pass"
        ) as caught:
            function(Branching())
        assert "\n" not in str(caught.value)


def test_sizes_are_the_convolutions_own_even_where_the_input_is_not_known():
    graph = ChannelGraph(STRUCTURES["DepthwiseAfterConcatenation"]())
    assert graph.of_conv["wise.0"].size == 2 * WIDTH
    assert ChannelGraph(STRUCTURES["BroadcastAdd"]()).of_conv["stem.0"].size == WIDTH


def test_a_word_that_the_forward_pass_takes_is_taken_at_its_default():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.na = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
            self.b, self.nb = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
            self.fc = nn.Linear(8, 4)

        def forward(self, x, mode="logits"):
            x = self.nb(self.b(self.na(self.a(x)).relu())).mean((2, 3))
            return self.fc(x) if mode == "logits" else x

    net = Net().eval()
    small = bpl.slim(net, bpl.prune_masks(net, 0.5))
    assert small.a.out_channels == 4 and small(torch.rand(1, 3, 16, 16)).shape == (1, 4)
