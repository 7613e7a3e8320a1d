"""One paper a file.

A method decides how the network is changed before training, what is added to the loss, what happens after a step and
an epoch, and how the compact network is obtained (`bpl.methods.base.Method`).
"""

from bpl.methods.base import Batch, Material, Method, Training
from bpl.methods.bpl import BPL
from bpl.methods.compact_kd import CompactKD
from bpl.methods.ddsl import DDSL
from bpl.methods.fcs_mlft import FCSMLFT
from bpl.methods.hrank import HRank
from bpl.methods.kd import KD
from bpl.methods.magnitude import Pruned
from bpl.methods.oed import OED
from bpl.methods.scratch import Scratch
from bpl.methods.self_kd import SelfKD
from bpl.methods.taught import Taught

REGISTRY: dict[str, type[Method]] = {
    "dense": Method,
    "scratch": Scratch,
    "bpl": BPL,
    "l1": Pruned,
    "sfp": Pruned,
    "fpgm": Pruned,
    "random": Pruned,
    "hrank": HRank,
    "kd": KD,
    "self_kd": SelfKD,
    "compact_kd": CompactKD,
    "oed": OED,
    "fcs_mlft": FCSMLFT,
    "ddsl": DDSL,
}

__all__ = ["BPL", "KD", "OED", "REGISTRY", "Batch", "Material", "Method", "Pruned", "Scratch", "Taught", "Training"]
