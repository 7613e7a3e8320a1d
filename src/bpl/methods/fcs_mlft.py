"""FCS-MLFT: feature channels similarity and mutual-learning fine-tuning (Yang and Xiao, Applied Intelligence 2022).

    FCS     the trained dense network sees training images; a layer's channels are put into bins by the L1 norm of their
            feature maps (K-means); of similar channels in a bin all but one are redundant and go       choose
    MLFT    two pruned networks learn from the labels and from each other (Zhang et al. 2018)             loss

            L1 = CE(p1, y) + KL(p2 || p1)        L2 = CE(p2, y) + KL(p1 || p2)

The two claims of the paper are one flag each: ``criterion="kernel-norm"`` or ``"feature-norm"`` takes other filters at
the same ratio, ``fine_tune="tft"`` trains one network on labels only. The first peer ships, whichever is better.
"""

from typing import Any

import torch
from torch import Tensor, nn

from bpl.channels import ChannelGraph, Channels
from bpl.config import RunConfig
from bpl.distill import distillation_loss
from bpl.methods.base import Batch, Material, Training
from bpl.methods.fine_tuned import FineTuned
from bpl.pruning import prune_masks, slim
from bpl.pruning.feature_maps import inner_products, l1_norms, mean_over_images
from bpl.pruning.masks import choose_masks, highest, prunable_sets
from bpl.pruning.similarity import cosine_similarities, keep_dissimilar, norm_bins


class Peers(nn.Module):
    """Two networks that see the same images.

    Args:
        first: the one that ships.
        second: its peer.
    """

    def __init__(self, first: nn.Module, second: nn.Module):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.first(x), self.second(x)


def mutual_loss(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """KL(p2 || p1) + KL(p1 || p2), where each network learns from the other and the other is held fixed.

    Args:
        first: (B, classes) logits of one peer.
        second: (B, classes) logits of the other.
        temperature: softens both; 1 in Deep Mutual Learning (Zhang et al. 2018).

    Returns:
        A scalar.
    """
    one = distillation_loss(first, second.detach(), temperature)
    other = distillation_loss(second, first.detach(), temperature)
    return one + other


class FCSMLFT(FineTuned):
    """The trained dense network without its redundant channels, fine-tuned beside a peer.

    Args:
        config: the run: `criterion`, `bins`, `samples`, `fine_tune`, `distill_weight`, `temperature`, `ratio`.
        material: gives the dense network, and the images whose feature maps are looked at.
    """

    shares_batches = False

    def __init__(self, config: RunConfig, material: Material):
        super().__init__(config, material)
        self.peer_masks: dict[str, Tensor] = {}

    # -- feature channels similarity ------------------------------------------------------------------------------
    def sample(self) -> Tensor:
        return super().sample()[: 0 if self.config.criterion == "kernel-norm" else None]  # kernels need no image

    def choose(self, network: nn.Module) -> dict[str, Tensor]:
        config = self.config
        if config.criterion == "kernel-norm":
            return prune_masks(network, config.ratio, "l1", config.scope, config.round_to)
        graph = ChannelGraph(network)
        convs = [name for channels in prunable_sets(graph, config.scope) for name in channels.convs]
        found = mean_over_images(graph, convs, self.batches(), l1_norms, inner_products)

        def choose(channels: Channels, kept: int) -> Tensor:
            # a channel that several convolutions share has a map at each: all of them, as one vector
            norms = sum(found[name][0] for name in channels.convs)  # (N,)
            if config.criterion == "feature-norm":
                return highest([norms], kept)
            cosines = cosine_similarities(sum(found[name][1] for name in channels.convs))  # (N, N)
            return keep_dissimilar(norms, cosines, norm_bins(norms, config.bins, config.seed), kept)

        return choose_masks(graph, config.ratio, config.scope, config.round_to, choose)

    # -- mutual-learning fine-tuning ------------------------------------------------------------------------------
    def prepare(self, model: nn.Module) -> nn.Module:
        config = self.config
        if config.fine_tune == "mlft":
            self._check_peers(model)
            # The same widths, other filters: two copies of one network would have nothing to tell each other.
            self.peer_masks = prune_masks(
                self.teacher, config.ratio, "random", config.scope, config.round_to, seed=config.seed
            )
        network = super().prepare(model)
        if self.peer_masks and all(torch.equal(mask, self.peer_masks[name]) for name, mask in self.masks.items()):
            raise ValueError(
                f"seed is {config.seed} with ratio {config.ratio}: both peers of mutual learning would keep the same "
                "filters, and be one network; allowed is a seed or ratio with which they differ, or fine_tune tft"
            )
        return network

    def _check_peers(self, model: nn.Module) -> None:
        """Refuse peers that have all filters, before the dense network is trained."""
        config = self.config
        if all(mask.all() for mask in prune_masks(model, config.ratio, "l1", config.scope, config.round_to).values()):
            raise ValueError(
                f"ratio is {config.ratio} with round_to {config.round_to}: no layer loses a filter, and the two peers "
                "of mutual learning would be one network; allowed is a ratio that removes a filter, or fine_tune tft"
            )

    def prepare_again(self, model: nn.Module, state: dict[str, Any]) -> nn.Module:
        self.peer_masks = state["peer_masks"]
        return super().prepare_again(model, state)

    def network(self, dense: nn.Module) -> nn.Module:
        first = super().network(dense)
        return Peers(first, slim(dense, self.peer_masks).requires_grad_(True)) if self.peer_masks else first

    def loss(self, training: Training, batch: Batch, outputs: Any) -> Tensor:
        config = self.config
        if config.fine_tune == "tft":
            return self.cross_entropy(outputs, batch.labels)
        first, second = outputs
        labels = self.cross_entropy(first, batch.labels) + self.cross_entropy(second, batch.labels)
        return labels + config.distill_weight * mutual_loss(first, second, config.temperature)

    # -- what ships -----------------------------------------------------------------------------------------------
    def as_shipped(self, model: nn.Module) -> nn.Module:
        return model.first if isinstance(model, Peers) else model

    def as_trained(self, model: nn.Module) -> nn.Module:
        return self.as_shipped(model)

    def finish(self, model: nn.Module) -> nn.Module:
        return super().finish(self.as_shipped(model))

    def state(self) -> dict[str, Any]:
        return super().state() | {"peer_masks": self.peer_masks}
