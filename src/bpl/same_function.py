"""Whether two networks are one function: the last doubt of whoever fused and slimmed a network of their own."""

import dataclasses
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from bpl.copies import check_is_network, modes_kept


@torch.no_grad()
def check_same(
    model: nn.Module, small: nn.Module, images: Tensor | tuple[Tensor, ...], tolerance: float | None = None
) -> float:
    """Check that a network and what was made of it compute the same, in evaluation mode.

    Fusing and slimming are exact for whatever the analysis of the network sees (`bpl.channels`); a forward pass can do
    things that it cannot see. This sees them.

    Args:
        model: the network as it was trained, with its partners and masks; its mode is left as it is.
        small: what was fused and slimmed, or read back from a file.
        images: a batch as the network takes it, (B, C, H, W), or a tuple of all that it takes; a few images are enough.
        tolerance: how much outputs may differ, relative to the largest output (to 1 where that is smaller); None for
            1e-4, and for eight times the resolution of numbers of 16 bits.

    Returns:
        The largest difference between outputs, relative as above.

    Raises:
        TypeError: one of them is no network.
        ValueError: they differ by more, are not of the same shapes, the small network fails on these images, or the
            trained one returns no number that could be compared.
    """
    check_is_network(model)
    check_is_network(small)
    with modes_kept(model), modes_kept(small):
        inputs = images if isinstance(images, tuple) else (images,)
        output = model.eval()(*_cloned(inputs))  # a forward pass may write into what it is given: x -= mean
        expected = list(_tensors(output))
        if not expected:
            raise ValueError(f"nothing to compare: the output of the network, a {type(output).__name__}, has no tensor")
        try:
            got = list(_tensors(small.eval()(*_cloned(inputs))))
        except Exception as error:  # whatever a layer raises on a map of another width
            raise ValueError(f"not the same network: the small one fails on these images ({error})") from error
    shapes, others = ([tuple(output.shape) for output in outputs] for outputs in (expected, got))
    if shapes != others:
        raise ValueError(f"not the same network: its outputs are of shape {shapes}, those of the small one {others}")
    if not any(one.numel() for one in expected):
        raise ValueError(f"nothing to compare: the outputs, of shape {shapes}, have no element; give it some images")
    largest = 0.0
    for one, other in zip(expected, got, strict=True):
        if not one.numel():  # as the boxes of a detector that found none
            continue
        allowed = _tolerance(one.dtype) if tolerance is None else tolerance
        dtype = torch.promote_types(one.dtype, torch.float32)
        one, other = one.to(dtype), other.to(one.device, dtype)
        difference = float((one - other).abs().max()) / max(1.0, float(one.abs().max()))
        if not difference <= allowed:  # nor is it where one of them is no number
            raise ValueError(f"not the same network: outputs differ by {difference:.3g}; allowed is {allowed:g}")
        largest = max(largest, difference)
    return largest


def _cloned(inputs: tuple) -> list:
    return [value.clone() if isinstance(value, Tensor) else value for value in inputs]


def _tolerance(dtype: torch.dtype) -> float:
    return 8 * torch.finfo(dtype).eps if dtype in (torch.bfloat16, torch.float16) else 1e-4


def _tensors(output: object) -> Iterator[Tensor]:
    """The tensors in what a forward pass returns: one, several by number or by name, or the fields of an object."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping | list | tuple):
        for part in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(part)
    elif dataclasses.is_dataclass(output):
        for field in dataclasses.fields(output):
            yield from _tensors(getattr(output, field.name))
