"""Which layers compute what the class they derive from promises.

Masking, slimming and fusing rest on three facts: a convolution is linear in its weights and bias and looks at an input
channel through that channel's weights only, a batch normalisation with gamma = beta = 0 gives 0, a linear layer is a
matrix. A subclass may break them (weight standardisation, a parametrised weight, an activation inside), or keep them
(TensorFlow's "same" padding, a normalisation with a ReLU). Names do not tell, so a subclass is tried on a small input.
"""

import copy

import torch
from torch import nn

from bpl.channels.chance import chance_kept, seed_all
from bpl.channels.narrowing import keep_channels, keep_filters, keep_inputs
from bpl.copies import copy_of
from bpl.partner_conv import NORMS

_NORM_TENSORS = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


def is_patched(layer: nn.Module) -> bool:
    """Whether the layer itself, and not its class, has been given another forward pass."""
    return not vars(layer).keys().isdisjoint(("forward", "_conv_forward"))


def is_ordinary_conv(conv: nn.Conv2d) -> bool:
    """Whether a convolution, of whatever subclass, uses its weights as `nn.Conv2d` does."""
    if set(conv._parameters) != {"weight", "bias"} or conv._buffers or conv._modules or is_patched(conv):
        return False  # it computes its weight from something else before every pass, or something else with its weight
    return type(conv) is nn.Conv2d or _is_linear_in_its_weights(conv)


@torch.no_grad()
def _is_linear_in_its_weights(conv: nn.Conv2d) -> bool:
    """Try it in both modes: outputs follow a sum of weights, a factor of each filter's own, and a shift of the bias.

    The sum also has other weights where the input is zero, which must not show. Nor may it that a filter, or a channel
    of zeros, is cut out.
    """
    layer = copy.deepcopy(conv).to("cpu", torch.float64)
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    layer.bias = nn.Parameter(drawn(conv.out_channels))  # fusing gives it one
    weights, biases = (drawn(2, *conv.weight.shape), drawn(2, conv.out_channels))
    factors = torch.linspace(-2, 3, conv.out_channels + 1, dtype=torch.float64)[1:]  # (N,), of either sign
    size = [2 * step * (kernel + 1) for step, kernel in zip(conv.dilation, conv.kernel_size, strict=True)]
    x = drawn(1, conv.in_channels, *size)
    per_group = conv.in_channels // conv.groups
    unread = torch.zeros_like(weights[0])  # what is added to weights that meet a zero
    if per_group > 1:
        x[:, ::per_group] = 0
        unread[:, 0] = 1

    def output(weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
        return layer(x)

    try:
        for mode in (True, False):
            layer.train(mode)
            first, second = (output(weight, bias) for weight, bias in zip(weights, biases, strict=True))
            joined = output(
                weights[0] * factors[:, None, None, None] + weights[1] + unread, biases[0] * factors + biases[1]
            )
            shifted = output(weights[0], biases[0] + factors)
            if not torch.allclose(joined, first * factors[:, None, None] + second, rtol=1e-9, atol=1e-9):
                return False
            if not torch.allclose(shifted, first + factors[:, None, None], rtol=1e-9, atol=1e-9):
                return False
            if conv.groups == 1 and min(conv.in_channels, conv.out_channels) > 1:
                narrow = copy.deepcopy(layer)
                keep_filters(narrow, torch.arange(1, conv.out_channels))
                keep_inputs(narrow, torch.arange(1, conv.in_channels))
                if not torch.allclose(narrow(x[:, 1:]), shifted[:, 1:], rtol=1e-9, atol=1e-9):
                    return False
    except Exception:  # whatever it needs, it is not what a convolution needs
        return False
    return True


@torch.no_grad()
def is_ordinary_norm(norm: nn.BatchNorm2d) -> bool:
    """Whether a batch normalisation, of whatever subclass, treats each channel by itself; a trial decides.

    A channel whose gamma and beta are 0 is to give 0, and the others what they give beside it and without it.
    """
    if is_patched(norm):
        return False
    if type(norm) in NORMS or not norm.affine:
        return type(norm) in NORMS
    if not {name for name, _ in [*norm.named_parameters(), *norm.named_buffers()]} <= _NORM_TENSORS:
        return False
    chance = torch.Generator().manual_seed(0)
    x = torch.randn(2, norm.num_features, 4, 4, dtype=torch.float64, generator=chance)
    probe = copy.deepcopy(norm).to("cpu", torch.float64).eval()
    for tensor in [*probe.parameters(), *probe.buffers()]:
        if tensor.ndim:  # all but the number of batches
            tensor.uniform_(0.5, 1.5, generator=chance)
    try:
        whole = probe(x)
        return all(_norm_of_part(probe, x, whole, start) for start in (0, 1))
    except Exception:  # as above
        return False


def _norm_of_part(norm: nn.BatchNorm2d, x: torch.Tensor, whole: torch.Tensor, start: int) -> bool:
    """Whether every second channel comes out as in the whole, with the others at zero and with the others removed."""
    channels = torch.arange(norm.num_features)
    kept, others = channels[start::2], channels[1 - start :: 2]
    masked, narrow = copy.deepcopy(norm), copy.deepcopy(norm)
    masked.weight[others], masked.bias[others] = 0, 0
    out = masked(x)
    if out[:, others].any() or not torch.equal(out[:, kept], whole[:, kept]):
        return False
    if not len(kept):
        return True
    keep_channels(narrow, kept)
    return torch.allclose(narrow(x[:, kept]), whole[:, kept], rtol=1e-9, atol=1e-9)


@torch.no_grad()
def is_channel_wise(layer: nn.Module, rank: int = 4) -> bool:
    """Whether a layer treats each channel by itself, and leaves one of zeros at zero; a trial decides.

    Args:
        layer: the layer; it is not changed.
        rank: number of dimensions of what it is tried on, the second of which are channels.
    """
    probe = copy_of(layer).to("cpu", torch.float64)
    x = _with_a_channel_of_zeros(rank)

    def output(x: torch.Tensor) -> torch.Tensor:
        with chance_kept():
            seed_all(0)  # whatever it draws
            return probe.forward(x.clone())  # not probe(): torch.fx records that. It may write into what it is given

    try:
        for mode in (True, False):
            probe.train(mode)
            whole = output(x)
            if whole.shape[:2] != x.shape[:2] or whole[:, 0].any():
                return False
            if not all(torch.equal(output(x[:, part]), whole[:, part]) for part in _PARTS):
                return False
    except Exception:  # as above
        return False
    return True


@torch.no_grad()
def is_identity_in_evaluation(layer: nn.Module) -> bool:
    """Whether a layer of no class of PyTorch's gives its input back in evaluation, and is channel-wise in training.

    Stochastic depth is such a layer, under many names: it draws a factor for each image. A trial decides.
    """
    special = layer._parameters or layer._buffers or layer._modules or layer._forward_hooks or layer._forward_pre_hooks
    if special or type(layer).__module__.startswith("torch.nn.") or is_patched(layer):
        return False
    probe = copy_of(layer).eval()
    try:
        for rank in (2, 4):  # pooled features, and maps
            x = _with_a_channel_of_zeros(rank)
            with chance_kept():
                same = torch.equal(probe.forward(x.clone()), x)
            if not (same and is_channel_wise(layer, rank)):
                return False
    except Exception:  # as above
        return False
    return True


_CHANNELS = 64  # of what is tried: more than whoever writes down a number of channels to look at has in mind
_PARTS = (slice(None, None, 2), slice(5), slice(3, None), [0, 1, 6, 4])  # left of them, as slimming leaves some


def _with_a_channel_of_zeros(rank: int) -> torch.Tensor:
    shape = (2, _CHANNELS, *(16,) * (rank - 2))
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[:, 0] = 0
    return x


def is_ordinary_linear(linear: nn.Linear) -> bool:
    """Whether a linear layer, of whatever subclass, multiplies by its own weight matrix."""
    if set(linear._parameters) != {"weight", "bias"} or linear._buffers or linear._modules or is_patched(linear):
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
