"""What every test starts from. Helpers live in modules of their own: `exactness`, `little_networks`, `support`."""

import pytest
import torch

import bpl  # noqa: F401  before any test imports torchvision: it runs the guard


@pytest.fixture(autouse=True)
def same_chance_every_time() -> None:
    """Random weights and images are the same in every run, whatever ran before."""
    torch.manual_seed(0)
