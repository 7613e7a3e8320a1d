"""The training loop: schedules, determinism, kill and resume, what may never influence a run, odd sizes."""

import math
import sys

import pytest
import torch
from support import SMALL, make_tree, places_fixture, same_weights, small, trained, tree_fixture  # noqa: F401
from torch import nn

from bpl import train as train_module
from bpl.data import load_images
from bpl.machine.checkpoint import CheckpointError
from bpl.machine.ending import Stopped
from bpl.schedule import one_cycle, released
from bpl.train import predict, top1

pytestmark = pytest.mark.usefixtures("places")


# -- schedules ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("steps", [10, 100, 1000])
def test_one_cycle_rises_and_falls_as_torchs_does(steps):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.1, total_steps=steps, pct_start=0.3, div_factor=25, final_div_factor=4000
    )
    theirs = []
    for _ in range(steps):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(theirs) < steps:
            reference.step()
    ours = [one_cycle(step, steps, 0.1) for step in range(steps)]
    assert ours[0] == pytest.approx(theirs[0])  # 1/25 of the top
    assert max(ours) == pytest.approx(max(theirs), rel=0.01)
    # torch's top lies one step earlier and its end exactly at the last step: the same shape up to one step
    near = max(abs(a - b) for a, b in zip(theirs, theirs[1:], strict=False))
    assert all(abs(a - b) <= 1.5 * near for a, b in zip(ours, theirs, strict=True))
    assert ours[-1] <= 0.1 * (1 - math.cos(math.pi / (0.7 * steps))) / 2 + 1e-6


def test_one_cycle_has_one_top_and_never_stops_learning():
    rates = [one_cycle(step, 200, 0.1) for step in range(200)]
    top = rates.index(max(rates))
    assert top == 60
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert min(rates) > 0


def test_the_released_schedule_is_1_a_tenth_and_a_hundredth():
    rates = [released(step, 300, 0.1) for step in range(300)]
    assert rates == pytest.approx([0.1] * 150 + [0.01] * 75 + [0.001] * 75)


@pytest.mark.parametrize("schedule", [one_cycle, released])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_schedule_of_very_few_steps_gives_good_rates(schedule, steps):
    assert all(0 < schedule(step, steps, 0.1) <= 0.1 for step in range(steps))


# -- determinism --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["dense", "bpl"])  # for others the tests of killed runs compare two whole runs
def test_two_runs_of_one_config_give_the_same_weights_to_the_bit(tree, method):
    one, other = (trained(small(tree, method, epochs=2)) for _ in range(2))
    assert same_weights(one.network, other.network)
    assert same_weights(one.small, other.small)
    assert one.curves == other.curves


def test_the_state_of_the_global_generator_does_not_matter(tree):
    config = small(tree, "bpl", epochs=2)
    torch.manual_seed(1)
    one = trained(config)
    torch.manual_seed(2)
    torch.rand(5)
    assert same_weights(one.network, trained(config).network)


def test_different_seeds_give_different_weights(tree):
    one, other = (trained(small(tree, "dense", epochs=1, seed=seed)) for seed in (0, 1))
    assert not same_weights(one.network, other.network)


def test_seeds_differ_in_every_epoch_and_for_every_purpose():
    from bpl.train import _seed_of

    drawn = [_seed_of(seed, epoch, what) for seed in range(5) for epoch in range(300) for what in range(3)]
    assert len(set(drawn)) == len(drawn)


# -- resuming (kills: tests/faults) -----------------------------------------------------------------------------------
def test_a_run_that_goes_on_with_another_version_of_the_library_says_so_and_names_both(
    tree, tmp_path, monkeypatch, capsys
):
    config, checkpoint = small(tree, "dense", epochs=2), tmp_path / "run" / "checkpoint.pt"
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "source_digest", lambda: "older")
        with pytest.raises(Stopped):
            trained(config, checkpoint=checkpoint, watch=lambda *_: True)
    assert "another version" not in capsys.readouterr().err
    out = trained(config, checkpoint=checkpoint)
    assert "begun with another version of the library" in capsys.readouterr().err
    assert out.sources == ["older", train_module.source_digest()]


def test_a_run_that_was_killed_after_its_last_epoch_only_has_to_be_measured(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["bpl.train"], "CHECKPOINT_SECONDS", -1.0)
    config = small(tree, "bpl")
    whole = trained(config, checkpoint=tmp_path / "checkpoint.pt")
    again = trained(config, checkpoint=tmp_path / "checkpoint.pt")
    assert same_weights(again.small, whole.small)
    assert again.curves == whole.curves
    assert again.seconds == whole.seconds


def test_a_checkpoint_of_images_that_changed_under_their_names_is_not_gone_on_from(tmp_path):
    tree, checkpoint = make_tree(tmp_path / "images", per_class=4), tmp_path / "checkpoint.pt"
    config = small(tree, "dense", batch_size=4)
    with pytest.raises(Stopped):
        trained(config, checkpoint=checkpoint, watch=lambda epoch, row: True)
    one, other = sorted(tree.glob("*/*"))[:2]
    one.write_bytes(other.read_bytes())
    with pytest.raises(CheckpointError, match="belongs to another run or other images: delete it"):
        trained(config, checkpoint=checkpoint)


# -- what may never influence a run -------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["bpl", "fpgm"])
def test_the_labels_of_the_parts_not_trained_on_change_no_weight_and_no_mask(tree, method):
    def all_the_same(labels, split):
        labels[split.test] = labels[split.validation] = 0
        return labels

    config = small(tree, method, epochs=2)
    one, other = trained(config), trained(config, relabel=all_the_same)
    assert same_weights(one.network, other.network)
    assert same_weights(one.small, other.small)
    assert one.curves["loss"] == other.curves["loss"]
    for part in ("test", "validation"):
        assert one.curves[part] != other.curves[part]  # the change was seen, in the measurement only


def test_the_labels_trained_on_do_change_the_weights(tree):
    def shift(labels, split):
        labels[split.train[:10]] = (labels[split.train[:10]] + 1) % 4
        return labels

    config = small(tree, "dense", epochs=1)
    assert not same_weights(trained(config).network, trained(config, relabel=shift).network)


# -- sizes and curves ---------------------------------------------------------------------------------------------
def test_every_curve_has_one_value_an_epoch(tree):
    out = trained(small(tree, "bpl"))
    assert set(out.curves) == {
        "loss", "learning_rate", "validation", "test", "at_size", "mask_changes", "partner_cosine", "kernel_norm",
    }  # fmt: skip
    assert {len(values) for values in out.curves.values()} == {3}


def test_a_split_without_validation_part_leaves_no_validation_curve(tree):
    out = trained(small(tree, "bpl", split="paper"))
    assert "validation" not in out.curves
    assert len(out.curves["test"]) == 3


def test_training_learns(tree):
    out = trained(small(tree, "dense", epochs=8))
    assert out.curves["loss"][-1] < 0.5 * out.curves["loss"][0]
    assert out.curves["test"][-1] > 60  # of four classes


def test_the_steps_on_the_smaller_network_are_counted_as_cheaper(tree):
    masked, slimmed = (trained(small(tree, "bpl", slim_at=slim)) for slim in ("none", "freeze"))
    assert slimmed.training_macs < 0.8 * masked.training_macs


# 4 classes of 20 images: 56 to train on
@pytest.mark.parametrize(
    ("batch_size", "seen"),
    [(500, 56), (57, 56), (56, 56), (55, 55), (11, 55), (2, 56)],
    ids=["far more than there are", "one more", "all", "one image left over", "last of one image", "pairs"],
)
def test_any_batch_size_trains(tree, batch_size, seen):
    from bpl.measure import count_macs

    out = trained(small(tree, "dense", epochs=1, batch_size=batch_size))
    assert math.isfinite(out.curves["loss"][0])
    assert out.training_macs == 3 * count_macs(out.network, 32) * seen


def test_the_fewest_images_that_can_be_split_train(tmp_path):
    tree = make_tree(tmp_path / "three", classes=2, per_class=3)
    out = trained(small(tree, "bpl", epochs=2))
    assert len(out.curves["test"]) == 2


def test_a_loss_that_is_no_longer_finite_stops_the_run_and_names_the_epoch(tree):
    with pytest.raises(FloatingPointError, match=r"the loss became (nan|inf) in epoch [12] of 3 .*learning_rate"):
        trained(small(tree, "dense", learning_rate=1e30))


def test_a_loss_that_is_no_longer_finite_leaves_the_last_good_checkpoint(tree, tmp_path, monkeypatch):
    module = sys.modules["bpl.train"]
    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", -1.0)
    good = trained(small(tree, "dense", epochs=1))

    def from_epoch_2(step, steps, highest):
        return highest if step < steps // 3 else 1e30

    monkeypatch.setitem(module.SCHEDULES, "one-cycle", from_epoch_2)
    with pytest.raises(FloatingPointError):
        trained(small(tree, "dense"), checkpoint=tmp_path / "checkpoint.pt")
    state = module.load_checkpoint(tmp_path / "checkpoint.pt")
    assert state["epoch"] >= 1
    assert state["model"].keys() == good.network.state_dict().keys()
    if state["epoch"] == 1:
        assert all(tensor.isfinite().all() for tensor in state["model"].values())


# -- measuring ----------------------------------------------------------------------------------------------------
def test_top1_is_the_share_of_right_answers_in_percent():
    logits = torch.tensor([[0.0, 1.0], [2.0, 1.0], [0.0, 3.0], [5.0, 1.0]])
    assert top1(logits, torch.tensor([1, 0, 0, 0])) == 75.0


def test_logits_come_in_the_order_of_the_indices_whatever_the_batches(tree, monkeypatch):
    from bpl.data import load_images

    config = small(tree, "dense", epochs=1)
    network = trained(config).network
    images = load_images(config.dataset, 32, progress=False)
    indices = torch.tensor([7, 3, 60, 11, 42])
    whole = predict(network, images, indices)
    monkeypatch.setattr(sys.modules["bpl.train"], "EVALUATION_BATCH", 2)
    assert torch.allclose(predict(network, images, indices), whole, atol=1e-5)
    assert torch.allclose(predict(network, images, indices.flip(0)), whole.flip(0), atol=1e-5)
    assert not torch.allclose(whole, whole.flip(0), atol=1e-3)


def test_training_normalises_its_images_as_the_shipped_network_does(tree, monkeypatch):
    """Crops are sampled from finer images; where no card states them, these have other statistics."""
    used = []
    plain = train_module.normalise
    monkeypatch.setattr(train_module, "normalise", lambda x, mean, std: used.append((mean, std)) or plain(x, mean, std))
    config = small(tree, "dense", epochs=1, image_size=32, stored_size=48)
    trained(config)
    images, finer = (load_images(str(tree), size, progress=False) for size in (32, 48))
    assert images.std != finer.std
    assert set(used) == {(images.mean, images.std)}
