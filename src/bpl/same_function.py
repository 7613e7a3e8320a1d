"""Whether two networks are one function: the last doubt of whoever fused and slimmed a network of their own."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from bpl.copies import modes_kept


@torch.no_grad()
def check_same(model: nn.Module, small: nn.Module, images: Tensor, tolerance: float = 1e-4) -> float:
    """Check that a network and what was made of it compute the same, in evaluation mode.

    Fusing and slimming are exact for whatever the analysis of the network sees (`bpl.channels`); a forward pass can do
    things that it cannot see. This sees them.

    Args:
        model: the network as it was trained, with its partners and masks; its mode is left as it is.
        small: what was fused and slimmed, or read back from a file.
        images: a batch as the network takes it, (B, C, H, W); a few images are enough.
        tolerance: how much outputs may differ, relative to the largest output (to 1 where that is smaller).

    Returns:
        The largest difference between outputs, relative as above.

    Raises:
        ValueError: they differ by more, are not of the same shapes, or the small network fails on these images.
    """
    with modes_kept(model), modes_kept(small):
        expected = list(_tensors(model.eval()(images)))
        try:
            got = list(_tensors(small.eval()(images)))
        except Exception as error:  # whatever a layer raises on a map of another width
            raise ValueError(f"not the same network: the small one fails on these images ({error})") from error
    shapes, others = ([tuple(output.shape) for output in outputs] for outputs in (expected, got))
    if shapes != others:
        raise ValueError(f"not the same network: its outputs are of shape {shapes}, those of the small one {others}")
    largest = 0.0
    for one, other in zip(expected, got, strict=True):
        scale = max(1.0, float(one.abs().max()))
        difference = float((one - other.to(one)).abs().max()) / scale
        if not difference <= tolerance:  # nor is it where one of them is no number
            raise ValueError(f"not the same network: outputs differ by {difference:.3g}; allowed is {tolerance:g}")
        largest = max(largest, difference)
    return largest


def _tensors(output: object) -> Iterator[Tensor]:
    """The tensors in what a forward pass returns."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping | list | tuple):
        for part in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(part)
