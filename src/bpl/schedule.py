"""Learning rates as pure functions of the step, so that a resumed run needs no scheduler state."""

import math


def one_cycle(step: int, steps: int, highest: float, *, warm_up: float = 0.3, start: float = 0.04) -> float:
    """Cosine up to the highest rate and cosine down to almost nothing (Smith & Topin 2018, as in torch's OneCycleLR).

    Args:
        step: index of the step, from 0.
        steps: number of steps in all.
        highest: the highest rate.
        warm_up: share of the steps spent rising.
        start: the first rate, as a share of the highest.

    Returns:
        The learning rate of this step.
    """
    top = max(1.0, warm_up * steps)
    if step < top:
        return highest * (start + (1 - start) * (1 - math.cos(math.pi * step / top)) / 2)
    return highest * max(1e-5, (1 + math.cos(math.pi * (step - top) / max(1.0, steps - top))) / 2)


def released(step: int, steps: int, highest: float) -> float:
    """A tenth of the rate after half of the steps, a hundredth after three quarters (released: 150 and 225 of 300)."""
    return highest * (1.0 if step < steps // 2 else 0.1 if step < 3 * steps // 4 else 0.01)


def steps_an_epoch(images: int, batch_size: int) -> int:
    """Optimiser steps in one pass over the training part.

    A last, smaller batch is dropped, since batch normalisation cannot do with one image; it stays where it is the only.

    Args:
        images: number of training images.
        batch_size: images a step.
    """
    return max(1, images // batch_size)


def images_an_epoch(images: int, batch_size: int) -> int:
    """Images that one pass over the training part sees: those of the dropped last batch are left out.

    Args:
        images: number of training images.
        batch_size: images a step.
    """
    return min(images, batch_size * steps_an_epoch(images, batch_size))


SCHEDULES = {"one-cycle": one_cycle, "released": released}
