"""Compiled training steps: ``torch.compile`` around the network of the loop, forward and backward.

Compiling fuses what a step does between its convolutions, and in the mode ``reduce-overhead`` also captures it as a
CUDA graph. It changes a run by rounding only: chance is drawn as without it. It costs a minute or so for each network,
again after a method has put a smaller one in its place. Where it cannot be done (no C++ compiler, an operation that is
not supported) the network runs as it is, and says so once.
"""

import sys

import torch
from torch import Tensor, nn

from bpl.shown import one_line

MODES = ("off", "default", "reduce-overhead", "max-autotune")  # but for the first those of torch.compile


class Compiled(nn.Module):
    """A network that is compiled when it is first called.

    Args:
        model: the network; parameters and buffers stay its own.
        mode: one of `MODES`, not "off".
    """

    def __init__(self, model: nn.Module, mode: str):
        super().__init__()
        options = torch._inductor.list_mode_options(mode) | {"fallback_random": True}  # dropout as without compiling
        self.plain = model
        self.fast = torch.compile(model, options=options)
        self.failed = False

    def forward(self, x: Tensor) -> object:
        if not self.failed:
            try:
                return self.fast(x)
            except torch._dynamo.exc.TorchDynamoException as error:
                self.failed = True
                print(f"bpl: the network cannot be compiled and runs as it is: {one_line(error)}", file=sys.stderr)
        return self.plain(x)
