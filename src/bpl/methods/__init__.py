"""One paper a file.

A method decides how the network is changed before training, what is added to the loss, what happens after a step and
an epoch, and how the compact network is obtained (`bpl.methods.base.Method`).
"""

from bpl.methods.base import Method, Training
from bpl.methods.bpl import BPL
from bpl.methods.magnitude import Pruned
from bpl.methods.scratch import Scratch

REGISTRY: dict[str, type[Method]] = {
    "dense": Method,
    "scratch": Scratch,
    "bpl": BPL,
    "l1": Pruned,
    "sfp": Pruned,
    "fpgm": Pruned,
    "random": Pruned,
}

__all__ = ["BPL", "REGISTRY", "Method", "Pruned", "Scratch", "Training"]
