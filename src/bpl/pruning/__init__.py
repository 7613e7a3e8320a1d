"""Which filters go (criteria), how they are held at zero (masks), how they are removed for good (slim)."""

from bpl.pruning.criteria import CRITERIA
from bpl.pruning.masks import MaskHolder, apply_masks, prune_masks
from bpl.pruning.slim import slim

__all__ = ["CRITERIA", "MaskHolder", "apply_masks", "prune_masks", "slim"]
