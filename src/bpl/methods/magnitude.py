"""Pruning in training: the part that BPL shares with the classics.

    sfp     soft filter pruning (He et al. 2018): the filters of smallest L2 norm are set to zero after every epoch, and
            go on training, so that they may come back
    fpgm    the same with the distance to the other filters as criterion (He et al. 2019)
    l1      the filters of smallest L1 norm go once, and the network trains on (Li et al. 2017)
    random  a random choice goes once

All four have the epochs of everybody else: what the papers do after training (fine-tune) happens here in the epochs
after the freeze. From the freeze on, pruned channels emit exactly 0, and by default the network is made smaller there
and then, the optimiser's momentum carried over, which changes no result and saves the time.
"""

from functools import partial
from typing import Any

from torch import Tensor, nn

from bpl.config import RunConfig
from bpl.defaults import LEAKING_MASKS
from bpl.machine.processes import decide
from bpl.methods.base import Material, Training
from bpl.methods.targeted import Targeted
from bpl.partner import fuse_partners
from bpl.pruning import MaskHolder, prune_masks, slim


class Pruned(Targeted):
    """Ranks filters in training, freezes the ranking, ships the slimmed network.

    Args:
        config: the run: `ratio`, `criterion`, `mask`, `mask_every`, `freeze_at`, `slim_at`, `scope`, `round_to`,
            `target`.
        material: where the work of earlier runs lies, for a target of time.
    """

    def __init__(self, config: RunConfig, material: Material):
        super().__init__(config, material)
        self.freeze_epoch = config.freeze_epoch
        self.slim_epoch = {"freeze": config.freeze_epoch, "none": None}.get(config.slim_at, config.slim_at)
        self.masks: dict[str, Tensor] | None = None
        self.frozen = False
        self.slimmed = False
        self._holder: MaskHolder | None = None  # acts after every step, while there is something to hold at zero

    def prepare(self, model: nn.Module) -> nn.Module:
        self.find_widths(model)
        return model

    # -- ranking and freezing -------------------------------------------------------------------------------------
    def after_step(self, training: Training) -> None:
        if self._holder is not None:
            self._holder.apply()
            self._holder.apply_to_momentum(training.optimizer)

    def after_epoch(self, training: Training) -> dict[str, float]:
        config, before = self.config, self.masks
        if self.frozen:
            if training.epoch == self.slim_epoch:
                self._shrink(training)
            return {"mask_changes": 0.0}
        if config.mask in LEAKING_MASKS:
            self._rank_as_released(training)
        elif training.epoch >= self.freeze_epoch:
            self.masks = self._rank(training.model)
            self._freeze(training)
        elif config.mask == "soft" and training.epoch % config.mask_every == 0:
            self.masks = self._rank(training.model)
            MaskHolder(training.model, self.masks, filters_only=True).apply()
        return {"mask_changes": share_changed(before, self.masks)}

    def _rank(self, model: nn.Module) -> dict[str, Tensor]:
        c = self.config
        return decide(
            lambda: prune_masks(model, c.ratio, c.criterion, c.scope, c.round_to, seed=c.seed, widths=self.widths)
        )

    def _freeze(self, training: Training) -> None:
        self.frozen = True
        if training.epoch == self.slim_epoch:
            self._shrink(training)
        else:
            self._hold(training.model)

    def _shrink(self, training: Training) -> None:
        shrink = partial(slim, masks=self.masks)
        training.swap(shrink)
        self.slimmed, self._holder = True, None

    def _hold(self, model: nn.Module) -> None:
        self._holder = MaskHolder(model, self.masks, readers=True)  # a loss on kernels must not see dead weights
        self._holder.apply()

    def _rank_as_released(self, training: Training) -> None:
        """The released code: zero the filters of all branches at every ranking, and hold no batch normalisation.

        The first ranking comes after the first epoch, the others every `mask_every` epochs, and one at the end.
        """
        if (training.epoch - 1) % self.config.mask_every and training.epoch < training.epochs:
            return
        self.masks = self._rank(training.model)
        MaskHolder(training.model, self.masks, filters_only=True).apply()
        self._holder = self._holder_as_released(training.model)

    def _holder_as_released(self, model: nn.Module) -> MaskHolder:
        """What acts after every step: the released code never masks the partners' gradients."""
        return MaskHolder(model, self.masks, filters_only=True, partners=self.config.mask != "released")

    # -- what ships -----------------------------------------------------------------------------------------------
    def as_shipped(self, model: nn.Module) -> nn.Module:
        """The slimmed network; under a leaking mask the masked one, leaks included, as the released code reports."""
        if self.masks is None or self.slimmed or self.config.mask in LEAKING_MASKS:
            return model
        return slim(model, self.masks)

    def at_size(self, training: Training) -> bool:
        return self.frozen or self.config.mask in LEAKING_MASKS

    def finish(self, model: nn.Module) -> nn.Module:
        fused = fuse_partners(model)
        return fused if self.slimmed else slim(fused, self.masks)

    # -- checkpoints ----------------------------------------------------------------------------------------------
    def state(self) -> dict[str, Any]:
        return super().state() | {"masks": self.masks, "frozen": self.frozen, "slimmed": self.slimmed}

    def restore(self, model: nn.Module, state: dict[str, Any]) -> nn.Module:
        self.masks, self.frozen, self.slimmed = state["masks"], state["frozen"], state["slimmed"]
        if self.slimmed:
            return slim(model, self.masks)
        if self.frozen:
            self._hold(model)
        elif self.masks is not None and self.config.mask in LEAKING_MASKS:
            self._holder = self._holder_as_released(model)
        return model


def share_changed(before: dict[str, Tensor] | None, after: dict[str, Tensor] | None) -> float:
    """Share of the pruned filters that were not pruned at the ranking before."""
    if after is None or before is None:
        return 0.0
    pruned = sum(int((~mask).sum()) for mask in after.values())
    new = sum(int((~mask & before[name]).sum()) for name, mask in after.items())
    return new / max(pruned, 1)
