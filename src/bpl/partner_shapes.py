"""Other shapes of partners: ACNet's asymmetric kernels and the branches of the Diverse Branch Block.

    same    k x k                                                              BPL's own (`partner_conv.same_shape`)
    acnet   1 x k;  k x 1                                                      Ding et al. 2019
    dbb     1 x 1;  1 x 1, then k x k;  1 x 1, then k x k average pooling      Ding et al. 2021

Every branch ends in a batch normalisation of its own, and is one k x k kernel and one bias in evaluation mode:

    a kernel smaller than k x k           zeros around it
    K1 of 1 x 1 and b1, then K2 and b2    K[n, c] = sum_m K1[m, c] K2[n, m]
                                          b[n] = b2[n] + sum_m b1[m] sum_uv K2[n, m, u, v]

The second rule holds at the border of a map only if K2 reads there what the 1 x 1 makes of the block's own padding, and
of a zero it makes b1. So the map is padded between the two, with b1 and not with zeros (as in the authors' code,
which lets no gradient through the border; here it flows).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpl.channels.ordinary import is_patched
from bpl.partner_conv import Branch, ConvNorm, norm_as_affine, same_shape


def compose(first: Tensor, second: Tensor, groups: int) -> Tensor:
    """The kernel of a 1 x 1 convolution and a k x k convolution behind it.

    Args:
        first: (M, C / groups, 1, 1).
        second: (N, M / groups, k, k).
        groups: of both.

    Returns:
        (N, C / groups, k, k).
    """
    first = first.flatten(1).unflatten(0, (groups, -1))  # (groups, M / groups, C / groups)
    second = second.unflatten(0, (groups, -1))  # (groups, N / groups, M / groups, k, k)
    return torch.einsum("gmc,gnmuv->gncuv", first, second).flatten(0, 1)


class SmallKernel(ConvNorm):
    """A convolution with a kernel smaller than the block's, in its middle.

    Args:
        conv: the convolution.
        norm: the batch normalisation of its output.
        frame: rows of zeros above (and below), and columns at the left (and right), that make it k x k.
        step: rows and columns from one pixel that the convolution reads to the next, where its own stride is 1.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, frame: tuple[int, int], step: tuple[int, int] = (1, 1)):
        super().__init__(conv, norm)
        self.frame = frame
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.step
        return super().forward(x if self.step == (1, 1) else x[..., ::rows, ::columns])

    def _framed(self, kernel: Tensor) -> Tensor:
        rows, columns = self.frame
        return F.pad(kernel, (columns, columns, rows, rows))

    def kernel(self) -> Tensor:
        return self._framed(super().kernel())

    def kernel_and_bias(self) -> tuple[Tensor, Tensor]:
        kernel, bias = super().kernel_and_bias()
        return self._framed(kernel), bias


class _PointwiseFirst(Branch):
    """A 1 x 1 convolution with its batch normalisation, whose map is padded for what comes behind it.

    Args:
        first: the 1 x 1 convolution and its normalisation.
        padding: rows above and below, and columns at both sides.
        mode: how the block's convolution pads.
    """

    def __init__(self, first: ConvNorm, padding: tuple[int, int], mode: str):
        super().__init__()
        self.first = first
        self.padding = padding
        self.mode = mode

    @property
    def readers(self) -> list[nn.Conv2d]:
        return [self.first.conv]

    def padded(self, x: Tensor) -> Tensor:
        """The normalised 1 x 1 map (B, M, H, W) with its border, as if the 1 x 1 had read the padded input."""
        rows, columns = self.padding
        border, x = (columns, columns, rows, rows), self.first(x)
        if self.mode != "zeros":
            return F.pad(x, border, self.mode)  # copies pixels: before or after the 1 x 1 is the same
        of_zero = norm_as_affine(self.first.norm)[1].to(x.dtype)[:, None, None]  # running statistics, in training too
        return F.pad(x - of_zero, border) + of_zero


class PointwiseThenConv(_PointwiseFirst):
    """1 x 1, batch normalisation, k x k, batch normalisation.

    The channels in between belong to nobody else and are never pruned, except where the block is depthwise: there they
    are the block's own channels.

    Args:
        first: the 1 x 1 convolution and its normalisation.
        second: the k x k convolution, without padding, and its normalisation.
        padding: see `_PointwiseFirst`.
        mode: see `_PointwiseFirst`.
    """

    def __init__(self, first: ConvNorm, second: ConvNorm, padding: tuple[int, int], mode: str):
        super().__init__(first, padding, mode)
        self.second = second
        self.depthwise = 1 < second.conv.groups == second.conv.in_channels == second.conv.out_channels

    @property
    def filters(self) -> list[nn.Conv2d]:
        return [self.first.conv, self.second.conv] if self.depthwise else [self.second.conv]

    @property
    def norms(self) -> list[nn.BatchNorm2d]:
        return [self.first.norm, self.second.norm] if self.depthwise else [self.second.norm]

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.padded(x))

    def kernel(self) -> Tensor:
        return compose(self.first.kernel(), self.second.kernel(), self.second.conv.groups)

    def kernel_and_bias(self) -> tuple[Tensor, Tensor]:
        (first, first_bias), (second, second_bias) = self.first.kernel_and_bias(), self.second.kernel_and_bias()
        groups = self.second.conv.groups
        through = compose(first_bias[:, None, None, None], second, groups)  # (N, 1, k, k): b1 as a 1 x 1 of one channel
        return compose(first, second, groups), second_bias + through.sum((1, 2, 3))


class PointwiseThenAverage(_PointwiseFirst):
    """1 x 1, batch normalisation, k x k average pooling, batch normalisation.

    Args:
        first: the 1 x 1 convolution, to the block's N output channels, and its normalisation.
        norm: the normalisation of the averaged map.
        window: height and width of what is averaged: the block's kernel size.
        stride: the block's.
        padding: see `_PointwiseFirst`.
        mode: see `_PointwiseFirst`.
    """

    def __init__(
        self,
        first: ConvNorm,
        norm: nn.BatchNorm2d,
        window: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
        mode: str,
    ):
        super().__init__(first, padding, mode)
        self.norm = norm
        self.window = window
        self.stride = stride

    @property
    def filters(self) -> list[nn.Conv2d]:
        return [self.first.conv]

    @property
    def norms(self) -> list[nn.BatchNorm2d]:
        return [self.first.norm, self.norm]

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.avg_pool2d(self.padded(x), self.window, self.stride))

    def _averaging(self, kernel: Tensor) -> Tensor:
        rows, columns = self.window
        return kernel.expand(-1, -1, rows, columns) / (rows * columns)

    def kernel(self) -> Tensor:
        return self._averaging(self.first.kernel())

    def kernel_and_bias(self) -> tuple[Tensor, Tensor]:
        kernel, bias = self.first.kernel_and_bias()
        scale, shift = norm_as_affine(self.norm)
        return self._averaging(kernel * scale[:, None, None, None]), bias * scale + shift


# -- growing them -------------------------------------------------------------------------------------------------
def _padding(conv: nn.Conv2d) -> tuple[int, int]:
    """Rows and columns that a convolution of odd kernel size pads on each side."""
    named = {"valid": (0, 0), "same": tuple(d * (k // 2) for d, k in zip(conv.dilation, conv.kernel_size, strict=True))}
    return named.get(conv.padding, conv.padding)


def fits(conv: nn.Conv2d, kind: str) -> bool:
    """Whether a convolution can have partners of this kind.

    BPL's always fit. Smaller kernels need a middle to sit in, so an odd size, and padding of at least half of it, so
    that their own is not negative (ACNet's code crops the map there, the Diverse Branch Block's refuses).

    Args:
        conv: a convolution.
        kind: a key of `SHAPES`.
    """
    reach = [d * (k // 2) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    odd = all(k % 2 for k in conv.kernel_size)
    centred = odd and all(p >= r for p, r in zip(_padding(conv), reach, strict=True))
    plain = type(conv) is nn.Conv2d and not is_patched(conv)  # else it may pad on its own
    return kind == "same" or (plain and centred)


def _conv(block: nn.Conv2d, outputs: int, **options) -> nn.Conv2d:
    """A fresh convolution with the block's inputs, groups, device and type; 1 x 1 if the options say nothing."""
    options = {"kernel_size": 1, "groups": block.groups, "bias": False} | options
    conv = nn.Conv2d(block.in_channels, outputs, **options, device=block.weight.device, dtype=block.weight.dtype)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's networks
    if block.weight.is_contiguous(memory_format=torch.channels_last):
        conv = conv.to(memory_format=torch.channels_last)
    return conv.requires_grad_(block.weight.requires_grad).train(block.training)


def _norm(block: nn.BatchNorm2d, channels: int) -> nn.BatchNorm2d:
    """A fresh batch normalisation with the settings of the block's."""
    kind = nn.SyncBatchNorm if isinstance(block, nn.SyncBatchNorm) else nn.BatchNorm2d
    norm = kind(channels, block.eps, block.momentum, device=block.weight.device, dtype=block.weight.dtype)
    return norm.requires_grad_(block.weight.requires_grad).train(block.training)


def _small(conv: nn.Conv2d, norm: nn.BatchNorm2d, kernel_size: tuple[int, int]) -> SmallKernel:
    """A branch with a smaller kernel, padded so much less that it looks at the middle of what the block looks at.

    A 1 x 1 that strides reads every other pixel of a copy: on CPUs the weight gradient of such a convolution over few
    channels in channels_last writes past its memory in float32 (oneDNN issue 6035).
    """
    frame = tuple((whole - part) // 2 for whole, part in zip(conv.kernel_size, kernel_size, strict=True))
    padding = tuple(p - d * f for p, d, f in zip(_padding(conv), conv.dilation, frame, strict=True))
    skips = kernel_size == (1, 1) and padding == (0, 0)
    small = _conv(
        conv,
        conv.out_channels,
        kernel_size=kernel_size,
        stride=1 if skips else conv.stride,
        padding=padding,
        dilation=conv.dilation,
        padding_mode=conv.padding_mode,
    )
    return SmallKernel(small, _norm(norm, conv.out_channels), frame, conv.stride if skips else (1, 1))


def acnet(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> list[Branch]:
    """The asymmetric convolution block: a horizontal and a vertical kernel beside the square one (Ding et al. 2019).

    Args:
        conv: the block's convolution.
        norm: the batch normalisation of its output.
    """
    rows, columns = conv.kernel_size
    return [_small(conv, norm, (1, columns)), _small(conv, norm, (rows, 1))]


def dbb(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> list[Branch]:
    """The Diverse Branch Block: 1 x 1, 1 x 1 - k x k and 1 x 1 - average branches (Ding et al. 2021).

    As in the authors' code the 1 x 1 before the k x k has as many channels as the block reads and starts as the
    identity. Our choices: in a depthwise block all of these are depthwise (their code has fewer 1 x 1 there, and twice
    the channels between), and a dilated block has no average branch (average pooling knows no dilation).

    Args:
        conv: the block's convolution.
        norm: the batch normalisation of its output.
    """
    inputs, outputs, padding, mode = conv.in_channels, conv.out_channels, _padding(conv), conv.padding_mode
    first = ConvNorm(_conv(conv, inputs), _norm(norm, inputs))
    nn.init.dirac_(first.conv.weight, conv.groups)
    spatial = _conv(conv, outputs, kernel_size=conv.kernel_size, stride=conv.stride, dilation=conv.dilation)
    second = ConvNorm(spatial, _norm(norm, outputs))
    branches = [_small(conv, norm, (1, 1)), PointwiseThenConv(first, second, padding, mode)]
    if max(conv.dilation) == 1:
        first = ConvNorm(_conv(conv, outputs), _norm(norm, outputs))
        average = _norm(norm, outputs)
        branches.append(PointwiseThenAverage(first, average, conv.kernel_size, conv.stride, padding, mode))
    return branches


SHAPES: dict[str, Callable[[nn.Conv2d, nn.BatchNorm2d], list[Branch]]] = {
    "same": same_shape,
    "acnet": acnet,
    "dbb": dbb,
}
KINDS = tuple(SHAPES)
