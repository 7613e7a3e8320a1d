"""What every test starts from. Helpers live in modules of their own: `exactness`, `little_networks`, `support`."""

import pytest
import torch

import bpl  # noqa: F401  its guard must run before a test module imports torchvision or timm

torch.set_num_threads(1)  # the networks here are tiny: a second thread only waits, and waiting costs a core


@pytest.fixture(autouse=True)
def same_chance_every_time() -> None:
    """Random weights and images are the same in every run, whatever ran before."""
    torch.manual_seed(0)
