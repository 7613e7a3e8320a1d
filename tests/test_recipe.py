"""The recipes and the methods' own settings, as they are stated: a change of one is a change of every table."""

from typing import Any

import pytest

from bpl.config import RunConfig


def test_the_dense_run_behind_a_method_shares_every_knob_of_its_recipe() -> None:
    config = RunConfig(
        "ucm", "kd", arch="resnet56", seed=3, split="paper", image_size=96, stored_size=128, width=8, batch_size=16,
        schedule="released", learning_rate=0.01, momentum=0.8, weight_decay=1e-3, label_smoothing=0.2,
        augmentation="flip", precision="float32", pretrain="aid:2", device="cpu", compile="default", teacher_epochs=7,
    )  # fmt: skip
    dense, own = config.dense().to_dict(), {"method": "dense", "ratio": 0.0, "epochs": 7, "teacher_epochs": None}
    assert {knob: dense[knob] for knob in own} == own
    shared = [knob for knob, value in dense.items() if value is not None and knob not in own]
    assert {knob: dense[knob] for knob in shared} == {knob: config.to_dict()[knob] for knob in shared}
    assert {"momentum", "weight_decay", "batch_size", "schedule", "precision", "width", "pretrain"} <= set(shared)


def test_the_tier_of_the_papers_scale_is_the_released_recipe() -> None:
    config = RunConfig("ucm", "bpl", tier="paper").to_dict()
    stated = {
        "arch": "resnet50", "width": None, "image_size": 256, "epochs": 300, "batch_size": 64, "schedule": "released",
        "learning_rate": 1e-3, "momentum": 0.9, "weight_decay": 1e-4, "label_smoothing": 0.0,
        "augmentation": "released", "stored_size": 256, "diversity_weight": 0.01,
    }  # fmt: skip
    assert {knob: config[knob] for knob in stated} == stated


@pytest.mark.parametrize(
    ("method", "stated"),
    [
        ("kd", {"distill_weight": 1.0, "temperature": 4.0}),
        ("self_kd", {"distill_weight": 0.1, "temperature": 3.0}),
        ("bpl", {"criterion": "l2", "mask": "hard", "freeze_at": 0.01}),
        ("sfp", {"criterion": "l2", "mask": "soft", "freeze_at": 0.5}),
        ("ddsl", {"learning_rate": 0.05, "rho": 0.2}),
    ],
    ids=str,
)
def test_the_settings_of_methods_are_those_of_the_recorded_runs(method: str, stated: dict[str, Any]) -> None:
    config = RunConfig("ucm", method).to_dict()
    assert {knob: config[knob] for knob in stated} == stated


def test_masks_freeze_at_the_nearest_epoch() -> None:
    epochs = [RunConfig("ucm", "l1", epochs=10, freeze_at=share).freeze_epoch for share in (0.01, 0.28, 0.32, 1.0)]
    assert epochs == [1, 3, 3, 10]
