"""When the network in training gets smaller: `slim_at`, and that the steps after it are those of the masked network."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from support import places_fixture, same_weights, small, trained, tree_fixture  # noqa: F401
from torch import nn

from bpl.config import RunConfig
from bpl.diversity import diversity_loss
from bpl.measure import count_macs
from bpl.methods import Training
from bpl.models import build_model
from bpl.partner import grow_partners
from bpl.pruning import MaskHolder, prune_masks, slim

pytestmark = pytest.mark.usefixtures("places")


def step(training: Training, images: torch.Tensor, labels: torch.Tensor) -> float:
    """One step of BPL, diversity loss included."""
    loss = F.cross_entropy(training.model(images), labels) + diversity_loss(training.model)
    loss.backward()
    training.optimizer.step()
    training.optimizer.zero_grad()
    return float(loss.detach())


@pytest.mark.parametrize("arch", ["resnet50", "resnet18", "mobilenet_v2"])
def test_the_next_steps_on_the_smaller_network_are_those_of_the_masked_one_to_float_rounding(arch):
    """Momentum and weight decay included. In float64: in float32 four steps of a network with batch normalisation over
    few pixels already turn rounding into 0.4 % of the loss, and a lost buffer could hide in that."""
    torch.manual_seed(0)
    model = grow_partners(build_model(arch, 4, 32, 16)).train().double()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # the two networks would draw differently
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=5e-3)
    masked = Training(model, optimizer, epoch=1, epochs=9)
    batches = [(torch.randn(8, 3, 32, 32).double(), torch.randint(0, 4, (8,))) for _ in range(6)]
    for batch in batches[:2]:
        step(masked, *batch)  # so that there is momentum to carry

    masks = prune_masks(model, 0.7)
    smaller = Training(model, optimizer, epoch=1, epochs=9)
    shrink = partial(slim, masks=masks)
    smaller.swap(shrink)
    smaller.model.train()
    holder = MaskHolder(model, masks, readers=True)
    holder.apply()
    holder.apply_to_momentum(optimizer)

    for batch in batches[2:]:
        one, other = step(smaller, *batch), step(masked, *batch)
        holder.apply()
        holder.apply_to_momentum(optimizer)
        assert one == pytest.approx(other, rel=1e-9)
    again = slim(masked.model, masks)  # and the weights are still those of the masked network's kept filters
    for (name, weight), kept in zip(smaller.model.named_parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(weight, kept, rtol=1e-5, atol=1e-7, msg=name)


def test_carrying_no_momentum_would_be_seen():
    """The test above can fail: the same steps with an empty optimiser go elsewhere."""
    torch.manual_seed(0)
    model = build_model("resnet18", 4, 32, 8)
    images, labels = torch.randn(8, 3, 32, 32), torch.randint(0, 4, (8,))

    def two_steps(momentum: bool) -> torch.Tensor:
        network = slim(model, prune_masks(model, 0.5)).train()
        optimizer = torch.optim.SGD(network.parameters(), 0.01, 0.9)
        for buffer in network.parameters() if momentum else ():
            optimizer.state[buffer]["momentum_buffer"] = torch.ones_like(buffer)
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
        return nn.utils.parameters_to_vector(network.parameters()).detach()

    assert float((two_steps(True) - two_steps(False)).abs().max()) > 1e-3


def test_slim_at_names_the_epoch_from_which_training_is_cheaper(tree):
    settings = {"epochs": 4, "freeze_at": 0.5, "learning_rate": 0.02}
    freeze, late, never = (trained(small(tree, "bpl", slim_at=at, **settings)) for at in ("freeze", 3, "none"))
    assert freeze.training_macs < late.training_macs < never.training_macs
    assert 2 * late.training_macs == freeze.training_macs + never.training_macs  # one cheap epoch of two
    assert late.curves["loss"] == pytest.approx(never.curves["loss"], rel=2e-3)
    assert late.curves["at_size"] == [0.0, 1.0, 1.0, 1.0]
    assert count_macs(late.small, 32) == count_macs(never.small, 32) == count_macs(freeze.small, 32)


def test_a_run_resumed_between_freeze_and_slimming_ends_as_one_that_was_not(tree, tmp_path, monkeypatch):
    import sys

    config = small(tree, "bpl", epochs=4, freeze_at=0.25, slim_at=3)
    whole = trained(config)
    train_module = sys.modules["bpl.train"]
    monkeypatch.setattr(train_module, "CHECKPOINT_SECONDS", -1.0)
    epoch, finished = train_module._epoch, []

    def interrupted(*arguments):
        if len(finished) == 2:  # masks are frozen since epoch 1, the network is whole until epoch 3
            raise KeyboardInterrupt
        finished.append(epoch(*arguments))
        return finished[-1]

    monkeypatch.setattr(train_module, "_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained(config, checkpoint=tmp_path / "checkpoint.pt")
    monkeypatch.setattr(train_module, "_epoch", epoch)
    resumed = trained(config, checkpoint=tmp_path / "checkpoint.pt")
    assert same_weights(resumed.network, whole.network)
    assert resumed.training_macs == whole.training_macs


# -- the knob -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("value", [29, 61, 0, -1, 30.0, True, "end", ""])
def test_a_bad_epoch_is_refused_with_the_allowed_ones(value):
    with pytest.raises(ValueError) as error:
        RunConfig("ucm", "bpl", epochs=60, freeze_at=0.5, slim_at=value)
    assert repr(value) in str(error.value)
    assert "freeze, none and a whole number of epochs from 30, where the masks freeze, to 60" in str(error.value)


def test_the_epoch_makes_another_run_and_survives_the_command_line():
    from test_config import parsed

    config = RunConfig("ucm", "bpl", epochs=60, freeze_at=0.5, slim_at=40)
    assert "--slim-at 40" in config.command()
    assert parsed(config.command()) == config
    assert config.identity("real") != RunConfig("ucm", "bpl", epochs=60, freeze_at=0.5).identity("real")
    assert RunConfig("ucm", "dense", slim_at=40).slim_at is None
