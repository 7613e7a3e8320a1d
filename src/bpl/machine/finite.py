"""Whether a training still computes with numbers: what is no longer finite is said at once, and never saved."""

import math

import torch
from torch import nn


def check_finite(loss: float, network: nn.Module, where: str) -> None:
    """Stop a training whose loss or weights are no longer finite.

    A loss can be finite while the weights are not: the step that broke them was the last one of the epoch. A
    checkpoint of such weights would take the place of a good one, and a record of them would say nothing.

    Args:
        loss: the epoch's mean loss.
        network: the network after the epoch.
        where: such as "epoch 3 of 60 (learning rate 0.1)".

    Raises:
        FloatingPointError: one of them is not finite; the message says which, where, and what to change.
    """
    what = f"loss became {loss}" if not math.isfinite(loss) else _broken_tensor(network)
    if what is not None:
        raise FloatingPointError(
            f"the {what} in {where}: lower learning_rate, or the weight of what the method adds to the loss; the last "
            "checkpoint before that is kept"
        )


def _broken_tensor(network: nn.Module) -> str | None:
    """The first weight or statistic that is not finite, in words; None where all are."""
    tensors = {name: tensor for name, tensor in network.state_dict().items() if tensor.is_floating_point()}
    finite = torch.stack([tensor.isfinite().all() for tensor in tensors.values()]).tolist()  # waits for a GPU once
    broken = [name for name, good in zip(tensors, finite, strict=True) if not good]
    return f"weights of {broken[0]} became infinite or NaN" if broken else None
