"""DDSL prototype"""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bpl.config import RunConfig
from bpl.distill import distillation_loss
from bpl.measure import count_macs
from bpl.methods.base import Batch, Material, Training
from bpl.methods.dean import Dean, slope
from bpl.methods.magnitude import Pruned, _share_changed
from bpl.methods.taught import Taught
from bpl.pruning import MaskHolder, admm

HELD_OUT = 0.1
LOOK_AHEAD_EVERY = 5
START_AT = 0.1
GROWTH = 10.0
DEAN_RATE = 1e-2
META = "aug"


class DDSL(Taught, Pruned):
    def __init__(self, config: RunConfig, material: Material):
        super().__init__(config, material)
        self.start_epoch = max(1, round(START_AT * config.epochs))
        self.held_out = None
        self.step = 0
        self.z = self.u = None
        self.dean = None
        self.primal = 1.0
        self.log = []

    def training_part(self, indices: Tensor) -> Tensor:
        held = max(2, round(HELD_OUT * len(indices)))
        chance = torch.Generator().manual_seed(self.config.seed)
        order = torch.randperm(len(indices), generator=chance)
        self.held_out = indices[order[:held]]
        return indices[order[held:].sort().values]

    def prepare(self, model):
        device = self.material.images.images.device
        self.factors = torch.ones(2, device=device)
        self.gap = torch.zeros((), device=device)
        if self.config.strengths == "dean":
            self.dean = Dean(5, 2, self.config.seed).to(device)
            self.adam = torch.optim.Adam(self.dean.parameters(), DEAN_RATE)
        self._asked = None
        return model

    def given(self, epoch):
        span = max(1, self.freeze_epoch - self.start_epoch)
        share = min(max(epoch - self.start_epoch, 0) / span, 1.0)
        return torch.tensor([self.config.distill_weight, self.config.rho * GROWTH**share], device=self.factors.device)

    def _set(self, epoch, factors):
        old = self.strengths if hasattr(self, "strengths") else None
        self.factors = factors
        self.strengths = self.given(epoch) * factors
        if self.u is not None:
            self.u = admm.rescale(self.u, old[1], self.strengths[1])

    def loss(self, training, batch, outputs):
        taught = self.material.infer(self.teacher, batch.inputs)
        labels = self.cross_entropy(outputs, batch.labels)
        distilled = distillation_loss(outputs, taught, self.config.temperature)
        w = dict(training.model.named_parameters())
        if not hasattr(self, "strengths"):
            self._set(training.epoch, self.factors)
        if self.dean is not None and self.step % LOOK_AHEAD_EVERY == 0:
            classes = math.log(len(self.material.images.classes))
            state = torch.stack(
                [
                    torch.tensor(training.epoch / training.epochs),
                    labels.detach() / classes,
                    distilled.detach() / classes,
                    self.gap / classes,
                    torch.tensor(self.primal),
                ]
            )
            factors = self.dean(state)
            self._set(training.epoch, factors.detach())
            gkd = torch.autograd.grad(distilled, list(w.values()), retain_graph=True, materialize_grads=True)
            drift = admm.minus(w, self.z) if self.z is not None else {}
            self._asked = factors, gkd, drift, labels.detach()
        self.step += 1
        loss = labels + self.strengths[0] * distilled
        if self.z is not None:
            loss = loss + self.strengths[1] * admm.penalty(w, self.z, self.u)
        return loss

    def after_step(self, training):
        super().after_step(training)
        if self._asked is None:
            return
        factors, gkd, drift, ce = self._asked
        self._asked = None
        model = training.model
        w = dict(model.named_parameters())
        chance = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)
        pick = self.held_out[torch.randperm(len(self.held_out), generator=chance)[: self.config.batch_size]]
        labels = self.material.images.labels[pick]
        buffers = {n: b.clone() for n, b in model.named_buffers()}
        with self.material.autocast():
            out = functional_call(model, buffers, (self.material.inputs(pick),))
        held = self.cross_entropy(out, labels)
        self.gap = held.detach() - ce
        given = self.given(training.epoch)
        objective = held
        if self.z is not None and META == "aug":
            objective = objective + given[1] * admm.penalty(w, self.z, admm.rescale(self.u, self.strengths[1], given[1]))
        slopes = dict(zip(w, torch.autograd.grad(objective, list(w.values()), materialize_grads=True)))
        rate = training.optimizer.param_groups[0]["lr"]
        d_alpha = slope(rate, slopes.values(), gkd)
        d_rho = slope(rate, [slopes[n] for n in drift], drift.values()) if drift else torch.zeros(())
        g = torch.stack([d_alpha, d_rho]) * given
        self.log.append((training.epoch, *factors.tolist(), *g.tolist(), float(held), float(ce)))
        self.adam.zero_grad()
        factors.backward(g)
        self.adam.step()

    def _touched(self, model, masks):
        names = {id(p): n for n, p in model.named_parameters()}
        holder = MaskHolder(model, masks)
        return {names[id(t)]: m for t, m in zip(holder.tensors, holder.masks, strict=True)}

    def _project(self, model):
        w = {n: p.detach() for n, p in model.named_parameters()}
        there = copy.deepcopy(model)
        if self.u is not None:
            with torch.no_grad():
                for n, u in self.u.items():
                    there.get_parameter(n).add_(u)
        self.masks = self._rank(there)
        support = self._touched(model, self.masks)
        first = self.z is None
        if first:
            self.u = {n: torch.zeros_like(w[n]) for n in support}
        before = self.z
        point = admm.plus(w, self.u)
        self.z = admm.project(point, support)
        if not first:
            self.u = admm.minus(point, self.z)
        return admm.residuals(w, self.z, before or self.z)

    def after_epoch(self, training):
        before = self.masks
        primal = dual = 0.0
        curves = {"distill_strength": float(self.strengths[0]), "sparsity_strength": 0.0 if self.frozen or self.z is None else float(self.strengths[1])}
        if not self.frozen and training.epoch >= min(self.start_epoch, self.freeze_epoch):
            primal, dual = self._project(training.model)
            self.primal = primal
            if training.epoch >= self.freeze_epoch:
                self.z = self.u = None
                self._freeze(training)
        self._set(training.epoch, self.factors)
        return curves | {"primal_residual": primal, "dual_residual": dual, "mask_changes": 0.0 if self.frozen else _share_changed(before, self.masks)}
