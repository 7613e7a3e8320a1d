"""What the tests of runs share: a tiny class-folder tree, small configs, folders of their own.

A test module imports the fixtures that it uses; they are called ``tree``, ``places`` and ``no_stopwatch`` in tests.
"""

import dataclasses
import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bpl import recording
from bpl.config import RunConfig
from bpl.data import load_images, make_split
from bpl.measure import Latency
from bpl.methods import REGISTRY
from bpl.records import Record
from bpl.train import Trained, train

run_module = importlib.import_module("bpl.run")  # `bpl.run` is the function of that name
train_module = importlib.import_module("bpl.train")

SMALL = {
    "arch": "resnet18",
    "width": 8,
    "image_size": 32,
    "epochs": 3,
    "batch_size": 16,
    "precision": "float32",
    "learning_rate": 0.05,
    "device": "cpu",
}


def make_tree(folder: Path, classes: int = 4, per_class: int = 20, size: int = 32) -> Path:
    """A tree of seeded noise images, each class of its own tint."""
    generator = np.random.default_rng(0)
    for label in range(classes):
        place = folder / f"class_{label}"
        place.mkdir(parents=True)
        tint = generator.integers(0, 120, 3)
        for index in range(per_class):
            pixels = generator.integers(0, 136, (size, size, 3)) + tint
            Image.fromarray(pixels.astype(np.uint8)).save(place / f"{label}_{index:02d}.png")
    return folder


@pytest.fixture(name="tree", scope="session")
def tree_fixture(tmp_path_factory) -> Path:
    """Four classes of 20 images of 32 x 32 pixels."""
    return make_tree(tmp_path_factory.mktemp("images") / "tiny")


@pytest.fixture(name="places")
def places_fixture(tmp_path, monkeypatch) -> Path:
    """Cache, results and checkpoints below the test's own folder, and one thread: both cores may be at work."""
    for name in ("cache", "results", "work"):
        monkeypatch.setenv(f"BPL_{name.upper()}", str(tmp_path / name))
    monkeypatch.delenv("BPL_DATA", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.fixture(name="no_stopwatch")
def no_stopwatch_fixture(monkeypatch) -> None:
    """A run's latency costs two seconds; its number is the business of other tests."""

    def instant(model, image_size, batch_size=1, backend="eager", **_):
        return Latency(1.0, 0.9, 1.1, 5, backend, batch_size, image_size, 1, "cpu")

    monkeypatch.setattr(recording, "measure_latency", instant)


def small(tree: Path, method: str, **changes) -> RunConfig:
    """A config that trains in a fraction of a second."""
    return RunConfig(dataset=str(tree), method=method, **SMALL | changes)


def trained(config: RunConfig, *, relabel=None, **options) -> Trained:
    """Train a config. `relabel` changes the labels: it gets labels and split, and returns labels."""
    images = load_images(config.dataset, config.image_size, config.data, progress=False)
    split = make_split(images, config.split, config.seed)
    if relabel is not None:
        images = dataclasses.replace(images, labels=relabel(images.labels.clone(), split))
    return train(config, images, split, progress=False, **options)


def interrupted(config: RunConfig, step: int, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Trained:
    """Train with a checkpoint after every epoch up to an optimiser step, stop there, and go on from the checkpoint."""
    method = REGISTRY[config.method]
    after_step, left = method.after_step, step

    def stop(self, training) -> None:
        nonlocal left
        after_step(self, training)
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "CHECKPOINT_SECONDS", -1.0)
        patch.setattr(method, "after_step", stop)
        with pytest.raises(KeyboardInterrupt):
            trained(config, checkpoint=checkpoint)
    assert checkpoint.exists()
    return trained(config, checkpoint=checkpoint)


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether two networks have the same parameters and buffers, bit by bit."""
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


COUNTS = {"train": 56, "validation": 8, "test": 16}  # images of a made-up record's parts


def made_up_record(config: RunConfig, source: str = "real", **changes) -> Record:
    """A record as a run would leave it, with invented numbers."""
    values = {
        "name": config.run_name(source),
        "config": config.to_dict(),
        "data": {"source": source, "name": "tiny", "digest": "d", "split_digest": "s"} | COUNTS,
        "accuracy": {"test": 50.0, "validation": None, "best_test": 60.0},
        "curves": {"loss": [1.5, 0.5], "test": [40.0, 50.0]},
        "cost": {
            "macs": 25,
            "params": 10,
            "dense_macs": 100,
            "dense_params": 40,
            "training_macs": 1000,
            "latency": {"median_ms": 1.25},
            "dense_latency": {"median_ms": 2.5},
        },
        "equivalence": {"relative_error": 1e-7, "same_top1": 1.0},
        "widths": {"conv1": 8},
        "environment": {"device": "cpu"},
        "seconds": 3.5,
    }
    return Record(**values | changes)


def files_below(folder: Path) -> list[str]:
    """All files below a folder, hidden ones too."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
