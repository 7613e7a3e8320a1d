"""The partner block: one convolution in inference, several in training (BPL, the *extension* and *fusion* steps).

    y = sum_i BN_i(W_i * x + c_i)        i = 0 the block, i = 1 its partner

In evaluation mode a batch normalisation is an affine map per channel, a convolution is linear, and both commute with a
sum, so the whole block is one convolution (PAPERS section 1.2; `fold_norm`, `PartnerConv2d.fuse`).
"""

import copy

import torch
from torch import Tensor, nn

KINDS = ("same", "acnet", "dbb")
GAMMA_START = 0.5  # of every branch, so that two fresh branches together have the scale of one (released code)


def fold_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Fold a batch normalisation in evaluation mode into the convolution before it.

    Args:
        conv: convolution with N filters.
        norm: batch normalisation of its N output channels, with running statistics.

    Returns:
        The kernel W' = (gamma / s) W, (N, C, k, k), and the bias b' = beta + (c - mu) gamma / s, (N,), with
        s = sqrt(var + eps), both in float64. Differentiable.
    """
    scale = (norm.running_var.double() + norm.eps).rsqrt()  # (N,)
    if norm.affine:
        scale = scale * norm.weight.double()
    kernel = conv.weight.double() * scale[:, None, None, None]  # (N, C, k, k)
    shift = -norm.running_mean.double()
    if conv.bias is not None:
        shift = shift + conv.bias.double()
    bias = shift * scale  # (N,)
    return kernel, bias + norm.bias.double() if norm.affine else bias


class ConvNorm(nn.Module):
    """A branch of a partner block: a convolution and the batch normalisation of its output.

    Args:
        conv: the convolution.
        norm: the batch normalisation of its output channels.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d):
        super().__init__()
        self.conv = conv
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))

    def kernel_and_bias(self) -> tuple[Tensor, Tensor]:
        """The branch as one kernel (N, C, k, k) and one bias (N,), float64."""
        return fold_norm(self.conv, self.norm)


class PartnerConv2d(nn.Module):
    """A block and its partner: same-shaped convolutions, each with its own batch normalisation, outputs summed.

    Stands where the convolution stood, under its name; an `nn.Identity` stands where its batch normalisation was.

    Args:
        conv: the original convolution.
        norm: the original batch normalisation of its output.
        stage: label of the block's stage (its output stride), for the stage-wise diversity loss.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, *, stage: int):
        super().__init__()
        partner = ConvNorm(copy.deepcopy(conv), copy.deepcopy(norm))
        nn.init.kaiming_normal_(partner.conv.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's networks
        if partner.conv.bias is not None:
            nn.init.zeros_(partner.conv.bias)
        partner.norm.reset_parameters()
        self.branches = nn.ModuleList([ConvNorm(conv, norm), partner])
        for branch in self.branches:
            nn.init.constant_(branch.norm.weight, GAMMA_START)
        for wrapper in (self, self.branches, *self.branches):  # the layers inside keep the mode they are in
            wrapper.training = conv.training
        self.stage = stage
        self.keep_outputs = False  # in training mode, for the diversity losses on features
        self.outputs: list[Tensor] = []

    # What the channel analysis and the exporters ask of any convolution.
    @property
    def in_channels(self) -> int:
        return self.branches[0].conv.in_channels

    @property
    def out_channels(self) -> int:
        return self.branches[0].conv.out_channels

    @property
    def groups(self) -> int:
        return self.branches[0].conv.groups

    @property
    def stride(self) -> tuple[int, ...]:
        return self.branches[0].conv.stride

    def forward(self, x: Tensor) -> Tensor:
        outputs = [branch(x) for branch in self.branches]  # each (B, N, H', W')
        if self.keep_outputs and self.training:
            self.outputs = outputs
        return torch.stack(outputs).sum(0) if len(outputs) > 2 else outputs[0] + outputs[-1]

    def fuse(self) -> nn.Conv2d:
        """The one convolution with bias that computes the same in evaluation mode (W = sum W_i', b = sum b_i').

        Returns:
            A new `nn.Conv2d` (of the original's own class) with the original's stride, padding, dilation and groups.
        """
        folded = [branch.kernel_and_bias() for branch in self.branches]
        original = self.branches[0].conv
        conv = copy.deepcopy(original)
        dtype, trained = original.weight.dtype, original.weight.requires_grad
        conv.weight = nn.Parameter(sum(kernel for kernel, _ in folded).detach().to(dtype), requires_grad=trained)
        conv.bias = nn.Parameter(sum(bias for _, bias in folded).detach().to(dtype), requires_grad=trained)
        return conv

    def reparameterize(self) -> None:
        """Become the fused convolution, in place, so that timm's `reparameterize_model` fuses partner blocks too."""
        fused = self.fuse()
        self.__class__, self.__dict__ = type(fused), fused.__dict__
