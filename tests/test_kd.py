"""Plain distillation: the teacher, what it costs, and where the dense network comes from."""

import dataclasses
import threading
import time
from concurrent.futures import ThreadPoolExecutor

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

from bpl.config import RunConfig
from bpl.data import load_images, make_split
from bpl.machine.run_lock import only_here
from bpl.measure import count_macs
from bpl.models import build_model
from bpl.records import record_path
from bpl.run import dense_network, run
from bpl.train import predict

pytestmark = pytest.mark.usefixtures("places", "no_stopwatch")

SEEN = 48  # of the 56 images of the training part, in batches of 16


def kd(tree, **changes) -> RunConfig:
    return small(tree, "kd", **{"epochs": 2, "teacher_epochs": 1} | changes)


def a_network() -> torch.nn.Module:
    return build_model("resnet18", 4, 32, 8)


@pytest.fixture
def trainings(monkeypatch) -> list[str]:
    """The methods of all trainings that runs start."""
    started = []
    train = run_module.train

    def watched(config, *arguments, **options):
        started.append(config.method)
        return train(config, *arguments, **options)

    monkeypatch.setattr(run_module, "train", watched)
    return started


# -- the teacher --------------------------------------------------------------------------------------------------
def test_the_teacher_is_frozen_and_teaches_in_evaluation_mode(tree):
    teacher = a_network()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    out = trained(kd(tree), dense=lambda: teacher)
    assert out.method.teacher is teacher
    assert not any(module.training for module in teacher.modules())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())


def test_the_student_learns_what_the_teacher_says(tree):
    """Labels of no use, and a teacher that always says class 2."""
    teacher = a_network()
    with torch.no_grad():
        teacher.fc.weight.zero_()
        teacher.fc.bias.copy_(torch.tensor([0.0, 0.0, 9.0, 0.0]))
    out = trained(kd(tree, epochs=4, distill_weight=10.0), dense=lambda: teacher)
    images = load_images(str(tree), 32, progress=False)
    share = (predict(out.small, images, torch.arange(80)).argmax(1) == 2).float().mean()
    assert share > 0.9


def test_without_weight_it_is_the_narrow_network_from_scratch(tree):
    out = trained(kd(tree, distill_weight=0), dense=a_network)
    control = trained(small(tree, "scratch", epochs=2))
    assert same_weights(out.small, control.small)
    assert out.curves["loss"] == control.curves["loss"]


def test_a_run_costs_its_steps_its_teachers_forward_passes_and_the_training_of_its_teacher(tree):
    out = trained(kd(tree, epochs=2, teacher_epochs=1), dense=a_network)
    dense, narrow = count_macs(a_network(), 32), count_macs(out.small, 32)
    assert narrow < dense
    assert out.training_macs == 3 * dense * SEEN * 1 + (3 * narrow + dense) * SEEN * 2


def test_the_teacher_trained_for_a_run_is_the_network_of_the_dense_run(tree):
    config = kd(tree)
    out = trained(config)
    dense = trained(config.dense()).small
    assert same_weights(out.method.teacher, dense)
    assert same_weights(out.small, trained(config, dense=lambda: dense).small)  # training it disturbed no seed


def test_an_interrupted_run_ends_as_one_that_was_not(tree, tmp_path, monkeypatch):
    config = kd(tree)
    whole = trained(config)
    resumed = interrupted(config, 5, tmp_path / "checkpoint.pt", monkeypatch)
    assert same_weights(resumed.small, whole.small)
    assert (resumed.curves, resumed.training_macs) == (whole.curves, whole.training_macs)


# -- the config ---------------------------------------------------------------------------------------------------
def test_the_dense_run_has_the_recipe_of_the_run_that_learns_from_it(tree):
    config = kd(tree, seed=3, label_smoothing=0.2, learning_rate=0.01, augmentation="flip", ratio=0.3)
    dense = config.dense()
    assert dense == small(tree, "dense", seed=3, epochs=1, label_smoothing=0.2, learning_rate=0.01, augmentation="flip")
    assert kd(tree, teacher_epochs=None).dense().epochs == 2
    for change in ({"ratio": 0.5}, {"distill_weight": 2.0}, {"temperature": 1.0}):  # of these there is one dense run
        assert dataclasses.replace(config, **change).dense() == dense


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0}, "temperature is 0: it must be a number above 0"),
        ({"distill_weight": -1}, "distill_weight is -1: it must be a number of at least 0"),
        ({"teacher_epochs": 0}, "teacher_epochs is 0: it must be a whole number of at least 1"),
    ],
    ids=str,
)
def test_a_bad_value_is_named_with_what_is_allowed(tree, changes, message):
    with pytest.raises(ValueError, match=message):
        kd(tree, **changes)


# -- where the dense network comes from ---------------------------------------------------------------------------
@pytest.fixture
def dense_of(tree):
    """A run's dense network, by the function that runs use."""
    config = kd(tree)
    images = load_images(config.dataset, config.image_size, progress=False)
    split = make_split(images, config.split, config.seed)
    return lambda: dense_network(config, images, split, progress=False)


def place_of(tree, places):
    return places / "work" / kd(tree).dense().run_name("real")


def test_a_run_records_the_dense_run_that_it_had_to_make(tree, trainings):
    run(kd(tree), progress=False)
    assert trainings == ["kd", "dense"]
    assert run(kd(tree).dense(), progress=False).config["method"] == "dense"
    assert run(kd(tree, ratio=0.5), progress=False).config["ratio"] == 0.5
    assert trainings == ["kd", "dense", "kd"]


def test_a_dense_run_that_was_recorded_elsewhere_is_made_anew_and_its_record_left_alone(
    tree, places, dense_of, trainings
):
    first = dense_of()
    record = record_path(kd(tree).dense(), "real")
    written = record.stat().st_mtime_ns
    for file in place_of(tree, places).iterdir():
        file.unlink()
    assert same_weights(dense_of(), first)
    assert trainings == ["dense", "dense"]
    assert record.stat().st_mtime_ns == written
    assert sorted(file.name for file in place_of(tree, places).iterdir()) == [
        "images.sha256",
        "lock",
        "model.json",
        "model.safetensors",
    ]


def test_a_network_that_was_half_written_when_its_run_was_killed_is_made_anew(tree, places, dense_of):
    first = dense_of()
    (place_of(tree, places) / "model.json").unlink()  # it is written after the weights
    assert same_weights(dense_of(), first)


def test_of_two_runs_that_need_the_same_dense_network_one_trains_and_the_other_waits(dense_of, trainings, monkeypatch):
    """Locks belong to open files, so that two threads meet as two processes do."""
    training, waited = threading.Event(), threading.Event()
    real_train, real_sleep = run_module.train, time.sleep

    def train(*arguments, **options):
        training.set()
        assert waited.wait(60)  # not before the other has been refused
        return real_train(*arguments, **options)

    def sleep(_):
        waited.set()
        real_sleep(0.01)

    monkeypatch.setattr(run_module, "train", train)
    monkeypatch.setattr(run_module.time, "sleep", sleep)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(dense_of)
        assert training.wait(60)
        second = pool.submit(dense_of)
        assert same_weights(first.result(120), second.result(120))
    assert trainings == ["dense"]


def test_a_run_that_waits_goes_on_as_soon_as_the_network_is_there(tree, places, dense_of, trainings, monkeypatch):
    first = dense_of()
    place, elsewhere = place_of(tree, places), places / "elsewhere"
    elsewhere.mkdir()
    for name in ("model.safetensors", "model.json"):
        (place / name).rename(elsewhere / name)
    pauses = []

    def sleep(seconds):
        pauses.append(seconds)
        if pauses.count(1.0) == 3:  # shorter ones are tries for the lock
            for name in ("model.safetensors", "model.json"):
                (elsewhere / name).rename(place / name)

    monkeypatch.setattr(run_module.time, "sleep", sleep)
    with only_here(place):  # as the process that trains it
        assert same_weights(dense_of(), first)
    assert pauses.count(1.0) == 3
    assert trainings == ["dense"]
