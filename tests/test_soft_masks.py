"""What a soft mask does to partners: why BPL's masks are ranked once by default."""

import torch
import torch.nn.functional as F

import bpl
from bpl.partner import partner_blocks
from bpl.pruning.mask_holder import MaskHolder


def cosines(model: torch.nn.Module, name: str) -> torch.Tensor:
    """Cosine between every filter of a block and the one of its partner."""
    first, second = (branch.conv.weight.detach().flatten(1) for branch in partner_blocks(model)[name].branches)
    return F.cosine_similarity(first, second, dim=1)


def test_filters_that_come_back_from_zero_are_copies_of_each_other():
    torch.manual_seed(0)
    model = bpl.grow_partners(bpl.build_model("resnet18", 5, 64, 8))
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        torch.nn.init.uniform_(norm.bias, 0.1, 0.5)  # as after some training: a ReLU behind 0 would pass no gradient
    masks = bpl.prune_masks(model, 0.5)
    MaskHolder(model, masks, filters_only=True).apply()  # as a soft mask does after an epoch
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(20):
        loss = F.cross_entropy(model(torch.randn(8, 3, 64, 64)), torch.randint(5, (8,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, kept in masks.items():
        found = cosines(model, name)
        assert found[~kept].min() > 0.9 > 0.5 > found[kept].abs().mean()
