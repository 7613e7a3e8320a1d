"""Which layers compute what the class they derive from promises.

Masking, slimming and fusing rest on three facts: a convolution is linear in its weights and looks at an input channel
through that channel's weights only, a batch normalisation with gamma = beta = 0 gives 0, a linear layer is a matrix.
A subclass may break them (weight standardisation, a parametrised weight, an activation f with f(0) != 0 inside the
normalisation), or keep them (TensorFlow's "same" padding, a normalisation with a ReLU). Names do not tell, so a
subclass is tried on a small input.
"""

import copy

import torch
from torch import nn

_NORM_TENSORS = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


def is_ordinary_conv(conv: nn.Conv2d) -> bool:
    """Whether a convolution, of whatever subclass, uses its weights as `nn.Conv2d` does."""
    if set(conv._parameters) != {"weight", "bias"} or conv._buffers or conv._modules:
        return False  # the weight is computed from something else before every pass
    return type(conv) is nn.Conv2d or _scales_like_a_conv(conv)


@torch.no_grad()
def _scales_like_a_conv(conv: nn.Conv2d) -> bool:
    """Scale every filter by its own factor, and change the weights that meet a zero input: outputs follow exactly."""
    once = copy.deepcopy(conv).to("cpu", torch.float64)
    scaled = copy.deepcopy(once)
    factors = torch.arange(2.0, 2.0 + conv.out_channels, dtype=torch.float64)  # (N,)
    scaled.weight.mul_(factors[:, None, None, None])
    if conv.bias is not None:
        scaled.bias.mul_(factors)
    size = [2 * step * (kernel + 1) for step, kernel in zip(conv.dilation, conv.kernel_size, strict=True)]
    x = torch.randn(1, conv.in_channels, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    per_group = conv.in_channels // conv.groups
    if per_group > 1:
        x[:, ::per_group] = 0
        scaled.weight[:, 0] += 1
    try:
        return torch.allclose(scaled(x), once(x) * factors[:, None, None], rtol=1e-9, atol=1e-9)
    except Exception:  # whatever it needs, it is not what a convolution needs
        return False


@torch.no_grad()
def is_ordinary_norm(norm: nn.BatchNorm2d) -> bool:
    """Whether a batch normalisation, of whatever subclass, gives 0 in a channel whose gamma and beta are 0."""
    if type(norm) is nn.BatchNorm2d or not norm.affine:
        return type(norm) is nn.BatchNorm2d
    tensors = [name for name, _ in [*norm.named_parameters(), *norm.named_buffers()]]
    if not set(tensors) <= _NORM_TENSORS:
        return False
    probe = copy.deepcopy(norm).to("cpu").float().eval()
    probe.weight.zero_()
    probe.bias.zero_()
    x = torch.randn(2, norm.num_features, 4, 4, generator=torch.Generator().manual_seed(0))
    try:
        return bool((probe(x) == 0).all())
    except Exception:  # as above
        return False


def is_ordinary_linear(linear: nn.Linear) -> bool:
    """Whether a linear layer, of whatever subclass, multiplies by its own weight matrix."""
    if set(linear._parameters) != {"weight", "bias"} or linear._buffers or linear._modules:
        return False
    return type(linear).forward is nn.Linear.forward or _multiplies(linear)


@torch.no_grad()
def _multiplies(linear: nn.Linear) -> bool:
    """Compare with the product, in both modes."""
    layer = copy.deepcopy(linear).to("cpu", torch.float64)
    x = torch.randn(3, linear.in_features, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = nn.functional.linear(x, layer.weight, layer.bias)
    try:
        return all(torch.allclose(layer.train(mode)(x), expected, rtol=1e-9, atol=1e-9) for mode in (True, False))
    except Exception:  # as above
        return False
