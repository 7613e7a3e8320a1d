"""RunConfig: what is required, what the tier fills in, what is refused, what makes two runs one."""

import dataclasses
import json
import re
import shlex

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import run_module

from bpl import paths
from bpl.cli import main
from bpl.config import AUGMENTATIONS, PARTNERS, RunConfig
from bpl.data import CARDS
from bpl.defaults import (
    CRITERIA_OF,
    DEVICES,
    FINE_TUNES,
    KERNEL_NORMS,
    MASKS,
    METHODS,
    ONLY_FOR,
    PRECISIONS,
    SCHEDULES,
    SLIM_AT,
    SPLITS,
    STRENGTHS,
    TIERS,
)
from bpl.diversity import FORMS
from bpl.models import NAMES
from bpl.pruning.criteria import CRITERIA
from bpl.pruning.masks import SCOPES
from bpl.sweep import load_grid

GRIDS = paths.project_root() / "workflow"
FIELDS = [field.name for field in dataclasses.fields(RunConfig)]


def test_only_dataset_and_method_are_required():
    config = RunConfig("ucm", "bpl")
    assert (config.ratio, config.seed, config.tier, config.split) == (0.7, 0, "cpu", "protocol")
    with pytest.raises(TypeError):
        RunConfig("ucm")


@pytest.mark.parametrize("tier", TIERS)
def test_a_tier_fills_in_what_the_config_leaves_open(tier):
    config = RunConfig("ucm", "bpl", tier=tier).to_dict()
    assert {name: config[name] for name in TIERS[tier]} == TIERS[tier]


def test_what_the_config_says_beats_the_tier():
    config = RunConfig("ucm", "bpl", tier="quick", epochs=3, learning_rate=0.5, precision="float32")
    assert (config.epochs, config.learning_rate, config.precision) == (3, 0.5, "float32")


def test_a_tiers_width_is_not_imposed_on_another_network():
    assert RunConfig("ucm", "dense", tier="cpu").width == 32
    assert RunConfig("ucm", "dense", tier="cpu", arch="resnet50").width is None
    assert RunConfig("ucm", "dense", tier="cpu", arch="resnet50", width=16).width == 16


def test_every_method_that_prunes_has_a_criterion_a_mask_and_a_freeze():
    for method in METHODS:
        config = RunConfig("ucm", method)
        given = (config.criterion, config.mask, config.mask_every, config.freeze_at, config.slim_at)
        if method in ("bpl", "l1", "sfp", "fpgm", "random"):
            assert None not in given
        else:
            assert config.mask is config.mask_every is None
        if method in ("dense", "scratch", "kd", "self_kd"):
            assert given == (None,) * 5


def test_dense_ignores_the_ratio_and_all_that_only_pruning_reads():
    plain = RunConfig("ucm", "dense")
    other = RunConfig(
        "ucm", "dense", ratio=0.3, criterion="l1", mask="hard", freeze_at=0.1, scope="all", diversity_weight=9.0
    )
    assert other == plain
    assert plain.ratio == 0


def test_an_unknown_key_is_refused_with_its_value_and_the_allowed_keys():
    with pytest.raises(ValueError, match="unknown key 'ration' with value 0.5") as error:
        RunConfig.from_dict({"dataset": "ucm", "method": "bpl", "ration": 0.5})
    assert all(name in str(error.value) for name in FIELDS)


@pytest.mark.parametrize("key", ["dataset", "method"])
def test_a_missing_required_key_is_named(key):
    values = {"dataset": "ucm", "method": "bpl"}
    del values[key]
    with pytest.raises(ValueError, match=f"lacks the key '{key}'"):
        RunConfig.from_dict(values)


BAD = [
    *[("ratio", value, "at least 0 and less than 1") for value in (1.5, 1, 1.0, -0.1, float("nan"), "0.7", None, True)],
    ("method", "magic", METHODS),
    ("arch", "resnet19", NAMES),
    ("dataset", "no-such-set", tuple(CARDS)),
    ("dataset", 5, "a name or the path of a folder"),
    ("data", "no/such/folder", "existing folder"),
    ("data", None, "a name or the path of a folder"),
    ("split", "70/30", SPLITS),
    ("tier", "huge", tuple(TIERS)),
    ("schedule", "constant", SCHEDULES),
    ("augmentation", "mixup", ("none", *AUGMENTATIONS)),
    ("precision", "fp8", PRECISIONS),
    ("criterion", "l3", tuple(CRITERIA)),
    ("scope", "outer", SCOPES),
    ("mask", "semi", MASKS),
    ("diversity_form", "cosine", tuple(FORMS)),
    ("device", "tpu", DEVICES),
    ("compile", "fast", ("off", "default", "reduce-overhead", "max-autotune")),
    *[("epochs", value, "a whole number of at least 1") for value in (0, -1, 1.5, "3", True)],
    *[("batch_size", value, "a whole number of at least 2") for value in (1, 0, 16.0)],
    *[("image_size", value, "a whole number of at least 32") for value in (31, 0, 64.0)],
    *[("width", value, "a whole number of at least 1") for value in (0, 8.5)],
    *[("seed", value, "a whole number of at least 0") for value in (-1, 0.5, None)],
    *[("round_to", value, "a whole number of at least 1") for value in (0, 2.5)],
    *[("mask_every", value, "a whole number of at least 1") for value in (0, "1")],
    *[("freeze_at", value, "more than 0 and at most 1") for value in (0, 0.0, 1.01, float("nan"), "0.3")],
    *[("slim_at", value, "freeze, none and a whole number of epochs from 1") for value in ("no", True, 0, 61, 1.5)],
    *[("momentum", value, "at least 0 and less than 1") for value in (1.0, -0.1, None)],
    *[("label_smoothing", value, "at least 0 and less than 1") for value in (1.0, "0.1")],
    # PyYAML reads 1e-3 as a word: the commonest slip in a grid file
    *[("learning_rate", value, "a number of at least 0") for value in (-0.1, float("inf"), float("nan"), "1e-3", True)],
    *[("weight_decay", value, "a number of at least 0") for value in (-1e-4, "5e-4")],
    *[("diversity_weight", value, "a number of at least 0") for value in (-1, float("nan"), "1")],
]


@pytest.mark.parametrize(("field", "value", "allowed"), BAD)
def test_a_bad_value_gives_one_sentence_with_the_value_and_what_is_allowed(field, value, allowed):
    with pytest.raises(ValueError) as error:
        RunConfig(**{"dataset": "ucm", "method": "bpl"} | {field: value})
    sentence = str(error.value)
    assert "\n" not in sentence
    assert repr(value) in sentence
    assert all(word in sentence for word in ([allowed] if isinstance(allowed, str) else allowed))


@pytest.mark.parametrize(("name", "value"), [("budget", "macs:0.01"), ("target", "params:0.3")])
@pytest.mark.parametrize("method", METHODS)
def test_a_size_that_the_method_does_not_read_is_refused_and_never_ignored(method, name, value):
    if method == "dense" or method in ONLY_FOR[name]:
        assert getattr(RunConfig("ucm", method, **{name: value}), name) == (None if method == "dense" else value)
        return
    with pytest.raises(ValueError, match=f"^{name} is '{value}': {method} does not read it") as error:
        RunConfig("ucm", method, **{name: value})
    own = re.search("set by ([a-z ]+);", str(error.value)).group(1).split(" or ")
    for knob in own:  # what is named is read
        other = 0.4 if knob == "ratio" else "macs:0.4"
        assert RunConfig("ucm", method, **{knob: other}) != RunConfig("ucm", method)
    assert all(reader in str(error.value) for reader in ONLY_FOR[name])


# For every field but those below another value than the default, which must make it another run.
OTHER = {
    "dataset": "aid", "method": "sfp", "arch": "resnet56", "ratio": 0.5, "seed": 1, "epochs": 7, "split": "paper",
    "image_size": 96, "stored_size": 80, "width": 24, "batch_size": 48, "schedule": "released",
    "learning_rate": 0.02, "momentum": 0.8,
    "weight_decay": 0.0, "label_smoothing": 0.2, "augmentation": "flip", "precision": "float32", "criterion": "fpgm",
    "scope": "all", "round_to": 8, "mask": "soft", "mask_every": 2, "freeze_at": 0.6, "slim_at": "none",
    "diversity_weight": 0.25, "diversity_form": "layer-squared", "partner": "acnet", "teacher_epochs": 3,
    "distill_weight": 0.5, "temperature": 2.0, "feature_weight": 0.5, "target": "macs:0.3", "budget": "params:0.4",
    "kernel_norm": "fixed", "pretrain": "aid:20", "sparsity": 0.01, "copies": 3,
    "samples": 50, "bins": 3, "fine_tune": "tft", "rho": 0.5, "strengths": "fixed",
}  # fmt: skip
NO_PART_OF_IT = {
    "tier",
    "device",
    "compile",
    "data",
}  # the source of the images, real or drawn, counts in place of `data`


def test_every_field_is_either_part_of_the_identity_or_known_not_to_be():
    assert OTHER.keys() | NO_PART_OF_IT == set(FIELDS)


@pytest.mark.parametrize("field", OTHER)
def test_the_identity_changes_with_the_field(field):
    readers = ONLY_FOR.get(field, ("bpl",))
    base = {"dataset": "ucm", "method": "bpl" if "bpl" in readers else readers[0]}
    base |= {"mask": "soft"} if field == "mask_every" else {}  # a mask that is ranked once does not read it
    assert RunConfig(**base | {field: OTHER[field]}).identity("real") != RunConfig(**base).identity("real")


def test_the_identity_tells_real_images_from_drawn_ones():
    config = RunConfig("ucm", "bpl")
    assert config.identity("real") != config.identity("synthetic")


def test_the_identity_does_not_depend_on_where_a_run_is_computed_or_where_its_images_lie(tmp_path):
    one = RunConfig("ucm", "bpl", device="cpu", data="real")
    other = RunConfig("ucm", "bpl", device="cuda", data=str(tmp_path))
    assert one.identity("real") == other.identity("real") == RunConfig("ucm", "bpl").identity("real")


def test_the_identity_does_not_depend_on_how_the_tier_is_spelt():
    by_tier = RunConfig("ucm", "bpl", tier="quick")
    spelt_out = RunConfig("ucm", "bpl", tier="paper", **TIERS["quick"])
    assert spelt_out.identity("real") == by_tier.identity("real")


def test_the_identity_does_not_depend_on_the_order_of_the_keys():
    values = {"dataset": "ucm", "method": "bpl", "ratio": 0.5, "seed": 3}
    backwards = dict(reversed(values.items()))
    assert RunConfig.from_dict(values).identity("real") == RunConfig.from_dict(backwards).identity("real")


@pytest.mark.parametrize(
    "field", ["ratio", "momentum", "weight_decay", "label_smoothing", "diversity_weight", "learning_rate"]
)
def test_a_whole_number_and_the_same_with_a_point_are_one_run(field):
    one, other = (RunConfig("ucm", "bpl", **{field: zero}) for zero in (0, 0.0))
    assert one.identity("real") == other.identity("real")
    assert one.run_name("real") == other.run_name("real")


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(RunConfig) if "None" in str(f.type)])
def test_none_and_nothing_said_are_one_run(field):
    assert RunConfig("ucm", "bpl", **{field: None}) == RunConfig("ucm", "bpl")


def test_a_path_object_is_as_good_as_its_text(tmp_path):
    config = RunConfig(tmp_path, "dense", data=tmp_path)
    assert config == RunConfig(str(tmp_path), "dense", data=str(tmp_path))
    json.dumps(config.to_dict())  # what a record needs


def test_a_folder_of_images_is_one_data_set_however_it_is_spelt(tmp_path, monkeypatch):
    for name in ("images", "ucm"):
        (tmp_path / name / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    spellings = ("images", "images/", "./images", "images/deep/..", ".//images/.")
    assert len({RunConfig(spelling, "dense").run_name("real") for spelling in spellings}) == 1
    assert RunConfig("~/images", "dense") == RunConfig(tmp_path / "images", "dense")
    assert RunConfig("ucm/", "dense").dataset == "./ucm" != RunConfig("ucm", "dense").dataset
    with pytest.raises(ValueError, match="unknown data set ''"):
        RunConfig("", "dense")


def test_what_lies_above_a_link_is_where_the_system_finds_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("images", "elsewhere/images", "elsewhere/deep"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "deep")
    assert RunConfig("link/../images", "dense").dataset == "elsewhere/images"
    assert RunConfig(f"{tmp_path}/link/../images", "dense").dataset == str(tmp_path.resolve() / "elsewhere" / "images")


def test_run_names_of_different_runs_differ_and_say_what_the_run_is():
    config = RunConfig("ucm", "bpl", ratio=0.5, seed=2)
    assert config.run_name("real").startswith("bpl-resnet18-r0.50-s2-")
    assert config.run_name("real") != config.run_name("synthetic")


@st.composite
def configs(draw, folder=None):
    """Any good config, as a user may write it: most fields left out."""
    number = st.floats(0, 10, allow_subnormal=False)
    share = st.floats(0, 1, exclude_max=True, allow_subnormal=False)
    small = st.integers(1, 9)
    choices = {
        "arch": st.sampled_from(NAMES), "ratio": share, "seed": st.integers(0, 2**31), "epochs": small,
        "tier": st.sampled_from([*TIERS]), "split": st.sampled_from(SPLITS),
        "data": st.sampled_from(["auto", "real", "synthetic"]), "image_size": st.integers(32, 300),
        "width": st.sampled_from([8, 16, 32, 64]), "batch_size": st.integers(2, 99),
        "schedule": st.sampled_from(SCHEDULES), "learning_rate": number, "momentum": share, "weight_decay": number,
        "label_smoothing": share, "augmentation": st.sampled_from(AUGMENTATIONS),
        "precision": st.sampled_from(PRECISIONS), "criterion": st.sampled_from([*CRITERIA]),
        "scope": st.sampled_from(SCOPES), "round_to": small, "mask": st.sampled_from(MASKS), "mask_every": small,
        "freeze_at": st.floats(0.01, 1), "slim_at": st.sampled_from(SLIM_AT),
        "diversity_weight": st.integers(0, 3) | number,
        "diversity_form": st.sampled_from([*FORMS]), "device": st.sampled_from(DEVICES),
        "partner": st.sampled_from(PARTNERS), "kernel_norm": st.sampled_from(KERNEL_NORMS),
        "pretrain": st.sampled_from(["aid:20", "synthetic:1"]),
        "target": st.sampled_from(["macs:0.3", "latency:0.5", "params:0.25"]),
        "budget": st.sampled_from(["macs:0.3", "params:0.25"]), "teacher_epochs": small, "copies": st.integers(2, 4),
        "temperature": st.floats(0.5, 9), "distill_weight": number, "fine_tune": st.sampled_from(FINE_TUNES),
        "strengths": st.sampled_from(STRENGTHS), "rho": st.floats(0.01, 10), "samples": st.integers(2, 99),
        "bins": small,
    }  # fmt: skip
    dataset = draw(st.sampled_from([*CARDS, *([folder] if folder else [])]))
    method = draw(st.sampled_from(METHODS))
    unread = {name for name in ("target", "budget") if method not in ONLY_FOR[name]}  # refused, not left out
    chosen = draw(st.sets(st.sampled_from(sorted(choices.keys() - unread)), max_size=8))
    choices["criterion"] = st.sampled_from(CRITERIA_OF.get(method, tuple(CRITERIA)))
    return RunConfig(dataset=dataset, method=method, **{name: draw(choices[name]) for name in sorted(chosen)})


@settings(max_examples=100, deadline=None)
@given(configs())
def test_a_config_survives_its_own_json(config):
    again = RunConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.identity("real") == config.identity("real")


class _Captured(Exception):
    """Ends the command line in the place of a run."""


def parsed(command: str) -> RunConfig:
    """The config that the command line would run."""
    program, *words = shlex.split(command)
    assert program == "bpl"
    with pytest.MonkeyPatch.context() as patch:

        def capture(config, **_):
            raise _Captured(config)

        patch.setattr(run_module, "run", capture)
        with pytest.raises(_Captured) as caught:
            main(words)
    return caught.value.args[0]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_command_of_a_config_makes_the_same_run(data, tmp_path):
    folder = tmp_path / "it's my set"  # a name that a shell would take apart
    folder.mkdir(exist_ok=True)
    config = data.draw(configs(folder=str(folder)))
    again = parsed(config.command())
    assert again.identity("real") == config.identity("real")
    assert again.data == config.data


@pytest.mark.parametrize(
    ("method", "knobs", "ratio"),
    [
        ("compact_kd", {"budget": "macs:0.26"}, 0.74),
        ("oed", {"budget": "params:0.3"}, 0.7),
        ("oed", {"sparsity": 0.1}, 0.0),
    ],
)
def test_a_ratio_that_is_not_read_makes_no_other_run(method, knobs, ratio):
    one, other = (RunConfig("ucm", method, ratio=asked, **knobs) for asked in (0.5, 0.9))
    assert one == other and one.ratio == ratio
    assert parsed(one.command()) == one
    read = {"method": "compact_kd", "sparsity": 0.0}  # cut to the ratio's cost all the same
    assert RunConfig("ucm", ratio=0.5, **read) != RunConfig("ucm", ratio=0.9, **read)


@pytest.mark.parametrize(
    ("method", "knobs", "idle"),
    [
        ("bpl", {}, {"mask_every": 5}),  # its mask is hard
        ("sfp", {"mask": "hard"}, {"mask_every": 5}),
        ("bpl", {"mask": "released"}, {"freeze_at": 0.5, "slim_at": "none"}),  # ranked to the end, and never held
        ("sfp", {"mask": "leaking"}, {"freeze_at": 0.5, "slim_at": 40}),
        ("bpl", {"diversity_weight": 0.0}, {"diversity_form": "folded-squared"}),
        ("fcs_mlft", {"criterion": "kernel-norm"}, {"samples": 7, "bins": 3}),
        ("fcs_mlft", {"criterion": "feature-norm"}, {"bins": 3}),
        ("fcs_mlft", {"fine_tune": "tft"}, {"temperature": 9.0, "distill_weight": 3.0}),
    ],
)
def test_a_knob_that_another_leaves_without_effect_makes_no_other_run(method, knobs, idle):
    plain = RunConfig("ucm", method, **knobs)
    assert RunConfig("ucm", method, **knobs, **idle) == plain
    assert parsed(plain.command()) == plain


@pytest.mark.parametrize(
    ("method", "knobs", "read"),
    [
        ("sfp", {}, {"mask_every": 5}),
        ("bpl", {"mask": "leaking"}, {"mask_every": 5}),
        ("bpl", {"diversity_weight": 1e-9}, {"diversity_form": "folded-squared"}),
        ("fcs_mlft", {"criterion": "feature-norm"}, {"samples": 7}),
        ("fcs_mlft", {}, {"bins": 3}),
        ("fcs_mlft", {}, {"temperature": 9.0}),
        ("kd", {}, {"temperature": 9.0}),
    ],
)
def test_a_knob_that_is_read_makes_another_run(method, knobs, read):
    assert RunConfig("ucm", method, **knobs, **read) != RunConfig("ucm", method, **knobs)


@pytest.mark.parametrize(
    ("method", "name", "one", "other"),
    [
        ("compact_kd", "budget", "macs:0.26", "macs:0.260"),
        ("bpl", "target", "macs:.3", "macs:0.3"),
        ("bpl", "pretrain", "aid:020", "aid:20"),
        ("bpl", "diversity_weight", -0.0, 0.0),
    ],
)
def test_two_spellings_are_one_run(method, name, one, other):
    assert RunConfig("ucm", method, **{name: one}).identity("real") == RunConfig(
        "ucm", method, **{name: other}
    ).identity("real")


@pytest.mark.parametrize(
    ("name", "value"), [("width", 10**29), ("copies", 65), ("image_size", 1025), ("epochs", 10**8)]
)
def test_a_whole_number_beyond_reason_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"{name} is \d.*: it must be at most \d+"):
        RunConfig("ucm", "oed", **{name: value})


@pytest.mark.parametrize("grid", sorted(path.stem for path in GRIDS.glob("*.yaml")))
def test_the_command_of_every_recorded_arm_makes_that_arm(grid):
    one_a_row = {dataclasses.replace(config, seed=0): None for config in load_grid(GRIDS / f"{grid}.yaml")}
    for config in one_a_row:
        assert parsed(config.command()).identity("real") == config.identity("real"), config.command()


def test_the_command_keeps_what_would_otherwise_follow_from_the_epochs_or_the_image_size():
    for knobs in ({"epochs": 20, "teacher_epochs": 60}, {"image_size": 224, "stored_size": 64}, {"learning_rate": 0.1}):
        config = RunConfig("ucm", "ddsl", **knobs)
        assert parsed(config.command()).identity("real") == config.identity("real"), config.command()


def test_the_command_keeps_a_width_that_only_another_network_has_by_default():
    config = RunConfig("ucm", "dense", arch="resnet34", width=32)
    assert parsed(config.command()).width == 32


def test_the_command_says_no_more_than_needed():
    assert RunConfig("ucm", "bpl").command() == "bpl run --dataset ucm --method bpl --ratio 0.7 --seed 0"
    assert (
        RunConfig("ucm", "dense", tier="quick").command()
        == "bpl run --dataset ucm --method dense --tier quick --seed 0"
    )


def test_numbers_of_numpy_are_those_of_python():
    plain = RunConfig("ucm", "bpl", seed=3, epochs=7, ratio=0.7, learning_rate=0.05)
    theirs = RunConfig(
        "ucm", "bpl", seed=np.int64(3), epochs=np.uint8(7), ratio=np.float32(0.7), learning_rate=np.float64(0.05)
    )
    assert theirs == plain and theirs.identity("real") == plain.identity("real")
    assert {type(value) for value in theirs.to_dict().values()} <= {str, int, float, type(None)}
    with pytest.raises(ValueError, match="seed is True: it must be a whole number"):
        RunConfig("ucm", "bpl", seed=True)
