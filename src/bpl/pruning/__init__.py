"""Which filters go (criteria, masks), how they are held at zero (mask_holder), how they are removed for good (slim)."""

from bpl.pruning.applied import apply_masks
from bpl.pruning.criteria import CRITERIA
from bpl.pruning.mask_holder import MaskHolder
from bpl.pruning.masks import prune_masks
from bpl.pruning.slim import slim
from bpl.pruning.zeros import masks_of_zeros

__all__ = ["CRITERIA", "MaskHolder", "apply_masks", "masks_of_zeros", "prune_masks", "slim"]
