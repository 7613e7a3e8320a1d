"""The partner block: one convolution in inference, several in training (BPL, the *extension* and *fusion* steps).

    y = sum_i BN_i(W_i * x + c_i)        i = 0 the block, i = 1 its partner

In evaluation mode a batch normalisation is an affine map per channel, a convolution is linear, and both commute with a
sum, so the whole block is one convolution (PAPERS section 1.2; `fold_norm`, `PartnerConv2d.fuse`). BPL's partner has
the shape of its block; `bpl.partner_shapes` has others.
"""

import copy
import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

# The two of PyTorch's that normalise maps (B, N, H, W) by channel; they differ in training on several devices only.
NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


def norm_as_affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """A batch normalisation in evaluation mode as y = scale x + shift, per channel.

    Args:
        norm: batch normalisation of N channels, with running statistics.

    Returns:
        gamma / s and beta - mu gamma / s with s = sqrt(var + eps), (N,) each, in float64. Differentiable.
    """
    scale = (norm.running_var.double() + norm.eps).rsqrt()  # (N,)
    if norm.affine:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale  # (N,)
    return scale, shift if norm.bias is None else shift + norm.bias.double()  # affine=False, or bias=False


def fold_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Fold a batch normalisation in evaluation mode into the convolution before it.

    Args:
        conv: convolution with N filters.
        norm: batch normalisation of its N output channels, with running statistics.

    Returns:
        The kernel W' = (gamma / s) W, (N, C, k, k), and the bias b' = beta + (c - mu) gamma / s, (N,), with
        s = sqrt(var + eps), both in float64. Differentiable.
    """
    scale, shift = norm_as_affine(norm)
    kernel = conv.weight.double() * scale[:, None, None, None]  # (N, C, k, k)
    return kernel, shift if conv.bias is None else shift + conv.bias.double() * scale


def has_forward_hooks(module: nn.Module) -> bool:
    """Whether something that is called before or after a module, or a part of it, may change what it computes."""
    return any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


class Branch(nn.Module):
    """A summand of a partner block: in evaluation mode one k x k convolution, in training any layers that make one."""

    @property
    def filters(self) -> list[nn.Conv2d]:
        """The convolutions whose filters are the block's output channels, one filter each."""
        raise NotImplementedError

    @property
    def readers(self) -> list[nn.Conv2d]:
        """The convolutions that read the block's input channels."""
        raise NotImplementedError

    @property
    def norms(self) -> list[nn.BatchNorm2d]:
        """The batch normalisations of the block's output channels; the last one's output is the branch's."""
        raise NotImplementedError

    def kernel(self) -> Tensor:
        """The weights as the optimiser sees them, as one kernel (N, C, k, k): batch normalisations left out."""
        raise NotImplementedError

    def kernel_and_bias(self) -> tuple[Tensor, Tensor]:
        """The branch in evaluation mode as one kernel (N, C, k, k) and one bias (N,), float64."""
        raise NotImplementedError


class ConvNorm(Branch):
    """A convolution and the batch normalisation of its output.

    Args:
        conv: the convolution.
        norm: the batch normalisation of its output channels.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d):
        super().__init__()
        self.conv = conv
        self.norm = norm

    @property
    def filters(self) -> list[nn.Conv2d]:
        return [self.conv]

    @property
    def readers(self) -> list[nn.Conv2d]:
        return [self.conv]

    @property
    def norms(self) -> list[nn.BatchNorm2d]:
        return [self.norm]

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))

    def kernel(self) -> Tensor:
        return self.conv.weight

    def kernel_and_bias(self) -> tuple[Tensor, Tensor]:
        return fold_norm(self.conv, self.norm)


def same_shape(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> list[Branch]:
    """BPL's partner: a convolution of the block's own shape with fresh weights.

    Args:
        conv: the block's convolution.
        norm: the batch normalisation of its output.
    """
    partner = ConvNorm(copy.deepcopy(conv), copy.deepcopy(norm))
    nn.init.kaiming_normal_(partner.conv.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's networks
    if partner.conv.bias is not None:
        nn.init.zeros_(partner.conv.bias)
    partner.norm.reset_parameters()
    return [partner]


class PartnerConv2d(nn.Module):
    """A block and its partners: linear maps with a batch normalisation each, outputs summed.

    Stands where the convolution stood, under its name; an `nn.Identity` stands where its batch normalisation was.

    The scales gamma of n branches, 1 in a fresh batch normalisation, are multiplied by 1 / sqrt(2 n): 0.5 for the two
    of the released code. Fresh branches are independent, so their variances add, and a fresh block of any shape has
    the scale of a released one. In a trained network the original keeps which of its channels count; what the block
    computes changes all the same, since a fresh partner is added to it.

    Args:
        conv: the original convolution.
        norm: the original batch normalisation of its output.
        stage: label of the block's stage (its output stride), for the stage-wise diversity loss.
        partners: the partner branches; None for one of the block's own shape.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, *, stage: int, partners: Sequence[Branch] | None = None):
        super().__init__()
        partners = same_shape(conv, norm) if partners is None else partners
        self.branches = nn.ModuleList([ConvNorm(conv, norm), *partners])
        with torch.no_grad():
            for branch in self.branches:
                branch.norms[-1].weight.mul_((2 * len(self.branches)) ** -0.5)
        for wrapper in self.modules():
            if not isinstance(wrapper, (nn.Conv2d, *NORMS)):  # the layers inside keep the mode they are in
                wrapper.training = conv.training
        self.stage = stage
        self.keep_outputs = False  # in training mode, for the diversity losses on features
        self.outputs: list[Tensor] = []

    # What masks and slimming ask of it.
    @property
    def filters(self) -> list[nn.Conv2d]:
        return [conv for branch in self.branches for conv in branch.filters]

    @property
    def readers(self) -> list[nn.Conv2d]:
        return [conv for branch in self.branches for conv in branch.readers]

    @property
    def norms(self) -> list[nn.BatchNorm2d]:
        return [norm for branch in self.branches for norm in branch.norms]

    # What the channel analysis, the exporters and a network's own forward pass ask of any convolution.
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

    @property
    def kernel_size(self) -> tuple[int, ...]:
        return self.branches[0].conv.kernel_size

    @property
    def padding(self) -> tuple[int, ...] | str:
        return self.branches[0].conv.padding

    @property
    def dilation(self) -> tuple[int, ...]:
        return self.branches[0].conv.dilation

    def forward(self, input: Tensor) -> Tensor:  # named as that of nn.Conv2d, which may be called by keyword
        outputs = [branch(input) for branch in self.branches]  # each (B, N, H', W')
        if self.keep_outputs and self.training:
            self.outputs = outputs
        return functools.reduce(torch.add, outputs)

    def fuse(self) -> nn.Conv2d:
        """The one convolution with bias that computes the same in evaluation mode (W = sum W_i', b = sum b_i').

        Returns:
            A new `nn.Conv2d` (of the original's own class) with the original's stride, padding, dilation and groups.
            Forward hooks on the block are the convolution's.

        Raises:
            ValueError: a layer inside the block has forward hooks: after fusing there is no such layer.
        """
        inside = [name for name, part in self.named_modules() if part is not self and has_forward_hooks(part)]
        if inside:
            raise ValueError(
                f"its layer {inside[-1]!r} has forward hooks, and will be no more: remove them, or hook the block"
            )
        folded = [branch.kernel_and_bias() for branch in self.branches]
        original = self.branches[0].conv
        conv = copy.deepcopy(original)
        dtype, trained = original.weight.dtype, original.weight.requires_grad
        conv.weight = nn.Parameter(sum(kernel for kernel, _ in folded).detach().to(dtype), requires_grad=trained)
        conv.bias = nn.Parameter(sum(bias for _, bias in folded).detach().to(dtype), requires_grad=trained)
        for name in [name for name in vars(self) if name.startswith("_forward_")]:  # the hooks, and how to call them
            setattr(conv, name, copy.copy(getattr(self, name)))
        return conv

    def reparameterize(self) -> None:
        """Become the fused convolution, in place: what timm's `reparameterize_model` asks of blocks without `fuse`."""
        fused = self.fuse()
        self.__class__, self.__dict__ = type(fused), fused.__dict__
