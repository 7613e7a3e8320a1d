"""Checkpoints: what is saved comes back, what is damaged is refused."""

import dataclasses
import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from support import files_below, places_fixture, same_weights, small, trained, tree_fixture  # noqa: F401

from bpl.machine import atomic, checkpoint
from bpl.machine.checkpoint import CheckpointError, delete_checkpoint, load_checkpoint, save_checkpoint

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
    "other version": lambda content: content.replace(b"bpl-checkpoint-2", b"bpl-checkpoint-9", 1),
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


# -- pieces -------------------------------------------------------------------------------------------------------
def state_of(number: int, size: int = 500) -> dict:
    """A state of some 2 kB whose every byte depends on the number."""
    return {"number": number, "weights": torch.full((size,), float(number))}


def assert_is_state(state: dict, number: int) -> None:
    assert state["number"] == number
    assert torch.equal(state["weights"], torch.full((500,), float(number)))


@pytest.fixture
def small_pieces(monkeypatch) -> None:
    monkeypatch.setattr(checkpoint, "PIECE", 700)


def test_a_large_checkpoint_is_files_of_at_most_16_mib_with_safe_names(tmp_path):
    path = tmp_path / "checkpoint.pt"
    weights = torch.randn(12 << 20)  # 48 MiB
    save_checkpoint(path, {"weights": weights})
    sizes = {file.name: file.stat().st_size for file in tmp_path.iterdir() if file.is_file()}
    assert len(sizes) == 4
    assert max(sizes.values()) <= 16 << 20
    assert sum(sizes.values()) >= 48 << 20
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-") for name in sizes)
    assert torch.equal(load_checkpoint(path)["weights"], weights)


def test_a_checkpoint_in_pieces_may_be_carried_to_another_folder(tmp_path, small_pieces):
    save_checkpoint(tmp_path / "here" / "checkpoint.pt", state_of(1))
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    shutil.rmtree(tmp_path / "here")
    assert_is_state(load_checkpoint(tmp_path / "there" / "checkpoint.pt"), 1)


def test_no_piece_of_an_older_checkpoint_is_left_and_none_after_deletion(tmp_path, small_pieces, monkeypatch):
    path = tmp_path / "place" / "checkpoint.pt"
    (path.parent / "checkpoint.pt.keep").mkdir(parents=True)
    (path.parent / "checkpoint.pt.bak").write_text("somebody's own")
    for number in range(4):
        save_checkpoint(path, state_of(number))
    heads = ["checkpoint.pt", "checkpoint.pt.bak", "checkpoint.pt.previous"]
    pieces = [name for name in files_below(path.parent) if name not in heads]
    assert 2 * 3 <= len(pieces) <= 2 * 6
    assert max(Counter(name.split("-")[0] for name in pieces).values()) == 2  # the newest and the one before it
    assert_is_state(load_checkpoint(path), 3)
    delete_checkpoint(path)
    assert files_below(path.parent) == ["checkpoint.pt.bak"]
    save_checkpoint(path, state_of(4))
    monkeypatch.setattr(checkpoint, "PIECE", 1 << 20)
    save_checkpoint(path, state_of(5))  # fits into its own file
    save_checkpoint(path, state_of(6))
    assert files_below(path.parent) == heads
    delete_checkpoint(path)
    assert files_below(path.parent) == ["checkpoint.pt.bak"]
    delete_checkpoint(path)  # where there is none, nothing is wrong


def damage_first(path: Path) -> None:
    """Change a byte of a checkpoint's own file."""
    path.write_bytes(_flip(path.read_bytes()))


def test_whenever_it_is_killed_the_older_or_the_new_checkpoint_can_be_loaded(tmp_path, small_pieces, monkeypatch):
    """What a kill would leave is what lies there: a copy of the folder before and after every change of a name."""
    place, copies = tmp_path / "place", []

    def watched(real):
        def change(*arguments, **options):
            for act in (lambda: None, lambda: real(*arguments, **options)):
                act()
                copies.append(shutil.copytree(place, tmp_path / f"copy{len(copies)}"))

        return change

    for number in range(2):
        save_checkpoint(place / "checkpoint.pt", state_of(number))
    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "replace", watched(os.replace))
        patch.setattr(Path, "unlink", watched(Path.unlink))
        save_checkpoint(place / "checkpoint.pt", state_of(2))
    numbers = [load_checkpoint(copy / "checkpoint.pt")["number"] for copy in copies]
    assert numbers == sorted(numbers)
    assert set(numbers) == {1, 2}
    assert len(numbers) >= 2 * (3 + 2 + 3)  # pieces and two files in, the oldest pieces out
    for copy in copies:  # and so can one if bytes of the newest change now, and the next run tidies up what is left
        damage_first(copy / "checkpoint.pt")
        assert load_checkpoint(copy / "checkpoint.pt")["number"] in (0, 1)
        save_checkpoint(copy / "checkpoint.pt", state_of(3))
        assert len(files_below(copy)) == len(files_below(place))


@pytest.mark.parametrize("number", [0, 1, -1])
@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "of another checkpoint"])
def test_a_missing_or_damaged_piece_is_named_with_what_to_do(tmp_path, small_pieces, damage, number):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, state_of(1))
    pieces = sorted(file for file in tmp_path.iterdir() if file.name.startswith("checkpoint.pt."))
    piece = pieces[number]
    content = piece.read_bytes()
    if damage == "missing":
        piece.unlink()
    else:
        other = {"cut": _cut, "flipped": _flip, "of another checkpoint": lambda c: pieces[number - 1].read_bytes()}
        piece.write_bytes(other[damage](content))
        assert piece.read_bytes() != content
    with pytest.raises(CheckpointError, match=f"{piece.name} of checkpoint .* is missing or corrupt: delete") as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)


def test_a_disk_full_at_any_piece_leaves_the_older_checkpoint_and_nothing_else(tmp_path, small_pieces, monkeypatch):
    path = tmp_path / "place" / "checkpoint.pt"
    for number in range(2):
        save_checkpoint(path, state_of(number))
    before, real = files_below(path.parent), os.replace
    for full_at in range(len(before) // 2 - 1):
        left = [full_at]

        def replace(*places, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(28, "No space left on device")
            real(*places)

        monkeypatch.setattr(atomic.os, "replace", replace)
        with pytest.raises(OSError, match="No space"):
            save_checkpoint(path, state_of(2))
        monkeypatch.setattr(atomic.os, "replace", real)
        assert files_below(path.parent) == before
        assert_is_state(load_checkpoint(path), 1)


@pytest.mark.parametrize("saved_before", [0, 1, 2])
def test_ctrl_c_after_the_new_checkpoint_has_its_name_leaves_it_whole(
    tmp_path, small_pieces, monkeypatch, saved_before
):
    """It comes while the folder is synced: by then the new pieces are all that the checkpoint is."""
    path = tmp_path / "place" / "checkpoint.pt"
    for number in range(saved_before):
        save_checkpoint(path, state_of(number))

    def interrupted(folder):
        if path.exists() and load_checkpoint(path)["number"] == 9:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "_sync_folder", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(path, state_of(9))
    assert_is_state(load_checkpoint(path), 9)
    save_checkpoint(path, state_of(10))
    count = len(files_below(path.parent))
    save_checkpoint(path, state_of(11))
    assert len(files_below(path.parent)) == count  # nothing was left over


def test_a_run_goes_on_from_a_checkpoint_in_pieces(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "PIECE", 100_000)
    monkeypatch.setattr(sys.modules["bpl.train"], "CHECKPOINT_SECONDS", -1.0)
    config, path = small(tree, "bpl", epochs=2), tmp_path / "own" / "checkpoint.pt"
    whole = trained(config, checkpoint=path)
    assert len(files_below(path.parent)) > 2
    assert same_weights(trained(config, checkpoint=path).small, whole.small)


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
