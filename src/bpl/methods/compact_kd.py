"""Compact CNN Structure Learning by Knowledge Distillation (Ahmed et al., ICPR 2020), as far as its abstract tells.

    teach       CE + w T^2 KL(teacher || student) + w_f (distance of block outputs)                   loss
    press       + sum over channel sets s of  lambda_block(s) price_s |gamma_s|_1                      loss
    steer       the lambdas, towards a cost that falls straight to the budget until the freeze        after_epoch
    remove      the weakest channels, within the budget, for good, at the freeze                      after_epoch
    fine-tune   the first line alone, on the small network                                            loss

The abstract names distillation, a block-wise optimisation and a budget of FLOPs or parameters; losses and schedule are
not known to us. The penalty is that of MorphNet (Gordon et al. 2018), the published relative; what else is ours stands
on the method's page in the book.
"""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bpl.block_outputs import WithBlockOutputs, block_of, block_outputs
from bpl.budget import Budget
from bpl.channels import ChannelGraph
from bpl.config import RunConfig
from bpl.distill import distillation_loss, feature_loss
from bpl.methods.base import Batch, Material, Training
from bpl.methods.taught import Taught
from bpl.pruning import slim
from bpl.pruning.channel_cost import ChannelCost
from bpl.pruning.gammas import channel_scales, effective_widths, gamma_penalty
from bpl.pruning.masks import kept_filters, prunable_sets
from bpl.pruning.within_budget import masks_within, smallest_widths
from bpl.schedule import SCHEDULES, steps_an_epoch

GAIN = 2.0  # exponent of the controller: a cost 10 % above its course raises the strength by 21 %


class CompactKD(Taught):
    """The dense network as teacher, its copy as student, pruned to a budget while it is taught.

    Args:
        config: the run: `budget` or `ratio`, `sparsity`, `distill_weight`, `temperature`, `feature_weight`,
            `freeze_at`, `scope`, `round_to`, `teacher_epochs`.
        material: gives the dense network.
    """

    shares_batches = False

    def __init__(self, config: RunConfig, material: Material):
        super().__init__(config, material)
        self.masks: dict[str, Tensor] | None = None  # None until the freeze
        self.strength = 0.0  # lambda, before each block's own factor
        self.weights: list[float] = []  # lambda_block(s) * price_s, for each channel set

    # -- before training ------------------------------------------------------------------------------------------
    def prepare(self, model: nn.Module) -> nn.Module:
        config, graph = self.config, ChannelGraph(model)
        self.sets = prunable_sets(graph, config.scope)
        self.set_blocks = [block_of(graph, channels) for channels in self.sets]
        self._plan(graph)  # may refuse the budget, so before the teacher is trained
        self.outputs = block_outputs(graph) if config.feature_weight else {}
        self._teacher = WithBlockOutputs(self.teacher, self.outputs)
        model.load_state_dict(self.teacher.state_dict())
        self._start(model)
        return WithBlockOutputs(model, self.outputs)

    def _plan(self, graph: ChannelGraph) -> None:
        """What the network may cost, and what it costs channel by channel."""
        config = self.config
        budget = Budget.parse(config.budget) if config.budget else None
        kind = budget.cost if budget else "macs"
        self.cost = ChannelCost(graph, self.sets, kind, config.image_size)
        uniform = [kept_filters(n, config.ratio, config.round_to) for n in self.cost.sizes]
        self.allowed = int(budget.share * self.cost.full) if budget else int(self.cost.total(uniform))
        smallest = self.cost.total(smallest_widths(self.cost.sizes, config.round_to))
        if self.allowed < smallest:
            least = smallest / self.cost.full
            network = f"{config.arch} with scope {config.scope!r}"
            if least == 1:  # no layer is wider than one group of channels
                raise ValueError(
                    f"budget is {config.budget!r}: round_to {config.round_to} leaves nothing to remove of {network}, "
                    f"whose widest layer has {max(self.cost.sizes)} filters"
                )
            raise ValueError(
                f"budget is {config.budget!r}: {network} and round_to {config.round_to} cannot go below "
                f"{kind}:{math.ceil(least * 1e4) / 1e4:g}"
            )

    def _start(self, network: nn.Module) -> None:
        """The course of the controller: from the teacher's effective cost to the budget."""
        scales = self._scales(network)
        self.first_share = self.cost.total(effective_widths(scales)) / self.cost.full
        self.last_share = self.allowed / self.cost.full
        self.strength = self.config.sparsity
        if self.strength is None:  # takes a scale of mean size to `last_share` of it by the freeze, if nothing holds it
            travel = self._travel()
            mean_scale = float(torch.cat(scales).mean())
            self.strength = (1 - self.last_share) * mean_scale / travel if travel > 0 else 0.0
        self._weigh(scales)

    def _travel(self) -> float:
        """How far a gamma moves before the freeze under a gradient of 1: the sum of learning rates / (1 - momentum)."""
        c, steps = self.config, steps_an_epoch(len(self.material.train), self.config.batch_size)
        rate = partial(SCHEDULES[c.schedule], steps=steps * c.epochs, highest=c.learning_rate)
        return sum(rate(step) for step in range(steps * c.freeze_epoch)) / (1 - c.momentum)

    # -- the loss -------------------------------------------------------------------------------------------------
    def loss(self, training: Training, batch: Batch, outputs: tuple[Tensor, list[Tensor]]) -> Tensor:
        config, (logits, maps) = self.config, outputs
        with torch.no_grad(), self.material.autocast():
            taught, taught_maps = self._teacher.logits_and_blocks(batch.inputs)
        loss = self.cross_entropy(logits, batch.labels)
        loss = loss + config.distill_weight * distillation_loss(logits, taught, config.temperature)
        if maps:
            kept = [self._still_there(block, m) for block, m in zip(self.outputs, taught_maps, strict=True)]
            distances = [feature_loss(m, t) for m, t in zip(maps, kept, strict=True)]
            loss = loss + config.feature_weight * torch.stack(distances).mean()
        if self.masks is None:
            loss = loss + gamma_penalty(channel_scales(training.model.network, self.sets), self.weights)
        return loss

    def _still_there(self, block: str, maps: Tensor) -> Tensor:
        """The channels of a teacher's block output that the student still has: it started as a copy of the teacher."""
        mask = (self.masks or {}).get(self.outputs[block])
        return maps if mask is None else maps[:, mask.to(maps.device)]

    # -- steering -------------------------------------------------------------------------------------------------
    def after_epoch(self, training: Training) -> dict[str, float]:
        if self.masks is not None:
            widths = [int(self.masks[channels.convs[0]].sum()) for channels in self.sets]
            return {"cost_share": self.cost.total(widths) / self.cost.full, "strength": 0.0, "removed_scale": 0.0}
        scales = self._scales(training.model.network)
        masks = self._choose(scales)
        removed = sum(float(scale[~mask.to(scale.device)].sum()) for scale, mask in zip(scales, masks, strict=True))
        share = self.cost.total(effective_widths(scales)) / self.cost.full
        row = {
            "cost_share": share,
            "strength": self.strength,
            "removed_scale": removed / sum(float(scale.sum()) for scale in scales),
        }
        if training.epoch >= self.config.freeze_epoch:
            self._freeze(training, masks)
        else:
            if self.config.sparsity is None:
                done = training.epoch / self.config.freeze_epoch
                self.strength = steer(self.strength, share, course(self.first_share, self.last_share, done))
            self._weigh(scales)
        return row

    def _weigh(self, scales: list[Tensor]) -> None:
        """What a unit of scale pays in each set from now on: the strength of its block times the price of a channel."""
        widths = effective_widths(scales)
        factors = block_factors(self.cost, self.set_blocks, widths) if self.config.sparsity is None else {}
        self.weights = [
            self.strength * factors.get(block, 1.0) * price
            for block, price in zip(self.set_blocks, prices(self.cost, widths), strict=True)
        ]

    # -- removal and what ships -----------------------------------------------------------------------------------
    @torch.no_grad()
    def _scales(self, network: nn.Module) -> list[Tensor]:
        return channel_scales(network, self.sets)

    def _choose(self, scales: list[Tensor]) -> list[Tensor]:
        return masks_within(self.cost, scales, self.allowed, self.config.round_to)

    def _named(self, masks: list[Tensor]) -> dict[str, Tensor]:
        return {name: mask for channels, mask in zip(self.sets, masks, strict=True) for name in channels.convs}

    def _freeze(self, training: Training, masks: list[Tensor]) -> None:
        self.masks = self._named(masks)
        training.swap(self._smaller)

    def _smaller(self, model: WithBlockOutputs) -> WithBlockOutputs:
        return WithBlockOutputs(slim(model.network, self.masks), model.blocks)

    def as_shipped(self, model: WithBlockOutputs) -> nn.Module:
        if self.masks is not None:
            return model.network
        return slim(model.network, self._named(self._choose(self._scales(model.network))))

    def as_trained(self, model: WithBlockOutputs) -> nn.Module:
        return model.network

    def at_size(self, training: Training) -> bool:
        return self.masks is not None

    def finish(self, model: WithBlockOutputs) -> nn.Module:
        return model.network

    # -- checkpoints ----------------------------------------------------------------------------------------------
    def state(self) -> dict[str, Any]:
        return {
            "masks": self.masks,
            "frozen": self.masks is not None,
            "strength": self.strength,
            "weights": self.weights,
        }

    def restore(self, model: WithBlockOutputs, state: dict[str, Any]) -> nn.Module:
        self.masks, self.strength, self.weights = state["masks"], state["strength"], state["weights"]
        return model if self.masks is None else self._smaller(model)


def course(first: float, last: float, done: float) -> float:
    """The share of the cost that should be left: in a straight line from the first to the last.

    Args:
        first: share at the start.
        last: share that the budget allows.
        done: share of the way to the freeze, 0..1.
    """
    return first + (last - first) * done


def steer(strength: float, share: float, wanted: float) -> float:
    """The strength of the penalty for the next epoch: up where the cost is above its course, down where below.

    Args:
        strength: of this epoch.
        share: share of the dense network's cost that is left.
        wanted: share that should be left now.

    Returns:
        strength * (share / wanted)^GAIN, at most doubled or halved.
    """
    return strength * min(2.0, max(0.5, (share / wanted) ** GAIN))


def prices(cost: ChannelCost, widths: list[float]) -> list[float]:
    """What one channel of each set costs now; 1 is the mean over all channels of the dense network.

    Args:
        cost: the network's cost as a function of its widths.
        widths: channels at work in each set.
    """
    dense = cost.of_channel(cost.sizes)
    mean = sum(n * price for n, price in zip(cost.sizes, dense, strict=True)) / sum(cost.sizes)
    return [price / mean for price in cost.of_channel(widths)]


def block_factors(cost: ChannelCost, blocks: list[str], widths: list[float]) -> dict[str, float]:
    """Each block's share that is left, over the network's: a block that lags is pressed more, an emptied one less.

    A block's share is that of its channels at work, each counted at its price in the dense network.

    Args:
        cost: the network's cost as a function of its widths.
        blocks: the block that each set lies in.
        widths: channels at work in each set.

    Returns:
        Block -> factor of the strength, 1 for all where all shares are equal.
    """
    dense = cost.of_channel(cost.sizes)

    def left(sets: list[int]) -> float:
        return sum(dense[s] * widths[s] for s in sets) / sum(dense[s] * cost.sizes[s] for s in sets)

    whole = left(list(range(len(blocks))))
    return {block: left([s for s, b in enumerate(blocks) if b == block]) / whole for block in set(blocks)}
