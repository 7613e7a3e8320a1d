"""``scratch``: the narrow network with fresh weights. The control that readers ask for and nobody runs."""

from torch import nn

from bpl.methods.targeted import Targeted
from bpl.models import initialise, redraw
from bpl.pruning import prune_masks, slim


class Scratch(Targeted):
    """A network of the pruned widths, trained from random weights on the same schedule as all others."""

    def prepare(self, model: nn.Module) -> nn.Module:
        config = self.config
        widths = self.find_widths(model)
        masks = prune_masks(model, config.ratio, scope=config.scope, round_to=config.round_to, widths=widths)
        narrow = initialise(slim(model, masks))
        for module in narrow.modules():
            if isinstance(module, nn.Linear):
                redraw(module)
        return narrow
