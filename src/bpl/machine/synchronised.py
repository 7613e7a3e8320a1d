"""A training step over a batch of which several processes hold a part each: what in a network looks beyond one image.

Batch normalisation is over the whole batch, and dropout draws what it would draw for the whole batch. The network keeps
its ordinary layers: partners, masks, fusing, slimming and checkpoints see nothing else. Only while a training step
calls the network are the functions that these layers call other ones. Torch's own SyncBatchNorm is another layer, and
for GPUs only; this works on any device.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch import distributed as dist
from torch.overrides import TorchFunctionMode

from bpl.data.batches import Share
from bpl.machine.processes import add_up, count, rank


class _WholeBatch(torch.autograd.Function):
    """Batch normalisation by the statistics of all processes' images, with its exact gradient.

    y = gamma xhat + beta, xhat = (x - mean) / s, s = sqrt(var + eps). The gradient of x is
    gamma / s (dy - mean(dy) - xhat mean(dy xhat)), both means over the whole batch. The gradients of gamma and beta are
    those of this process's images: like all others, they are averaged afterwards.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor, count: int, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x, gamma, mean, (var + eps).rsqrt())
        ctx.count = count
        return F.batch_norm(x, mean, var, gamma, beta, training=False, eps=eps)

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma, mean, inverse = ctx.saved_tensors  # (B, N, H, W), then (N,) each
        # The gradients if mean and var were constants, which the library's kernel gives in one pass.
        dx, d_gamma, d_beta = torch.ops.aten.native_batch_norm_backward(
            dy, x, gamma, mean, inverse.square().reciprocal(), mean, inverse, False, 0.0, [True, True, True]
        )
        along, level = add_up(torch.stack([d_gamma, d_beta])) / ctx.count  # means of dy xhat and of dy
        scale = gamma * inverse
        slope = scale * inverse * along
        through_statistics = x * slope.view(1, -1, 1, 1) + (scale * level - slope * mean).view(1, -1, 1, 1)
        return dx - through_statistics.to(dx.dtype), d_gamma, d_beta, None, None, None, None


@torch.no_grad()
def _statistics(x: Tensor) -> tuple[Tensor, Tensor, int]:
    """Mean and variance (N,) of a batch (B, N, H, W) over all processes, and of how many values they are.

    Each process has its own mean, and the spread of the means is added to the mean of the variances: no difference of
    large squares is taken. All processes hold equally many values.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    own = torch.stack(torch.var_mean(wide, dim=(0, 2, 3), correction=0))  # (2, N)
    everyones = [torch.empty_like(own) for _ in range(count())]
    dist.all_gather(everyones, own)
    variances, means = torch.stack(everyones).unbind(1)  # (processes, N) each
    mean = means.mean(0)
    values = len(everyones) * x.numel() // x.shape[1]
    return mean, variances.mean(0) + (means - mean).square().mean(0), values


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.batch_norm` of images (B, N, H, W) of which every process holds equally many.

    Args:
        x: this process's images.
        running_mean: (N,), changed in training; None for none.
        running_var: (N,), as well.
        weight: gamma, (N,); None for 1.
        bias: beta, (N,); None for 0.
        training: normalise by the whole batch; else by the running statistics, as each process can by itself.
        momentum: share of the new statistics in the running ones.
        eps: added to the variance.

    Returns:
        (B, N, H, W).
    """
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    mean, var, values = _statistics(x)
    if running_mean is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var * (values / (values - 1))).to(running_var.dtype), momentum)
    gamma = torch.ones_like(mean) if weight is None else weight
    beta = torch.zeros_like(mean) if bias is None else bias
    return _WholeBatch.apply(x, gamma, beta, mean, var, values, eps)


def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """`torch.nn.functional.dropout` of a share of a batch: the values that fall are those that fall in the whole batch.

    Args:
        x: this process's images, (B, ...); every process has equally many and the same state of the global generator.
        p: the share of the values that become 0.
        training: draw; else nothing is done.
        inplace: not heeded; the result is a new tensor.

    Returns:
        (B, ...).
    """
    if not training:
        return x
    whole = count() * len(x)
    kept = F.dropout(x.new_ones(whole, *x.shape[1:]), p)  # 0 or 1 / (1 - p)
    return x * kept[Share(rank(), count()).rows(whole)]


_OF_THE_WHOLE_BATCH = {F.batch_norm: batch_norm, F.dropout: dropout}


class _OverAllProcesses(TorchFunctionMode):
    """Within it, functions that look beyond one image look at the whole batch."""

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _OF_THE_WHOLE_BATCH.get(function, function)(*args, **(kwargs or {}))


class Synchronised(nn.Module):
    """A network that is trained on the images of all processes together.

    Args:
        model: the network; parameters and buffers stay its own.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.plain = model

    def forward(self, x: Tensor) -> object:
        with _OverAllProcesses():
            return self.plain(x)
