"""``scratch``: the narrow network with fresh weights. The control that readers ask for and nobody runs."""

from torch import nn

from bpl.machine.processes import decide
from bpl.methods.base import Method
from bpl.models import initialise
from bpl.pruning import prune_masks, slim
from bpl.widths_file import config_widths


class Scratch(Method):
    """A network of the pruned widths, trained from random weights on the same schedule as all others."""

    def prepare(self, model: nn.Module) -> nn.Module:
        config = self.config
        widths = decide(lambda: config_widths(config, model, self.material.work))
        masks = prune_masks(model, config.ratio, scope=config.scope, round_to=config.round_to, widths=widths)
        narrow = initialise(slim(model, masks))
        for module in narrow.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()
        return narrow
