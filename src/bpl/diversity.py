"""The diversity loss: what keeps a block and its partner different (BPL), in the released form and the ablated ones.

Every form compares pairs (a, b) of tensors, the original's and the partner's (of several partners the sum, as one k x k
kernel), and adds a per-pair or per-filter term:

    signed cosine       cos(a, b) + 1      in [0, 2]; least when the partner is the *opposite* of the original
    squared cosine      cos(a, b)^2        in [0, 1]; least when the two are *orthogonal*

The released form joins all kernels of a stage into one vector before it takes the cosine, so it is a sum over stages.
The loss is returned without a weight: the released code multiplies it by 0.01.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpl.partner import partner_blocks
from bpl.partner_conv import PartnerConv2d

Pair = tuple[Tensor, Tensor]
EPSILON = 1e-12  # keeps the cosine of a zero vector at 0 and its gradient finite


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the angle between vectors along the last dimension.

    Args:
        a: (..., D).
        b: (..., D).

    Returns:
        (...), in [-1, 1]; 0 where a vector is zero.
    """
    return F.cosine_similarity(a, b, dim=-1)  # finite at zero, its gradient too


Measure = Callable[[Tensor], Tensor]  # of cosines, entry by entry


def signed(cosines: Tensor) -> Tensor:
    """cos + 1, the released measure: 0 for opposite vectors, 1 for orthogonal ones, 2 for equal ones."""
    return cosines + 1


def squared(cosines: Tensor) -> Tensor:
    """cos^2: 0 for orthogonal vectors, 1 for parallel and for opposite ones."""
    return cosines.square()


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """Sum of products of all entries, read in the order they lie in memory, so that nothing is copied."""
    if all(t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last) for t in (x, y)):
        x, y = x.permute(0, 2, 3, 1), y.permute(0, 2, 3, 1)
    return torch.dot(x.reshape(-1), y.reshape(-1))


class _JoinedCosine(torch.autograd.Function):
    """Cosine between two lists of tensors, each list joined into one vector that is never built.

    d cos / da = b / (|a| |b|) - cos a / |a|^2. In closed form the loss costs three dot products forward and four passes
    over the weights backward, which on a CPU is a third of what the recorded graph costs.
    """

    @staticmethod
    def forward(ctx, count: int, *tensors: Tensor) -> Tensor:
        parts = _cosine_parts(tensors[:count], tensors[count:])
        ctx.save_for_backward(*parts, *tensors)
        return parts[0]

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        value, scale, square_a, square_b, *tensors = ctx.saved_tensors
        count = len(tensors) // 2
        a, b = tensors[:count], tensors[count:]
        if torch.is_grad_enabled():  # a gradient of this gradient is wanted: what it is made of has to have a graph too
            value, scale, square_a, square_b = _cosine_parts(a, b)
        towards, along_a, along_b = grad * scale, -grad * value / square_a, -grad * value / square_b
        grads_a = [torch.addcmul(x * along_a, y, towards) for x, y in zip(a, b, strict=True)]
        grads_b = [torch.addcmul(y * along_b, x, towards) for x, y in zip(a, b, strict=True)]
        return None, *grads_a, *grads_b


def _cosine_parts(a: Sequence[Tensor], b: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of two joined vectors the cosine, 1 / (|a| |b|), |a|^2 and |b|^2."""

    def dot(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
        return torch.stack([_dot(x, y) for x, y in zip(first, second, strict=True)]).sum()

    square_a, square_b = dot(a, a) + EPSILON, dot(b, b) + EPSILON
    scale = (square_a * square_b).rsqrt()
    return dot(a, b) * scale, scale, square_a, square_b


def stage_loss(stages: list[list[Pair]], measure: Measure) -> Tensor:
    """Sum over stages of the measure between all originals of a stage as one vector and all its partners as one.

    Args:
        stages: for each stage the pairs of its blocks, tensors of any shape.
        measure: `signed` or `squared`.

    Returns:
        A scalar.
    """
    cosines = torch.stack([_JoinedCosine.apply(len(p), *(a for a, _ in p), *(b for _, b in p)) for p in stages])
    return measure(cosines).sum()


def layer_loss(stages: list[list[Pair]], measure: Measure) -> Tensor:
    """Mean over blocks of the measure between original and partner, each as one vector.

    Args:
        stages: for each stage the pairs of its blocks, tensors of any shape.
        measure: `signed` or `squared`.

    Returns:
        A scalar.
    """
    cosines = torch.stack([cosine(a.flatten(), b.flatten()) for pairs in stages for a, b in pairs])
    return measure(cosines).mean()


def filter_loss(stages: list[list[Pair]], measure: Measure) -> Tensor:
    """Mean over blocks of the mean over live filters of the measure between a filter and its partner's.

    A filter that a mask holds at zero has no direction and is left out, so that removing it changes nothing.

    Args:
        stages: for each stage the pairs of its blocks, kernels (N, C, kh, kw).
        measure: `signed` or `squared`.

    Returns:
        A scalar.
    """
    terms = []
    for pairs in stages:
        for a, b in pairs:
            a, b = a.flatten(1), b.flatten(1)  # (N, D)
            live = (a.detach().abs().sum(1) * b.detach().abs().sum(1)) > 0  # (N,)
            terms.append((measure(cosine(a, b)) * live).sum() / live.sum().clamp_min(1))
    return torch.stack(terms).mean()


def _sum(tensors: Iterable[Tensor]) -> Tensor:
    return functools.reduce(torch.add, tensors)


def _wide(tensor: Tensor) -> Tensor:
    """In float32 where it is of half precision, whose range a sum of squares leaves."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def raw_kernels(block: PartnerConv2d) -> Pair:
    """The kernels as the optimiser sees them, (N, C, k, k) each, in float32 at least."""
    original, *partners = (_wide(branch.kernel()) for branch in block.branches)
    return original, _sum(partners)


def folded_kernels(block: PartnerConv2d) -> Pair:
    """The kernels as the input sees them: batch normalisation folded in, (N, C, k, k) each, in float32 at least."""
    dtype = _wide(block.branches[0].conv.weight).dtype
    original, *partners = (branch.kernel_and_bias()[0].to(dtype) for branch in block.branches)
    return original, _sum(partners)


def feature_maps(block: PartnerConv2d) -> Pair:
    """The outputs of the last forward pass, filters first: (N, B, H, W) each, in float32 at least."""
    if not block.outputs:
        raise RuntimeError(
            "no outputs are recorded: a diversity loss on features needs a forward pass in training mode "
            "inside bpl.record_outputs(model)"
        )
    original, *partners = (_wide(output).transpose(0, 1) for output in block.outputs)
    return original, _sum(partners)


FORMS: dict[str, tuple[Callable, Callable, Callable]] = {
    "stage-cosine": (stage_loss, signed, raw_kernels),  # the released form
    "stage-squared": (stage_loss, squared, raw_kernels),
    "layer-cosine": (layer_loss, signed, raw_kernels),
    "layer-squared": (layer_loss, squared, raw_kernels),  # orthogonality
    "filter-cosine": (filter_loss, signed, raw_kernels),
    "filter-squared": (filter_loss, squared, raw_kernels),
    "folded-cosine": (filter_loss, signed, folded_kernels),
    "folded-squared": (filter_loss, squared, folded_kernels),
    "feature-cosine": (filter_loss, signed, feature_maps),
    "feature-squared": (filter_loss, squared, feature_maps),
}


def diversity_loss(model: nn.Module, form: str = "stage-cosine") -> Tensor:
    """How alike the blocks of a network and their partners are.

    Args:
        model: a network with partners.
        form: a key of `FORMS`. ``stage-cosine`` is the released form: sum over stages (blocks of one output stride)
            of cos + 1; ``stage-squared`` is the same sum of cos^2. The others are means over blocks, of a cosine + 1 or
            a squared cosine, over whole layers or filter by filter, of raw kernels, of kernels with batch normalisation
            folded in (``folded-*``), or of the branches' outputs (``feature-*``, which need `record_outputs`).

    Returns:
        A scalar tensor, differentiable, without a weight.

    Raises:
        ValueError: the model has no partners, or the form is unknown.
        RuntimeError: a ``feature-*`` form where no outputs were recorded.
    """
    if form not in FORMS:
        raise ValueError(f"unknown diversity form {form!r}: allowed are {', '.join(FORMS)}")
    blocks = partner_blocks(model)
    if not blocks:
        raise ValueError(f"{type(model).__name__} has no partners: call bpl.grow_partners first")
    reduce, measure, pair_of = FORMS[form]
    stages: dict[int, list[Pair]] = {}
    for block in blocks.values():
        stages.setdefault(block.stage, []).append(pair_of(block))
    return reduce(list(stages.values()), measure)


@contextmanager
def record_outputs(model: nn.Module) -> Iterator[None]:
    """Within this context partner blocks in training mode keep their branches' outputs, for the losses on features.

    Args:
        model: a network with partners.
    """
    before = {block: block.keep_outputs for block in partner_blocks(model).values()}
    for block in before:
        block.keep_outputs = True
    try:
        yield
    finally:
        for block, kept in before.items():
            block.keep_outputs = kept
            block.outputs = []
