"""OED: Pruning Blocks for CNN Compression and Acceleration via Online Ensemble Distillation (Wang et al. 2019).

    replicate   K copies of the network, block i of all of them act(m_i F(x) + shortcut(x))          `OnlineEnsemble`
    teach       CE of copies and teacher + w (KL(teacher || copy) + KL(copy || teacher) / K)          loss
    solve       m by FISTA, the penalty |m|_1 in its proximal map alone                               after_step
    remove      blocks with m_i = 0, for good                                                         after_epoch
    ship        the first copy, m folded into its batch normalisations                                finish

The penalty's factor lambda is `sparsity` where it is given. Else it is the multiplier of sum m <= (number of blocks) *
(1 - share of the search that is over). What this bounds is the sum of the masks, not the number of blocks: the masks
shrink together, and most blocks go in the last epochs of the search. It ends when the network is as near to its budget
as whole blocks allow, at the latest at the freeze, after half of the epochs. Then the masks are folded, and the copies
go on teaching one another. One block stays in any case.
"""

import copy
import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bpl.budget import Budget
from bpl.config import RunConfig
from bpl.distill import distillation_loss
from bpl.fista import Fista, fista_step, shrink_nonnegative, threshold_to_sum
from bpl.measure import count_macs
from bpl.methods.base import Batch, Material, Method, Training
from bpl.models import build_model, classifier_name
from bpl.partner import replace_module
from bpl.pruning import prune_masks, slim
from bpl.residual_blocks import branch_costs, fold_masks, mask_blocks, remove_blocks, residual_blocks
from bpl.schedule import steps_an_epoch


class OnlineEnsemble(nn.Module):
    """Copies of a network that share their block masks, and the teacher that is made of their features.

    Args:
        networks: networks of one shape, whose last linear layers are their classifiers; they are changed in place.

    Attributes:
        masks: (blocks,) the shared soft masks, all 1 at the start; None once they are folded.
        copies: the networks without their classifiers.
        classifiers: those, in the same order.
        teacher: the classifier on the copies' features, concatenated.
    """

    def __init__(self, networks: list[nn.Module]):
        super().__init__()
        self.masks = nn.Parameter(torch.ones(len(residual_blocks(networks[0]))))
        self.classifier_name = classifier_name(networks[0])
        self.classifiers = nn.ModuleList(network.get_submodule(self.classifier_name) for network in networks)
        for network in networks:
            replace_module(network, self.classifier_name, nn.Identity())
        self.copies = nn.ModuleList(mask_blocks(network, self.masks) for network in networks)
        features, classes = self.classifiers[0].in_features, self.classifiers[0].out_features
        self.teacher = nn.Linear(len(networks) * features, classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """In training the logits of all copies, (K, B, classes), and the teacher's; else those of the first copy."""
        if not self.training:
            return self.classifiers[0](self.copies[0](x))  # (B, classes)
        features = [network(x) for network in self.copies]  # K x (B, features)
        logits = [classifier(f) for classifier, f in zip(self.classifiers, features, strict=True)]
        return torch.stack(logits), self.teacher(torch.cat(features, dim=1))

    def first(self) -> nn.Module:
        """The first copy with its classifier, as a network of its own; with masked blocks, if they are not folded."""
        network = copy.deepcopy(self.copies[0])
        replace_module(network, self.classifier_name, copy.deepcopy(self.classifiers[0]))
        return network


def without_blocks(
    ensemble: OnlineEnsemble, names: Iterable[str], masks: dict[str, float] | None = None
) -> OnlineEnsemble:
    """A new ensemble whose copies lack some blocks.

    Args:
        ensemble: it is not changed.
        names: blocks to remove.
        masks: block name -> m, to fold the masks of the others; None to leave them as they are.
    """
    smaller = copy.deepcopy(ensemble)
    for network in smaller.copies:
        remove_blocks(network, names)
        if masks is not None:
            fold_masks(network, masks)
    if masks is not None:
        smaller.masks = None
    return smaller


class OED(Method):
    """Whole residual blocks go, while copies of the network and their ensemble teach one another.

    Args:
        config: the run: `copies`, `distill_weight`, `temperature`, `freeze_at`, and `budget`, `ratio` or `sparsity`.
        material: gives the number of training images.
    """

    shares_batches = False

    def __init__(self, config: RunConfig, material: Material):
        super().__init__(config, material)
        if config.sparsity is not None and config.budget is not None:
            raise ValueError(
                f"sparsity is {config.sparsity:g} and budget is {config.budget}: give one of them, the other follows"
            )
        self.steps_an_epoch = steps_an_epoch(len(material.train), config.batch_size)
        self.removed: list[str] = []  # blocks, in the order in which they went
        self.frozen = False  # blocks and masks are final
        self._chosen: list[str] | None = None  # the final removal, from when it is known to the end of that epoch
        self._penalties: list[float] = []  # lambda in each step of this epoch

    # -- preparation ----------------------------------------------------------------------------------------------
    def prepare(self, model: nn.Module) -> OnlineEnsemble:
        self.names = list(residual_blocks(model))
        self.fista = Fista.start(torch.ones(len(self.names)))
        self._weigh(model)
        others = [build_model(**model.bpl_arch) for _ in range(self.config.copies - 1)]  # with weights of their own
        return OnlineEnsemble([model, *others])

    def _weigh(self, model: nn.Module) -> None:
        """Set `costs`, each block's share of the network's cost, and `target`, the share that is to stay, if any is."""
        config, budget = self.config, self._budget(model)
        dense = budget.cost_of(model, config.image_size)
        self.costs = [cost / dense for cost in branch_costs(model, budget.cost, config.image_size).values()]
        self.target = budget.share if config.sparsity is None else None
        least, cheapest = 1 - sum(self.costs), min(self.costs)
        if self.target is not None and self.target < least + cheapest / 2:
            smallest = math.ceil((least + cheapest) * 1e3) / 1e3
            asked = f"ratio {config.ratio:g}" if config.budget is None else f"budget {budget}"
            raise ValueError(
                f"{asked} asks for {self.target:.3f} of the {budget.cost} of {config.arch}, nearer to the {least:.3f} "
                f"that stay without any of its {len(self.names)} residual blocks than to one block: the smallest "
                f"network with a block has {budget.cost}:{smallest:g}"
            )

    def _budget(self, model: nn.Module) -> Budget:
        """The config's, or where it has none the multiply-accumulates of the network uniformly pruned at `ratio`."""
        if self.config.budget is not None:
            return Budget.parse(self.config.budget)
        uniform, size = slim(model, prune_masks(model, self.config.ratio)), self.config.image_size
        return Budget("macs", count_macs(uniform, size) / count_macs(model, size))

    # -- closed-loop distillation ---------------------------------------------------------------------------------
    def loss(self, training: Training, batch: Batch, outputs: tuple[Tensor, Tensor]) -> Tensor:
        copies, teacher = outputs  # (K, B, classes), (B, classes)
        weight, temperature = self.config.distill_weight, self.config.temperature
        loss = self.cross_entropy(teacher, batch.labels)
        for logits in copies:
            taught = distillation_loss(logits, teacher.detach(), temperature)
            back = distillation_loss(teacher, logits.detach(), temperature) / len(copies)
            loss = loss + self.cross_entropy(logits, batch.labels) + weight * (taught + back)
        return loss

    # -- the masks ------------------------------------------------------------------------------------------------
    def before_step(self, training: Training) -> None:
        """Take the masks' gradient away from the optimiser, its momentum and its weight decay: it is FISTA's alone."""
        masks = training.model.masks
        if masks is not None:
            self._gradient = masks.grad.cpu()  # a small synchronisation a step, while blocks are searched
            masks.grad = None

    def after_step(self, training: Training) -> None:
        if self.frozen or self._chosen is not None:
            return
        step = training.optimizer.param_groups[0]["lr"]
        stepped = fista_step(self.fista, self._gradient, step, partial(self._prox, training.epoch, step))
        if self.target is not None and self._share(stepped.x > 0) <= self.target:
            self._chosen = self._nearest(stepped.x)
            # Masks of the step before, since some that this step takes to 0 may stay; and of this step where a block
            # was at 0 and comes back. A block that is at 0 in both goes, so that all that stay have a mask above 0.
            self.fista = Fista.start(torch.where(self.fista.x > 0, self.fista.x, stepped.x))
        else:
            self.fista = stepped
        training.model.masks.detach().copy_(self.fista.y)

    def _prox(self, epoch: int, step: float, z: Tensor) -> Tensor:
        """The proximal map of step * lambda * |m|_1 over m >= 0, lambda being given or what keeps to the plan."""
        if self.config.sparsity is not None:
            threshold = step * self.config.sparsity
        else:
            done = (epoch + (len(self._penalties) + 1) / self.steps_an_epoch) / self.config.freeze_epoch
            threshold = threshold_to_sum(z, len(z) * max(0.0, 1 - done))
        self._penalties.append(threshold / step if step else 0.0)
        return shrink_nonnegative(z, threshold)

    def _share(self, kept: Tensor) -> float:
        """Share of the network's cost that stays.

        Args:
            kept: (blocks,) bool.
        """
        return 1 - sum(cost for cost, stays in zip(self.costs, kept.tolist(), strict=True) if not stays)

    def _nearest(self, masks: Tensor) -> list[str]:
        """The blocks to remove: of the smallest masks so many, never all, that the cost is nearest to the target.

        Args:
            masks: (blocks,) where FISTA would step next; of two that vanish in that step, the smaller one goes first.
        """
        order = sorted(range(len(masks)), key=lambda i: (float(masks[i]), float(self.fista.x[i])))
        shares = [1 - sum(self.costs[i] for i in order[:count]) for count in range(len(order))]
        count = min(range(len(shares)), key=lambda count: abs(shares[count] - self.target))
        return [self.names[i] for i in order[:count]]

    def after_epoch(self, training: Training) -> dict[str, float]:
        if not self.frozen:
            self._remove(training)
        masks = {f"mask {name}": 0.0 if name in self.removed else m for name, m in self._values().items()}
        penalty = sum(self._penalties) / max(1, len(self._penalties))
        self._penalties = []
        kept = torch.tensor([name not in self.removed for name in self.names])
        return {"lambda": penalty, "blocks": float(kept.sum()), "cost_share": self._share(kept)} | masks

    def _remove(self, training: Training) -> None:
        """Remove the blocks of mask 0; at the freeze those of the final choice, and fold the masks of the others."""
        masks = self.fista.x
        gone = [name for name, m in self._values().items() if m == 0]
        if self._chosen is None and len(gone) == len(self.names):
            raise ValueError(
                f"sparsity is {self.config.sparsity:g}: the masks of all {len(gone)} residual blocks of "
                f"{self.config.arch} are 0 after epoch {training.epoch} of {training.epochs}; with a smaller one, "
                "blocks stay"
            )
        if training.epoch >= self.config.freeze_epoch and self._chosen is None:
            self._chosen = gone if self.target is None else self._nearest(masks)
        self.frozen = self._chosen is not None
        new = [name for name in (self._chosen if self.frozen else gone) if name not in self.removed]
        if new or self.frozen:
            shrink = partial(without_blocks, names=new, masks=self._values() if self.frozen else None)
            training.swap(shrink)
        self.removed += new
        self.fista = Fista.start(masks)  # the next epoch's weights and lambda are others: extrapolate anew
        if not self.frozen:
            training.model.masks.detach().copy_(masks)

    def _values(self) -> dict[str, float]:
        return dict(zip(self.names, self.fista.x.tolist(), strict=True))

    # -- what ships -----------------------------------------------------------------------------------------------
    def as_shipped(self, model: OnlineEnsemble) -> nn.Module:
        return fold_masks(model.first(), self._values())

    def at_size(self, training: Training) -> bool:
        return self.frozen

    def finish(self, model: OnlineEnsemble) -> nn.Module:
        return self.as_shipped(model)

    def macs_per_image(self, model: OnlineEnsemble) -> int:
        first = count_macs(model, self.config.image_size)  # evaluation runs the first copy, training all of them
        return 3 * (len(model.copies) * first + model.teacher.weight.numel())

    # -- checkpoints ----------------------------------------------------------------------------------------------
    def state(self) -> dict[str, Any]:
        return {"removed": self.removed, "frozen": self.frozen, "masks": self.fista.x}

    def restore(self, model: OnlineEnsemble, state: dict[str, Any]) -> OnlineEnsemble:
        self.removed, self.frozen, self.fista = state["removed"], state["frozen"], Fista.start(state["masks"])
        return without_blocks(model, self.removed, self._values() if self.frozen else None)
