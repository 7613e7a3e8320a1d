"""Holding pruned channels at exactly zero while the network trains on at its full size."""

import torch
from torch import Tensor, nn

from bpl.channels import ChannelGraph
from bpl.pruning.masks import check_masks, convs_of, norms_of, readers_of, removable


class MaskHolder:
    """Holds pruned channels of a network at zero: knows every tensor that a mask touches.

    Args:
        model: the network, with or without partners.
        masks: conv name -> bool tensor (N,), True = kept.
        filters_only: hold only the convolutions' filters at zero. Their channels then still emit what batch
            normalisation adds, but gradients flow, and the filters can grow back: what soft pruning needs.
        partners: hold the partners' filters too; without them, together with filters_only, what the released BPL code
            holds while it trains.
        readers: hold the weights that read pruned channels at zero too. They change no output, but a loss on kernels
            sees them; with them at zero it sees what it would on the network without these channels.
        graph: the model's channel analysis, where the caller has it already.

    Attributes:
        tensors: the weights, biases, scales and shifts held, each once.
        masks: of each its mask, of its dtype and on its device, shaped to broadcast: 1 = kept.

    Raises:
        ValueError: a mask that does not fit the model.
    """

    def __init__(
        self,
        model: nn.Module,
        masks: dict[str, Tensor],
        *,
        filters_only: bool = False,
        partners: bool = True,
        readers: bool = False,
        graph: ChannelGraph | None = None,
    ):
        graph = graph or ChannelGraph(model)
        check_masks(graph, masks)
        self.tensors: list[Tensor] = []
        self.masks: list[Tensor] = []
        self._place: dict[int, int] = {}  # id of a tensor -> where it stands in the two lists
        for name, mask in masks.items():
            block, own_norm = model.get_submodule(name), graph.sites[name].norm
            for conv in convs_of(block) if partners else convs_of(block)[:1]:
                self._hold(conv.weight, mask)
                self._hold(None if filters_only else conv.bias, mask)
            if not filters_only:
                for norm in [*norms_of(block), *([model.get_submodule(own_norm)] if own_norm else [])]:
                    self._hold_norm(norm, mask)
        if filters_only:
            return
        for channels in graph.sets:
            kept = removable(channels, masks)
            if kept is None:
                continue
            for name in channels.norms:  # also those behind an addition, where all that is added is masked
                self._hold_norm(model.get_submodule(name), kept)
            for name, features in channels.readers if readers else []:
                for layer in readers_of(model.get_submodule(name)):
                    self._hold(layer.weight, kept.repeat_interleave(features), dim=1)

    def _hold_norm(self, norm: nn.BatchNorm2d, mask: Tensor) -> None:
        self._hold(norm.weight, mask)
        self._hold(norm.bias, mask)

    def _hold(self, tensor: Tensor | None, mask: Tensor, dim: int = 0) -> None:
        """Hold the entries of a tensor that a mask along `dim` prunes; of two masks of one tensor, both."""
        if tensor is None:
            return
        shape = [1] * tensor.dim()
        shape[dim] = -1
        mask = mask.to(tensor).view(shape)
        place = self._place.setdefault(id(tensor), len(self.tensors))
        if place < len(self.tensors):
            self.masks[place] = self.masks[place] * mask
        else:
            self.tensors.append(tensor)
            self.masks.append(mask)

    @torch.no_grad()
    def apply(self) -> None:
        """Set the pruned entries of weights, biases, gammas and betas to zero."""
        if self.tensors:
            torch._foreach_mul_(self.tensors, self.masks)

    @torch.no_grad()
    def apply_to_momentum(self, optimizer: torch.optim.Optimizer) -> None:
        """Set the pruned entries of the optimiser's buffers to zero, so that momentum cannot bring them back.

        Args:
            optimizer: an optimiser over the model's parameters.
        """
        pairs = [
            (buffer, mask)
            for tensor, mask in zip(self.tensors, self.masks, strict=True)
            for buffer in optimizer.state.get(tensor, {}).values()
            if isinstance(buffer, Tensor) and buffer.shape == tensor.shape
        ]
        if pairs:
            torch._foreach_mul_([buffer for buffer, _ in pairs], [mask for _, mask in pairs])
