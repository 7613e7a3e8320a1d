"""DDSL: Learning to Explore Distillability and Sparsability (Liu et al., IEEE TPAMI 2023).

    teacher   the trained dense network                                                       `Taught`
    student   the same network from scratch:  min CE + alpha KD  s.t. at most k channels of a layer are not zero
    W step    SGD on CE + alpha KD + rho/2 |W - Z + U|^2                                      loss
    Z, U      Z <- projection of W + U,  U <- U + W - Z,  once an epoch                       after_epoch
    dean      sets alpha and rho, and learns from how a step fares on held-out images         loss, after_step
    retrain   hard masks at the freeze, the smaller network trains on with CE + alpha KD      `Pruned`

W is all that a mask touches, so that Z is the masked network: the filters and, since batch normalisation undoes any
scale of a filter but 0, the scales and shifts behind them. The mathematics is in `bpl.pruning.admm` (Z and U) and
`bpl.methods.dean`. The dean's one-step look-ahead is the step itself: the loss asks for its strengths, the loop makes
the step, and the held-out loss is taken at the weights that it led to.
"""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bpl.config import RunConfig
from bpl.distill import distillation_loss
from bpl.measure import count_macs
from bpl.methods.base import Batch, Material, Training
from bpl.methods.dean import Dean, slope
from bpl.methods.magnitude import Pruned, share_changed
from bpl.methods.taught import Taught
from bpl.pruning import MaskHolder, admm

HELD_OUT = 0.1  # share of the training part that only the dean sees
START_AT = 0.2  # share of the epochs before the first projection: no norm means anything in a network just begun
GROWTH = 10.0  # rho grows by this much from the first projection to the freeze
LOOK_AHEAD_EVERY = 5  # steps
FEATURES = 5  # of the training's state, see `DDSL._state`


@dataclass(frozen=True)
class _Asked:
    """A step that the dean set the strengths of, from its loss to its outcome.

    Attributes:
        factors: (2,) what the dean answered, with the graph.
        distillation: gradient of KD at the weights before the step, one tensor a parameter.
        sparsity: gradient of 1/2 |W - Z|^2 there, by name of the parameter.
        labels: cross-entropy of the batch there.
    """

    factors: Tensor
    distillation: tuple[Tensor, ...]
    sparsity: admm.Tensors
    labels: Tensor


class DDSL(Taught, Pruned):
    """A dense student, distilled and pulled towards its own projection, with strengths that a dean sets.

    Args:
        config: the run: `ratio`, `criterion` (of W + U), `scope`, `round_to`, `freeze_at`, `slim_at`, `strengths`,
            `distill_weight` (alpha without the dean), `rho` (its start without the dean), `temperature`.
        material: gives the dense network and the held-out images.
    """

    shares_batches = False

    def __init__(self, config: RunConfig, material: Material):
        super().__init__(config, material)
        self.start_epoch = min(self.freeze_epoch, max(1, round(START_AT * config.epochs)))
        self.z: admm.Tensors = {}  # empty before the first projection and from the freeze on
        self.u: admm.Tensors = {}
        self.steps = 0
        self.residual = 1.0  # the last primal residual
        self._asked: _Asked | None = None

    def prepare(self, model: nn.Module) -> nn.Module:
        device = self.material.images.images.device
        self.dean = Dean(FEATURES, 2, self.config.seed).to(device) if self.config.strengths == "dean" else None
        self.gap = torch.zeros((), device=device)  # cross-entropy of held-out images minus that of the batch
        self.factors = torch.ones(2, device=device)
        self.strengths = self.given(0)  # (2,) alpha and rho
        return super().prepare(model)

    def training_part(self, indices: Tensor) -> Tensor:
        """All but the held-out images; without the dean too, so that the two arms differ in the dean only."""
        held = max(2, round(HELD_OUT * len(indices)))
        if len(indices) < held + 2:
            raise ValueError(f"the training part has {len(indices)} images: ddsl holds {held} out and needs 2 more")
        order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(self.config.seed))
        self.held_out, part = indices[order[:held]], indices[order[held:].sort().values]
        self.batch = min(self.config.batch_size, len(part))
        return part

    # -- strengths ------------------------------------------------------------------------------------------------
    def given(self, epoch: int) -> Tensor:
        """Alpha and rho without the dean, (2,), in the epoch of this index."""
        over = (epoch - self.start_epoch) / max(1, self.freeze_epoch - self.start_epoch)
        rho = self.config.rho * GROWTH ** min(max(over, 0.0), 1.0)
        return torch.tensor([self.config.distill_weight, rho], device=self.factors.device)

    def _set_strengths(self, epoch: int, factors: Tensor) -> None:
        before, self.factors, self.strengths = self.strengths[1], factors, self.given(epoch) * factors
        self.u = admm.rescale(self.u, before, self.strengths[1])

    def _state(self, training: Training, labels: Tensor, distilled: Tensor) -> Tensor:
        """(FEATURES,) both losses and the gap, as shares of a guess's loss; the training's progress; the residual."""
        guess = math.log(len(self.material.images.classes))
        losses = torch.stack([labels.detach(), distilled.detach(), self.gap]) / guess
        return torch.cat([losses, losses.new_tensor([training.epoch / training.epochs, self.residual])])

    # -- a step ---------------------------------------------------------------------------------------------------
    def loss(self, training: Training, batch: Batch, outputs: Tensor) -> Tensor:
        look_ahead = self.dean is not None and self.steps % LOOK_AHEAD_EVERY == 0
        self.steps += 1
        if look_ahead:  # a graph of our own: the loop's may be compiled, and then serves one backward pass only
            outputs = self._forward(training.model, batch.inputs)
        taught = self.material.infer(self.teacher, batch.inputs)
        labels = self.cross_entropy(outputs, batch.labels)
        distilled = distillation_loss(outputs, taught, self.config.temperature)
        w = dict(training.model.named_parameters())
        if look_ahead:
            factors = self.dean(self._state(training, labels, distilled))
            self._set_strengths(training.epoch, factors.detach())
            slopes = torch.autograd.grad(distilled, tuple(w.values()), retain_graph=True, materialize_grads=True)
            self._asked = _Asked(factors, slopes, admm.difference(w, self.z), labels.detach())
        alpha, rho = self.strengths
        return labels + alpha * distilled + rho * admm.penalty(w, self.z, self.u)

    def after_step(self, training: Training) -> None:
        super().after_step(training)
        if self._asked is not None:
            self._learn(training, self._asked)
            self._asked = None

    def _learn(self, training: Training, asked: _Asked) -> None:
        """Teach the dean how the held-out objective, at the weights that its strengths led to, depends on them.

        That objective is CE + rho/2 |W - Z + U|^2 with rho as given: in the held-out CE alone sparsity has no worth.
        """
        w = dict(training.model.named_parameters())
        chance = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.steps)
        chosen = self.held_out[torch.randperm(len(self.held_out), generator=chance)[: self.batch]]
        labels = self.material.images.labels[chosen.to(self.gap.device)]
        held_out = self.cross_entropy(self._forward(training.model, self.material.inputs(chosen)), labels)
        given = self.given(training.epoch)
        pull = admm.penalty(w, self.z, admm.rescale(self.u, self.strengths[1], given[1]))
        slopes = torch.autograd.grad(held_out + given[1] * pull, tuple(w.values()), materialize_grads=True)

        rate, after = training.optimizer.param_groups[0]["lr"], dict(zip(w, slopes, strict=True))
        by_strength = torch.zeros_like(asked.factors)
        by_strength[0] = slope(rate, after.values(), asked.distillation)
        # with the multipliers rho U as they are (`admm.rescale`), of rho/2 |W - Z + U|^2 only rho (W - Z) goes with rho
        by_strength[1] = slope(rate, (after[name] for name in asked.sparsity), asked.sparsity.values())
        self.dean.learn(asked.factors, by_strength * given)
        self.gap = held_out.detach() - asked.labels

    def _forward(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """Logits (B, classes) in training mode, with a graph; batch statistics and chance stay as they are."""
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        with torch.random.fork_rng([inputs.device] if inputs.is_cuda else []), self.material.autocast():
            return functional_call(model, buffers, (inputs,)).float()

    # -- Z and U --------------------------------------------------------------------------------------------------
    def after_epoch(self, training: Training) -> dict[str, float]:
        alpha, rho = self.strengths.tolist()
        curves = {"distill_strength": alpha, "sparsity_strength": rho if self.z else 0.0}
        curves |= {"primal_residual": 0.0, "dual_residual": 0.0}
        if self.frozen:
            return curves | super().after_epoch(training)
        before = self.masks
        if training.epoch >= self.start_epoch:
            self.residual, curves["dual_residual"] = self._project(training.model)
            curves["primal_residual"] = self.residual
        if training.epoch >= self.freeze_epoch:
            self.z, self.u, self.residual = {}, {}, 0.0
            self._freeze(training)
        self._set_strengths(training.epoch, self.factors)
        return curves | {"mask_changes": share_changed(before, self.masks)}

    def _project(self, model: nn.Module) -> tuple[float, float]:
        """The Z step and, but for the first time, the U step; returns the residuals."""
        w = dict(model.named_parameters())
        self.masks = self._rank(_moved(model, self.u))
        support, first = _touched(model, self.masks), not self.z
        if first:
            self.u = {name: torch.zeros_like(w[name]) for name in support}
        before, self.z = self.z, admm.z_step(w, self.u, support)
        if first:
            return admm.residuals(w, self.z, self.z)
        self.u = admm.u_step(w, self.z, self.u)
        return admm.residuals(w, self.z, before)

    # -- cost -----------------------------------------------------------------------------------------------------
    def macs_per_image(self, model: nn.Module) -> int:
        macs = super().macs_per_image(model)
        if self.dean is None:
            return macs
        # a look-ahead repeats the forward pass, goes back for KD alone, and forward and back on held-out images
        passes = 1 + 2 + 3 * min(self.batch, len(self.held_out)) / self.batch
        return macs + round(passes * count_macs(model, self.config.image_size) / LOOK_AHEAD_EVERY)

    # -- checkpoints ----------------------------------------------------------------------------------------------
    def state(self) -> dict[str, Any]:
        dean = None if self.dean is None else [self.dean.state_dict(), self.dean.optimizer.state_dict()]
        kept = ("z", "u", "steps", "residual", "gap", "factors", "strengths")
        return super().state() | {"dean": dean} | {name: getattr(self, name) for name in kept}

    def restore(self, model: nn.Module, state: dict[str, Any]) -> nn.Module:
        device = self.gap.device
        self.steps, self.residual = state["steps"], state["residual"]
        self.gap, self.factors, self.strengths = (state[n].to(device) for n in ("gap", "factors", "strengths"))
        self.z, self.u = ({k: v.to(device) for k, v in state[n].items()} for n in ("z", "u"))
        if self.dean is not None:
            self.dean.load_state_dict(state["dean"][0])
            self.dean.optimizer.load_state_dict(state["dean"][1])
        return super().restore(model, state)


@torch.no_grad()
def _moved(model: nn.Module, by: admm.Tensors) -> nn.Module:
    """A copy of a network with something added to some of its parameters, by name."""
    moved = copy.deepcopy(model)
    for name, change in by.items():
        moved.get_parameter(name).add_(change)
    return moved


def _touched(model: nn.Module, masks: dict[str, Tensor]) -> admm.Tensors:
    """Name of each parameter that a mask touches -> that mask, shaped to broadcast, 1 = kept."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    holder = MaskHolder(model, masks)
    return {names[id(tensor)]: mask for tensor, mask in zip(holder.tensors, holder.masks, strict=True)}
