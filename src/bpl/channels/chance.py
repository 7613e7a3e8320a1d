"""The three sources of chance that a forward pass may draw from: torch's, Python's and NumPy's generators."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Seed the three generators of the process."""
    torch.default_generator.manual_seed(seed)  # not those of GPUs: nothing here computes on one
    random.seed(seed)
    np.random.seed(seed)


@contextmanager
def chance_kept() -> Iterator[None]:
    """What is drawn within, on the CPU, does not show outside: the generators go back to where they were."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
