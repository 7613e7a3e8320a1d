"""The blocks of a network, and a network that returns what its blocks give."""

from collections.abc import Iterable
from contextlib import ExitStack

from torch import Tensor, nn

from bpl.channels import ChannelGraph, Channels
from bpl.residual_blocks import Block


def block_outputs(graph: ChannelGraph) -> dict[str, str]:
    """Where the blocks of a network end.

    Args:
        graph: the network's channel analysis.

    Returns:
        Name of a module whose output is a block's output -> name of a convolution that produces its channels: the
        residual blocks, or where there are none the last convolution of every stage (one output stride each) with its
        batch normalisation. An activation that writes into its input, as torchvision's VGG has them, is then in it.
    """
    blocks = [name for name, module in graph.model.named_modules() if isinstance(module, Block)]
    if blocks:
        return {block: [conv for conv in graph.sites if conv.startswith(f"{block}.")][-1] for block in blocks}
    last = {site.stride: conv for conv, site in graph.sites.items()}
    return {graph.sites[conv].norm or conv: conv for conv in last.values()}


def block_of(graph: ChannelGraph, channels: Channels) -> str:
    """The block that a channel set lies in: a residual block, or the stage of one output stride.

    Args:
        graph: the network's channel analysis.
        channels: a set with at least one convolution.

    Returns:
        The residual block's name where it holds all convolutions of the set, else ``stride 4`` and the like.
    """
    for block in block_outputs(graph):
        if all(conv.startswith(f"{block}.") for conv in channels.convs):
            return block
    return f"stride {graph.sites[channels.convs[0]].stride}"


class WithBlockOutputs(nn.Module):
    """A network that in training mode returns its block outputs beside its logits.

    The hooks that collect them live for one forward pass, so that the network inside can be copied, traced, slimmed and
    shipped as if there were none.

    Args:
        network: the network.
        blocks: names of its modules whose outputs to return.
    """

    def __init__(self, network: nn.Module, blocks: Iterable[str]):
        super().__init__()
        self.network = network
        self.blocks = tuple(blocks)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, list[Tensor]]:
        return self.logits_and_blocks(x) if self.training else self.network(x)

    def logits_and_blocks(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (B, classes), and one map (B, C, H, W) for each block; in either mode."""
        maps: dict[str, Tensor] = {}
        with ExitStack() as hooks:
            for name in self.blocks:
                hook = lambda _module, _inputs, output, name=name: maps.__setitem__(name, output)  # noqa: E731
                hooks.enter_context(self.network.get_submodule(name).register_forward_hook(hook))
            logits = self.network(x)
        return logits, [maps[name] for name in self.blocks]
