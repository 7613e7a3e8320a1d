"""What the tests of exact removal share: trained-looking statistics, masks of all kinds, and the one comparison."""

import copy

import torch
from torch import Tensor, nn

import bpl
from bpl.channels import ChannelGraph
from bpl.copies import modes_kept
from bpl.partner import partner_blocks
from bpl.pruning.masks import convs_of, kept_filters, prunable_sets

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}  # relative to the largest logit


def randomise_statistics(model: nn.Module, seed: int = 0, *, negative: bool = True, tiny_variance: bool = False):
    """Give every batch normalisation and every bias random values, as training would; returns the model.

    Args:
        model: any network, changed in place.
        seed: seed of the values.
        negative: let a third of the gammas be negative.
        tiny_variance: let one channel of each normalisation have a running variance of 1e-10.
    """
    chance = torch.Generator().manual_seed(seed)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        values = torch.rand(like.shape, generator=chance, dtype=torch.float64) * (high - low) + low
        return values.to(like)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.GroupNorm | nn.LayerNorm):
                if module.weight is not None:
                    module.weight.copy_(uniform(module.weight, 0.5, 1.5))
                    if negative:
                        module.weight.mul_(torch.where(uniform(module.weight, 0, 3) < 1, -1.0, 1.0))
                    if module.bias is not None:
                        module.bias.copy_(uniform(module.bias, -0.5, 0.5))
                if getattr(module, "running_var", None) is not None:
                    module.running_mean.copy_(uniform(module.running_mean, -0.5, 0.5))
                    module.running_var.copy_(uniform(module.running_var, 0.5, 2.0))
                    if tiny_variance:
                        module.running_var[0] = 1e-10
                        module.weight[0] *= 1e-2  # else its scale of 1 / sqrt(eps) drowns every other channel
            elif isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                module.bias.copy_(uniform(module.bias, -0.5, 0.5))
    return model


def images(count: int = 2, size: int = 32, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(
        dtype
    )


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected value."""
    assert got.shape == expected.shape and expected.isfinite().all() and expected.abs().max() > 0
    return float((got - expected).detach().abs().max() / expected.detach().abs().max())


@torch.no_grad()
def logits(model: nn.Module, x: Tensor) -> Tensor:
    """Logits in evaluation mode; the model's modes are restored (which has a test of its own)."""
    with modes_kept(model):
        return model.eval()(x)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_state(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two state dicts hold the same tensors, bit by bit."""
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def first_filters(model: nn.Module, ratio: float, scope: str = "inner", round_to: int = 1) -> dict[str, Tensor]:
    """Masks that keep the first filters of every prunable layer: widths without looking at weights."""
    sets = prunable_sets(ChannelGraph(model), scope)
    return {
        name: torch.arange(channels.size) < kept_filters(channels.size, ratio, round_to)
        for channels in sets
        for name in channels.convs
    }


def random_masks(model: nn.Module, seed: int, *, together: bool = True) -> dict[str, Tensor]:
    """Random masks, some convolutions without one.

    Args:
        model: any network.
        seed: seed of the choice.
        together: give convolutions that share channels the same mask, so that channels really go; else every
            convolution has a mask of its own, tied or not, removable or not.
    """
    chance = torch.Generator().manual_seed(seed)
    graph = ChannelGraph(model)
    masks = {}
    for channels in graph.sets:
        shared = torch.rand(channels.size, generator=chance) < 0.6
        skipped = torch.rand((), generator=chance) < 0.2
        for name in channels.convs:
            mask = shared if together else torch.rand(channels.size, generator=chance) < 0.6
            skip = skipped if together else torch.rand((), generator=chance) < 0.2
            computed = any("weight" not in conv._parameters for conv in convs_of(model.get_submodule(name)))
            if not skip and not computed:  # what cannot be masked has a test of its own
                mask = mask.clone()
                mask[0] |= ~mask.any()  # at least one stays
                masks[name] = mask
    return masks


def assert_exact(model: nn.Module, x: Tensor, masks: dict[str, Tensor]) -> nn.Module:
    """Assert that masking, slimming and fusing, in every order, give the same logits; returns the smallest network.

    Args:
        model: a network, with or without partners, in evaluation or training mode.
        x: images of the network's dtype.
        masks: any masks.
    """
    tolerance = TOLERANCE[x.dtype]
    before = state(model)
    expected = logits(bpl.apply_masks(copy.deepcopy(model), masks), x)
    slim = bpl.slim(model, masks)
    assert same_state(before, model.state_dict()), "slim changed its input"
    results = {"slim": slim}
    if partner_blocks(model):
        assert partner_blocks(slim).keys() == partner_blocks(model).keys(), "a slimmed grown network keeps its partners"
        masked = bpl.apply_masks(copy.deepcopy(model), masks)
        results["masked, fused"] = bpl.fuse_partners(masked)
        results["slim, fused"] = bpl.fuse_partners(slim)
        fused = bpl.fuse_partners(model)
        assert same_state(before, model.state_dict()), "fuse changed its input"
        results["fused, slim"] = bpl.slim(fused, masks)
        results["fused, masked"] = bpl.apply_masks(fused, masks)
    for what, network in results.items():
        error = relative_error(logits(network, x), expected)
        assert error <= tolerance, f"{what}: {error:.1e}"
    return results.get("fused, slim", slim)
