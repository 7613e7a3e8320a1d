"""Widths for a target: the search against all choices, the cost models against counting, targets met and refused."""

import itertools
import json
import random
import statistics

import pytest
import torch
from support import (  # noqa: F401
    interrupted,
    no_stopwatch_fixture,
    places_fixture,
    run_module,
    same_weights,
    small,
    trained,
    tree_fixture,
)

import bpl
from bpl import hardware, layer_times, widths_file
from bpl.channels import ChannelGraph
from bpl.cli import main
from bpl.config import RunConfig
from bpl.defaults import METHODS
from bpl.hardware import widths_for
from bpl.layer_times import LatencyCost, Layer, LayerTimes, layers_of
from bpl.machine.this_machine import machine, processor
from bpl.measure import count_macs, count_params
from bpl.methods import targeted
from bpl.pruning import prune_masks, slim
from bpl.pruning.channel_cost import ChannelCost
from bpl.pruning.masks import kept_filters, prunable_sets
from bpl.pruning.width_search import OutOfReach, kept_importance, search_widths, width_options
from bpl.widths_file import config_widths

LAYER = Layer(8, 16, (3, 3), (2, 2), (1, 1), (1, 1), 1, (9, 9))


# -- the search ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [1, 3, 16, 39, 64, 512])
@pytest.mark.parametrize("round_to", [1, 8, 16])
def test_the_widths_to_choose_from_are_rounded_and_end_with_all_channels(size, round_to):
    options = width_options(size, round_to)
    assert options == sorted(set(options)) and options[-1] == size and options[0] >= 1
    assert all(width % round_to == 0 or width == size for width in options)
    assert len(options) <= 16 and (size < 16 or options[0] <= max(round_to, size / 16 + 1))


def test_kept_importance_is_the_share_of_the_best_channels_whatever_their_order():
    assert torch.equal(kept_importance(4), torch.tensor([0.25, 0.5, 0.75, 1.0], dtype=torch.float64))
    scores = [torch.tensor([1.0, 6.0, 3.0], dtype=torch.float64)]
    expected = torch.tensor([0.6, 0.9, 1.0], dtype=torch.float64)
    assert torch.allclose(kept_importance(3, scores), expected)
    twice = [*scores, torch.tensor([10.0, 60.0, 30.0], dtype=torch.float64)]  # another conv of the set, other units
    assert torch.allclose(kept_importance(3, twice), expected)
    assert torch.equal(kept_importance(4, [torch.zeros(4)]), kept_importance(4))  # none is worth more than another


def some_problem(chance: random.Random):
    """A chain of four layers with random costs, small enough to try all choices."""
    sizes = [chance.choice([8, 16, 32]) for _ in range(4)]
    options = [sorted({*chance.sample(width_options(n), 6), n}) for n in sizes]
    own, between = [chance.random() for _ in range(4)], [chance.random() / 16 for _ in range(3)]

    def cost(widths):
        alone = sum(a * n for a, n in zip(own, widths, strict=True))
        return alone + sum(b * n * m for b, n, m in zip(between, widths, widths[1:], strict=False))

    return sizes, options, cost, chance.uniform(0.05, 0.95) * cost(sizes)


def test_the_search_keeps_the_limit_and_is_close_to_the_best_of_all_choices():
    chance, ratios, unreachable = random.Random(0), [], 0
    for _ in range(60):
        sizes, options, cost, limit = some_problem(chance)
        allowed = [widths for widths in itertools.product(*options) if cost(widths) <= limit]
        importance = [kept_importance(n) for n in sizes]
        if not allowed:
            unreachable += 1
            with pytest.raises(OutOfReach, match=f"costs {cost([widths[0] for widths in options]):g}: "):
                search_widths(options, importance, cost, limit)
            continue
        found = search_widths(options, importance, cost, limit)
        assert cost(found) <= limit and all(n in widths for n, widths in zip(found, options, strict=True))
        loss = {w: sum(size / n for size, n in zip(sizes, w, strict=True)) for w in [*allowed, tuple(found)]}
        ratios.append(loss[tuple(found)] / min(loss.values()))
    assert unreachable > 0
    assert statistics.median(ratios) == 1.0  # mostly the very best
    assert max(ratios) < 1.35


def test_a_layer_whose_few_channels_matter_is_cut_more():
    even, uneven = kept_importance(16), kept_importance(16, [torch.tensor([100.0] * 4 + [1.0] * 12)])
    found = search_widths([width_options(16)] * 2, [even, uneven], sum, 20)
    assert found[1] < found[0]


# -- what layers cost -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "mobilenet_v2", "vgg16_bn"])
@pytest.mark.parametrize("image_size", [64, 224])
def test_the_layers_of_a_network_are_all_that_counting_counts(arch, image_size):
    with torch.device("meta"):
        model = bpl.build_model(arch, 21, image_size)
    layers = layers_of(model, image_size)
    assert sum(layer.macs for _, layer in layers) == count_macs(model, image_size)
    weighted = {name for name, m in model.named_modules() if hasattr(m, "weight") and m.weight.dim() > 1}
    assert dict(layers).keys() == weighted


def test_a_layers_output_and_traffic():
    assert LAYER.output_pixels == 25
    assert LAYER.macs == 16 * 8 * 9 * 25
    assert LAYER.traffic == 4 * (8 * 81 + 16 * 8 * 9 + 16 * 25)
    assert LAYER.at(3, 5).macs == 5 * 3 * 9 * 25
    depthwise = Layer(8, 8, (3, 3), (1, 1), (1, 1), (1, 1), 8, (9, 9))
    assert depthwise.at(5, 5).groups == 5 and depthwise.at(5, 5).macs == 5 * 9 * 81
    doubling = Layer(8, 16, (3, 3), (1, 1), (1, 1), (1, 1), 8, (9, 9))  # two filters for every channel
    assert doubling.at(5, 10).groups == 5 and doubling.at(5, 10).macs == 10 * 9 * 81


@pytest.mark.parametrize(("arch", "scope"), [("resnet50", "inner"), ("mobilenet_v2", "all"), ("vgg16_bn", "inner")])
def test_the_time_of_a_network_is_that_of_its_layers_at_their_new_widths(arch, scope):
    """A table in which a layer takes as long as it has multiply-accumulates must agree with counting them."""
    model = bpl.build_model(arch, 5, 64, 16)
    graph = ChannelGraph(model)
    sets = prunable_sets(graph, scope)
    times = LayerTimes()
    times.measured = _AsManyAsMacs()
    cost = LatencyCost(graph, sets, 64, times)
    assert cost.full == count_macs(model, 64)
    chance = random.Random(1)
    widths = [chance.randint(1, channels.size) for channels in sets]
    named = {name: n for channels, n in zip(sets, widths, strict=True) for name in channels.convs}
    pruned = slim(model, prune_masks(model, 0, scope=scope, widths=named))
    assert cost.total(widths) == count_macs(pruned, 64)


def test_a_layer_that_is_called_twice_costs_twice():
    """A refinement block that a forward pass goes through twice, on maps of two sizes."""

    class Shared(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.shared = torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Conv2d(4, 4, 3, padding=1)
            self.classifier = torch.nn.Linear(4, 5)

        def forward(self, x):
            x = self.shared(torch.relu(self.stem(x))).relu()
            return self.classifier(self.shared(x[:, :, ::2, ::2]).relu().mean((2, 3)))

    layers = layers_of(Shared(), 8)
    assert [name for name, _ in layers] == ["stem", "shared", "shared", "classifier"]
    assert sum(layer.macs for _, layer in layers) == count_macs(Shared(), 8)


class _AsManyAsMacs(dict):
    """A table that knows every layer."""

    def __contains__(self, layer):
        return True

    def __getitem__(self, layer):
        return layer.macs


def test_no_layer_is_measured_twice(monkeypatch):
    asked = []
    monkeypatch.setattr(layer_times, "time_layer", lambda layer, *_: asked.append(layer) or 1.0)
    times = LayerTimes()
    assert [times(LAYER), times(LAYER.at(8, 16)), times(LAYER.at(8, 15))] == [1.0] * 3
    assert asked == [LAYER, LAYER.at(8, 15)]


def test_a_layer_is_timed_by_its_kernel_alone():
    pytest.importorskip("onnxruntime")
    short = layer_times.time_layer(LAYER, 1, seconds=0)
    long = layer_times.time_layer(Layer(64, 64, (3, 3), (1, 1), (1, 1), (1, 1), 1, (64, 64)), 1, seconds=0)
    assert 0 < short < long


def test_a_layer_that_cannot_be_timed_is_named():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding="same"))
    with pytest.raises(ValueError, match="'0' has 1 groups and padding 'same': it is not timed"):
        layers_of(model, 32)


# -- targets --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("cost", ["macs", "params"])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_counted_target_is_met_and_used_up(cost, share):
    model = bpl.build_model("resnet50", 5, 64, 32)
    found = widths_for(model, f"{cost}:{share}", 64)
    pruned = slim(model, prune_masks(model, 0, widths=found.widths))
    count = {"macs": lambda m: count_macs(m, 64), "params": count_params}[cost]
    assert found.share == count(pruned) / count(model)
    assert 0.97 * share < found.share <= share


def test_widths_are_rounded_as_asked():
    model = bpl.build_model("resnet18", 5, 64)
    found = widths_for(model, "macs:0.4", 64, round_to=16)
    assert all(width % 16 == 0 for width in found.widths.values())
    assert len(set(found.widths.values())) > 4  # and not the same everywhere


def test_more_importance_is_kept_than_by_the_uniform_ratio_of_equal_cost():
    model = bpl.build_model("resnet50", 5, 64, 32)
    graph = ChannelGraph(model)
    sets = prunable_sets(graph)
    cost = ChannelCost(graph, sets, "macs", 64)
    found = widths_for(model, "macs:0.3", 64)

    def loss(widths):
        return sum(channels.size / n for channels, n in zip(sets, widths, strict=True))

    uniform = ([kept_filters(channels.size, step / 200, 1) for channels in sets] for step in range(200))
    as_dear = next(widths for widths in uniform if cost.total(widths) <= found.share * cost.full)
    assert loss([found.widths[channels.convs[0]] for channels in sets]) < 0.99 * loss(as_dear)


def test_a_criterion_spares_the_layers_whose_channels_all_matter():
    model = bpl.build_model("resnet18", 5, 64, 16)
    with torch.no_grad():
        model.layer2[0].conv1.weight[8:] *= 1e-3  # half of its filters hardly matter
    plain, ranked = (widths_for(model, "macs:0.6", 64, criterion=c).widths for c in (None, "l2"))
    assert ranked["layer2.0.conv1"] < plain["layer2.0.conv1"]


def of_macs(model, overhead):
    """A stopwatch for which time is multiply-accumulates and a constant that no table knows of."""
    dense, calls = count_macs(model, 64), []

    def share(pruned):
        calls.append(count_macs(pruned, 64))
        return (calls[-1] / dense + overhead) / (1 + overhead)

    return share, calls


def macs_as_times() -> LayerTimes:
    times = LayerTimes()
    times.measured = _AsManyAsMacs()
    return times


@pytest.mark.parametrize("overhead", [0.0, 0.05, 0.2])
def test_a_latency_target_is_met_by_measurement_though_the_table_does_not_know_everything(overhead):
    model = bpl.build_model("resnet18", 5, 64, 32)
    measure, calls = of_macs(model, overhead)
    found = widths_for(model, "latency:0.4", 64, times=macs_as_times(), measure=measure)
    assert 0.9 * 0.4 < found.share <= 0.4
    assert len(calls) <= hardware.TRIES
    pruned = slim(model, prune_masks(model, 0, widths=found.widths))
    assert found.share == pytest.approx((count_macs(pruned, 64) / count_macs(model, 64) + overhead) / (1 + overhead))


def test_a_target_that_cannot_be_met_says_the_smallest_that_can():
    model = bpl.build_model("resnet18", 5, 64, 32)
    measure, calls = of_macs(model, 0.5)
    with pytest.raises(ValueError) as error:
        widths_for(model, "latency:0.3", 64, times=macs_as_times(), measure=measure)
    least = (min(calls) / count_macs(model, 64) + 0.5) / 1.5
    assert str(error.value) == (
        "target latency:0.3 cannot be met by ResNet with scope 'inner' and widths rounded to 1: the smallest reachable "
        f"is latency:{least:.3f}"
    )
    narrowest = prune_masks(model, 0, widths={n: w // 16 for n, w in _inner(model).items()})
    smallest = count_macs(slim(model, narrowest), 64) / count_macs(model, 64)
    with pytest.raises(ValueError, match=f"the smallest reachable is macs:{smallest:.3f}"):
        widths_for(model, "macs:0.01", 64)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"round_to": 0}, "round_to is 0: it must be a whole number of at least 1"),
        ({"criterion": "l3"}, "unknown criterion 'l3': allowed are l1, l2"),
        ({"scope": "outer"}, "unknown scope 'outer'"),
    ],
)
def test_a_bad_option_of_the_search_is_named(options, said):
    with pytest.raises(ValueError, match=said):
        widths_for(bpl.build_model("resnet18", 5, 32, 8), "macs:0.5", 32, **options)


def _inner(model):
    return {name: len(mask) for name, mask in prune_masks(model, 0).items()}


@pytest.mark.slow
def test_a_latency_target_is_met_on_this_machine():
    pytest.importorskip("onnxruntime")
    model = bpl.build_model("resnet18", 5, 128)
    found = widths_for(model, "latency:0.5", 128)
    pruned = slim(model, prune_masks(model, 0, widths=found.widths))
    assert hardware.measured_share(model, 128)(pruned) < 0.6


# -- widths given to the masks ----------------------------------------------------------------------------------------
def test_masks_keep_the_widths_that_they_are_given():
    model = bpl.build_model("resnet18", 5, 64, 16)
    widths = {name: 1 + index for index, name in enumerate(_inner(model))}
    masks = prune_masks(model, 0.9, "l1", widths=widths)
    assert {name: int(mask.sum()) for name, mask in masks.items()} == widths
    norms = model.layer4[1].conv1.weight.detach().abs().flatten(1).sum(1)
    assert masks["layer4.1.conv1"][norms.argmax()]


@pytest.mark.parametrize("width", [0, -1, 17, 2.0, True, None])
def test_a_width_that_a_layer_cannot_have_is_named(width):
    model = bpl.build_model("resnet18", 5, 64, 16)
    widths = _inner(model) | {"layer1.0.conv1": width}
    with pytest.raises(ValueError, match=f"the width of 'layer1.0.conv1' is {width!r}: .* whole number of 1 to 16"):
        prune_masks(model, 0, widths=widths)


# -- runs with a target -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("value", ["latency", "latency:0", "macs:1", "macs:-0.1", "flops:0.3", "params:x", "0.3", ""])
def test_a_bad_target_is_refused_with_the_allowed_forms(value):
    with pytest.raises(ValueError) as error:
        RunConfig("ucm", "bpl", target=value)
    assert repr(value) in str(error.value)
    assert "latency:SHARE or macs:SHARE or params:SHARE" in str(error.value) and "\n" not in str(error.value)


def test_a_target_takes_the_place_of_the_ratio():
    config = RunConfig("ucm", "bpl", target="macs:0.3", ratio=0.5)
    assert config == RunConfig("ucm", "bpl", target="macs:0.3")
    assert config.ratio == 0.7
    assert config.identity("real") != RunConfig("ucm", "bpl", ratio=0.7).identity("real")
    assert "--target macs:0.3" in config.command()
    assert config.dense() == RunConfig("ucm", "bpl").dense()


def test_the_methods_that_read_a_target():
    def reads(method: str) -> bool:
        try:
            return RunConfig("ucm", method, target="macs:0.3").target is not None
        except ValueError:  # refused: its size is set by something else
            return False

    assert set(filter(reads, METHODS)) == {"scratch", "kd", "self_kd", "bpl", "l1", "sfp", "fpgm", "random"}


@pytest.mark.usefixtures("places")
@pytest.mark.parametrize("method", ["scratch", "bpl", "sfp"])
def test_a_run_ships_a_network_that_meets_its_target(tree, method):
    config = small(tree, method, target="macs:0.35", width=16, epochs=2)
    out = trained(config)
    dense = bpl.build_model("resnet18", 4, 32, 16)
    assert 0.9 * 0.35 < count_macs(out.small, 32) / count_macs(dense, 32) <= 0.35
    assert config_widths(config, dense) == {
        name: out.small.get_submodule(name).out_channels for name in config_widths(config, dense)
    }


@pytest.mark.usefixtures("places")
@pytest.mark.parametrize(("method", "step"), [("scratch", 5), ("bpl", 5), ("l1", 9)])
def test_a_run_that_goes_on_elsewhere_keeps_the_widths_it_began_with(tree, tmp_path, monkeypatch, method, step):
    """A measured target's widths are kept for one machine and number of threads: elsewhere others would be found."""
    config = small(tree, method, target="macs:0.4", width=16, epochs=3)
    whole, asked = trained(config), []

    def search(config, model, work):
        asked.append(model)
        found = config_widths(config, model, work)
        return found if len(asked) == 1 else dict.fromkeys(found, 1)

    monkeypatch.setattr(targeted, "config_widths", search)
    resumed = interrupted(config, step, tmp_path / "run" / "checkpoint.pt", monkeypatch)
    assert len(asked) == 1 and same_weights(resumed.small, whole.small)


@pytest.mark.usefixtures("places")
def test_the_seeds_of_a_row_and_a_resumed_run_get_the_widths_that_were_found_first(tree, monkeypatch):
    model = bpl.build_model("resnet18", 4, 32, 8)
    configs = [small(tree, method, target="macs:0.4", seed=seed) for method, seed in (("bpl", 0), ("scratch", 1))]
    first = config_widths(configs[0], model)
    monkeypatch.setattr(widths_file, "widths_for", lambda *_, **__: pytest.fail("searched again"))
    assert config_widths(configs[1], bpl.build_model("resnet18", 4, 32, 8)) == first
    assert config_widths(small(tree, "bpl"), model) is None


@pytest.mark.usefixtures("places")
def test_widths_lie_beside_the_checkpoints_and_searching_them_draws_nothing(tree, places, monkeypatch, tmp_path):
    model, config = bpl.build_model("resnet18", 4, 32, 8), small(tree, "bpl", target="macs:0.4")
    found = hardware.widths_for(model, "macs:0.4", 32)

    def measured(*_, **__):
        torch.rand(100)
        return found

    monkeypatch.setattr(widths_file, "widths_for", measured)
    drawn = []
    for _ in range(2):  # searched, then read
        torch.manual_seed(0)
        config_widths(config, model, tmp_path / "elsewhere")
        drawn.append(float(torch.rand(1)))
    assert drawn[0] == drawn[1]
    assert len(list((tmp_path / "elsewhere" / "widths").glob("*.json"))) == 1
    assert not (places / "work" / "widths").exists()
    trained(config, checkpoint=tmp_path / "work" / "a-run" / "checkpoint.pt")
    assert len(list((tmp_path / "work" / "widths").glob("*.json"))) == 1


@pytest.mark.usefixtures("places")
def test_another_target_is_searched_anew(tree, places):
    model = bpl.build_model("resnet18", 4, 32, 8)
    found = [config_widths(small(tree, "bpl", target=target), model) for target in ("macs:0.4", "macs:0.5")]
    assert found[0] != found[1]
    for path in (places / "work" / "widths").glob("*.json"):
        assert set(json.loads(path.read_text())) == {"share", "widths", "asked"}


DAMAGED = [
    "{", "[]", "{}", '{"widths": [1]}', '{"widths": {}}', '{"widths": {"layer1.0.conv1": 2.5}}',
    '{"widths": {"layer1.0.conv1": true}}', '{"widths": {"layer1.0.conv1": 99}}', '{"widths": {"gone": 1}}',
    "[" * 100_000,
]  # fmt: skip


@pytest.mark.usefixtures("places")
@pytest.mark.parametrize("content", DAMAGED, ids=lambda text: text[:40])
def test_a_file_without_widths_is_searched_anew_or_refused_where_a_search_would_find_others(
    tree, places, monkeypatch, content
):
    model = bpl.build_model("resnet18", 4, 32, 8)
    counted, timed = (small(tree, "bpl", target=target) for target in ("macs:0.4", "latency:0.4"))
    found = config_widths(counted, model)
    (file,) = (places / "work" / "widths").glob("*.json")
    whole = file.read_text()
    file.write_text(content)
    assert config_widths(counted, model) == found
    assert file.read_text() == whole

    monkeypatch.setattr(widths_file, "widths_for", lambda *_, **__: hardware.Found(found, 0.4))
    assert config_widths(timed, model) == found
    (file,) = {*(places / "work" / "widths").glob("*.json")} - {file}
    file.write_text(content)
    with pytest.raises(ValueError, match="delete the file to measure and search again") as error:
        config_widths(timed, model)
    assert str(file) in str(error.value)


@pytest.mark.usefixtures("places")
def test_the_command_line_says_what_cannot_be_met_in_one_sentence(tree, places, capsys):
    words = ["--arch", "resnet18", "--width", "8", "--image-size", "32", "--device", "cpu", "--quiet"]
    with pytest.raises(SystemExit) as end:
        main(["run", "--dataset", str(tree), "--method", "scratch", *words, "--target", "macs:0.01"])
    assert end.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("bpl: target macs:0.01 cannot be met") and "the smallest reachable is macs:0." in error
    assert not list((places / "results").rglob("*.json"))


def test_the_processor_is_named(tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text("processor : 0\nmodel name\t: Some  Chip 9000\n")
    assert processor(file) == "Some Chip 9000"
    assert processor(tmp_path / "none")
    assert {"processor", "threads", "torch", "onnxruntime"} <= machine().keys()


def test_a_narrower_network_takes_a_smaller_share_of_the_time(monkeypatch):
    monkeypatch.setattr(hardware, "forward_pass", lambda model, *_: lambda batch: model)
    monkeypatch.setattr(hardware, "in_turns", lambda runs, *_, **__: {name: [9.0, t, 7.0] for name, t in runs.items()})
    assert hardware.measured_share(4.0, 32)(1.0) == 0.25
