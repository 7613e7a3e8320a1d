"""Residual blocks act(F(x) + shortcut(x)): a soft mask on F, and what is left of a block whose F is removed.

Known are the blocks of torchvision's ResNets, of the CIFAR-style ResNet-56, which has the same, and those of
MobileNetV2 that have a skip connection. In all of them a batch normalisation ends F: a mask folds into it exactly.
"""

from collections import OrderedDict
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual, MobileNetV2
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from bpl.measure import count_params, macs_of_modules
from bpl.models import ResNet56
from bpl.partner import replace_module

Block = BasicBlock | Bottleneck | InvertedResidual


def is_residual_block(module: nn.Module) -> bool:
    """Whether a module is a block with a shortcut past a branch that can be removed."""
    return isinstance(module, BasicBlock | Bottleneck) or (
        isinstance(module, InvertedResidual) and module.use_res_connect
    )


def residual_blocks(model: nn.Module) -> dict[str, Block]:
    """The residual blocks of a network.

    Args:
        model: a ResNet, ResNet56 or MobileNetV2, some blocks of which may be removed already.

    Returns:
        Module name -> block, in the order of the forward pass.

    Raises:
        ValueError: another network.
    """
    if not isinstance(model, ResNet | ResNet56 | MobileNetV2):
        raise ValueError(
            f"{type(model).__name__} has no residual blocks that can be removed: ResNet, ResNet56 and MobileNetV2 have"
        )
    return {name: module for name, module in model.named_modules() if is_residual_block(module)}


def branch(block: Block, x: Tensor) -> Tensor:
    """F(x), the residual branch of a block (B, C, H, W), its last batch normalisation included."""
    if isinstance(block, InvertedResidual):
        return block.conv(x)
    out = block.bn2(block.conv2(block.relu(block.bn1(block.conv1(x)))))
    return block.bn3(block.conv3(block.relu(out))) if isinstance(block, Bottleneck) else out


def shortcut(block: Block, x: Tensor) -> Tensor:
    """What goes past the branch (B, C, H, W): x, or its projection where stride or width change."""
    projection = getattr(block, "downsample", None)
    return x if projection is None else projection(x)


def branch_costs(model: nn.Module, cost: str, image_size: int) -> dict[str, int]:
    """What a network's cost falls by when a residual block is removed; of several blocks, the sum.

    Args:
        model: the network; it is not changed.
        cost: "macs" or "params", as of a `bpl.budget.Budget`.
        image_size: height and width of its images in pixels.

    Returns:
        Block name -> cost of its branch.
    """
    blocks = residual_blocks(model)
    projections = {name: getattr(block, "downsample", None) for name, block in blocks.items()}
    if cost == "params":
        whole = {name: count_params(block) for name, block in blocks.items()}
        kept = {name: 0 if p is None else count_params(p) for name, p in projections.items()}
    else:
        macs = macs_of_modules(model, image_size)
        whole = {name: macs[name] for name in blocks}
        kept = {name: 0 if p is None else macs[f"{name}.downsample"] for name, p in projections.items()}
    return {name: whole[name] - kept[name] for name in blocks}


def last_norm(block: Block) -> nn.BatchNorm2d:
    """The batch normalisation that ends the branch."""
    if isinstance(block, InvertedResidual):
        return block.conv[-1]
    return block.bn3 if isinstance(block, Bottleneck) else block.bn2


class MaskedBlock(nn.Module):
    """act(m * F(x) + shortcut(x)), with m one entry of a vector that blocks may share.

    Args:
        block: the block whose branch is scaled.
        masks: (blocks,) parameter.
        index: the block's entry.
    """

    def __init__(self, block: Block, masks: nn.Parameter, index: int):
        super().__init__()
        self.block, self.masks, self.index = block, masks, index

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        out = self.masks[self.index] * branch(self.block, x) + shortcut(self.block, x)
        return out if isinstance(self.block, InvertedResidual) else self.block.relu(out)


class Shortcut(nn.Sequential):
    """What is left of a removed block: its projection and the ReLU, or, where x itself goes past the branch, nothing.

    The ReLU behind an identity shortcut goes too: the input of a ResNet's block comes from a ReLU, and one more would
    change nothing.

    Args:
        block: the block; its projection goes on under the name that it had.
    """

    def __init__(self, block: Block):
        projection = getattr(block, "downsample", None)
        kept = OrderedDict() if projection is None else OrderedDict(downsample=projection, relu=nn.ReLU(inplace=True))
        super().__init__(kept)


def mask_blocks(model: nn.Module, masks: nn.Parameter) -> nn.Module:
    """Put a soft mask on every residual block of a network, in place.

    Args:
        model: the network.
        masks: (blocks,) parameter, in the order of `residual_blocks`.

    Returns:
        The model.
    """
    for index, (name, block) in enumerate(residual_blocks(model).items()):
        replace_module(model, name, MaskedBlock(block, masks, index))
    return model


def masked_blocks(model: nn.Module) -> dict[str, MaskedBlock]:
    """Module name -> masked block, in the order of the forward pass."""
    return {name: module for name, module in model.named_modules() if isinstance(module, MaskedBlock)}


@torch.no_grad()
def fold_masks(model: nn.Module, masks: dict[str, float]) -> nn.Module:
    """Fold soft masks into the gamma and beta of the batch normalisations that end the branches, in place: exact.

    Args:
        model: a network with `MaskedBlock`s.
        masks: block name -> m. The network's own parameter is not read, so that a network that holds an optimiser's
            buffers in place of its weights folds alike.

    Returns:
        The model, of ordinary blocks.
    """
    for name, masked in masked_blocks(model).items():
        norm = last_norm(masked.block)
        norm.weight.mul_(masks[name])
        norm.bias.mul_(masks[name])
        replace_module(model, name, masked.block)
    return model


def remove_blocks(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """Remove the branches of residual blocks for good, in place; their shortcuts stay.

    Args:
        model: a network, with or without masks.
        names: blocks to remove; those that are removed already stay so.

    Returns:
        The model; it computes what it did with these branches at 0.

    Raises:
        ValueError: a name that is no residual block's.
    """
    for name in names:
        block = model.get_submodule(name)
        if isinstance(block, Shortcut):
            continue
        block = block.block if isinstance(block, MaskedBlock) else block
        if not is_residual_block(block):
            raise ValueError(f"{name!r} is a {type(block).__name__}, not a residual block that can be removed")
        replace_module(model, name, Shortcut(block))
    return model
