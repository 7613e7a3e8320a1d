"""``hrank``: filters whose feature maps have the lowest rank go (Lin et al., CVPR 2020).

    score(filter) = mean over images of rank(its output map, as an H x W matrix)

The released code prunes and fine-tunes layer after layer; here all layers are pruned at once and fine-tuned together.
A map of H x W pixels has at most rank min(H, W), so that in the deep layers of small images many filters score alike:
of equal ones the first stay.
"""

from torch import Tensor, nn

from bpl.channels import ChannelGraph, Channels
from bpl.methods.fine_tuned import FineTuned
from bpl.pruning.feature_maps import mean_over_images, ranks
from bpl.pruning.masks import choose_masks, highest, prunable_sets


class HRank(FineTuned):
    """Ranks the filters of the trained dense network by the rank of their feature maps; labels only from then on."""

    def choose(self, network: nn.Module) -> dict[str, Tensor]:
        config, graph = self.config, ChannelGraph(network)
        convs = [name for channels in prunable_sets(graph, config.scope) for name in channels.convs]
        found = mean_over_images(graph, convs, self.batches(), ranks)

        def choose(channels: Channels, kept: int) -> Tensor:
            return highest([found[name][0] for name in channels.convs], kept)

        return choose_masks(graph, config.ratio, config.scope, config.round_to, choose)
