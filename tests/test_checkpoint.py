"""Checkpoints: what is saved comes back, what is damaged is refused."""

import dataclasses
import sys

import pytest
import torch
from support import files_below, places_fixture, small, trained, tree_fixture  # noqa: F401

from bpl.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

pytestmark = pytest.mark.usefixtures("places")

STATE = {
    "epoch": 3,
    "model": {"w": torch.arange(6.0).view(2, 3)},
    "masks": {"a": torch.tensor([True, False])},
    "x": None,
}


def test_what_is_saved_comes_back(tmp_path):
    path = tmp_path / "deep" / "folder" / "checkpoint.pt"
    save_checkpoint(path, STATE)
    back = load_checkpoint(path)
    assert back.keys() == STATE.keys()
    assert (back["epoch"], back["x"]) == (3, None)
    assert torch.equal(back["model"]["w"], STATE["model"]["w"])
    assert torch.equal(back["masks"]["a"], STATE["masks"]["a"])
    assert files_below(path.parent) == ["checkpoint.pt"]


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _flip(content: bytes) -> bytes:
    place = len(content) - 40
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


DAMAGES = {
    "empty": lambda content: b"",
    "cut": _cut,
    "one byte short": lambda content: content[:-1],
    "one bit flipped": _flip,
    "a byte more": lambda content: content + b"\0",
    "other version": lambda content: content.replace(b"bpl-checkpoint-1", b"bpl-checkpoint-9", 1),
    "text": lambda content: b"not a checkpoint",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_by_name_with_what_to_do(tmp_path, damage):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, STATE)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(path)
    assert str(path) in str(error.value)
    assert "delete it" in str(error.value)
    assert "\n" not in str(error.value)


class Malice:
    """What a pickle may smuggle in."""

    def __reduce__(self):
        return (print, ("executed",))


def test_nothing_in_a_checkpoint_is_executed(tmp_path, capsys):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"run": Malice()})
    with pytest.raises(Exception, match="[Ww]eights"):
        load_checkpoint(path)
    assert "executed" not in capsys.readouterr().out


@pytest.fixture
def checkpointed(tree, tmp_path, monkeypatch):
    """A finished run and the checkpoint that it left."""
    monkeypatch.setattr(sys.modules["bpl.train"], "CHECKPOINT_SECONDS", -1.0)
    config = small(tree, "dense", epochs=1)
    trained(config, checkpoint=tmp_path / "checkpoint.pt")
    return config, tmp_path / "checkpoint.pt"


def test_a_run_does_not_go_on_from_a_damaged_checkpoint(checkpointed):
    config, path = checkpointed
    path.write_bytes(_cut(path.read_bytes()))
    with pytest.raises(CheckpointError, match="corrupt"):
        trained(config, checkpoint=path)
    assert path.exists()  # the user decides


@pytest.mark.parametrize("change", [{"learning_rate": 0.01}, {"seed": 1}, {"method": "bpl"}])
def test_a_run_does_not_go_on_from_another_runs_checkpoint(checkpointed, change):
    config, path = checkpointed
    with pytest.raises(CheckpointError, match="another run or other images"):
        trained(dataclasses.replace(config, **change), checkpoint=path)


def test_a_run_goes_on_from_a_checkpoint_of_another_device_or_tier_spelling(checkpointed):
    config, path = checkpointed
    out = trained(dataclasses.replace(config, device="auto", tier="quick"), checkpoint=path)
    assert out.curves == load_checkpoint(path)["curves"]
