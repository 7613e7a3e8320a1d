"""Each entry of the tables of operations does to a channel what its table says, tried with PyTorch itself."""

import pytest
import torch
from torch import nn

from bpl.channels import operations


def called(operation, x: torch.Tensor) -> torch.Tensor:
    return getattr(x.clone(), operation)() if isinstance(operation, str) else operation(x.clone())


def names(operations: object) -> list:
    return sorted(operations, key=str)


def id_of(operation: object) -> str:
    return operation if isinstance(operation, str) else operation.__name__


ZERO = [*operations.ZERO_ACTIVATION_MODULES, *names(operations.ZERO_ACTIVATION_CALLS)]
NOT_ZERO = [*operations.LOSE_ZERO_MODULES, *names(operations.LOSE_ZERO_CALLS)]


@pytest.mark.parametrize("operation", [*ZERO, *NOT_ZERO], ids=id_of)
def test_an_activation_looks_at_each_channel_by_itself_and_keeps_zero_as_its_table_says(operation):
    function = operation().eval().double() if isinstance(operation, type) else operation
    x = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[:, 0] = 0
    y = called(function, x)
    torch.testing.assert_close(called(function, x[:, ::2].contiguous()), y[:, ::2], rtol=1e-12, atol=1e-12)
    assert bool((y[:, 0] == 0).all()) == (operation in ZERO)
    assert y.shape == x.shape and not torch.equal(y, x)


@pytest.mark.parametrize("operation", ZERO, ids=id_of)
def test_training_keeps_zero_too(operation):
    x = torch.zeros(2, 4, 3, 3)
    y = operation().train()(x) if isinstance(operation, type) else called(operation, x)
    assert not y.any()


def test_every_activation_of_pytorch_is_in_a_table_or_left_out_on_purpose():
    mixes = {"GLU", "Softmax", "Softmax2d", "Softmin", "LogSoftmax", "MultiheadAttention"}  # channels with each other
    needs_values = {"Threshold"}
    shifts = {"LogSigmoid"}  # f(0) = -log 2, which no network uses between its layers
    known = {kind.__name__ for kind in operations.ACTIVATION_MODULES}
    assert set(nn.modules.activation.__all__) - known == mixes | needs_values | shifts
