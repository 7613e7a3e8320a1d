"""What a program has to know beside a network to classify an image: one check, for writing it and for reading it."""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any

from bpl.names import is_plain
from bpl.shown import shown

LARGEST_STATISTIC = 1e6  # of mean and deviation, which are shares of white: in between 0 and 1, or close


@dataclass(frozen=True)
class Use:
    """What is needed to classify with a network; None for what is left open.

    Attributes:
        classes: class names, in the order of the logits.
        mean: per-channel mean of the training images, 0..1.
        std: per-channel standard deviation of the training images, 0..1.
    """

    classes: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def check_use(classes: Any, mean: Any, std: Any) -> Use:
    """Class names, mean and deviation, whatever was given for them.

    Args:
        classes: anything; class names are taken as a list, an array or any other row of texts.
        mean: anything; one number a channel is taken as a list, an array or a tensor.
        std: likewise.

    Returns:
        What was given; None where None was.

    Raises:
        ValueError: it cannot be: the message names the value and what it must be.
    """
    return Use(
        None if classes is None else _names(classes),
        None if mean is None else _statistic("mean", mean, -LARGEST_STATISTIC),
        None if std is None else _statistic("std", std, 0.0),
    )


def _names(classes: Any) -> tuple[str, ...]:
    names = _row(classes)
    if not names:
        raise ValueError(f"classes is {shown(classes)}: it must be a list of class names")
    known: set[str] = set()
    for name in names:
        if not isinstance(name, str) or not is_plain(name):
            raise ValueError(f"classes has {shown(name)}: a name must be one line of text")
        if name in known:
            raise ValueError(f"classes has {shown(name)} twice: its logits could not be told apart")
        known.add(name)
    return names


def _statistic(what: str, given: Any, above: float) -> tuple[float, ...]:
    numbers = _row(given)
    if not numbers or not all(_is_between(value, above) for value in numbers):
        kind = "finite numbers" if above < 0 else "finite numbers above 0"
        raise ValueError(f"{what} is {shown(given)}: it must be {kind}, one a channel")
    return tuple(float(value) for value in numbers)


def _row(values: Any) -> tuple[Any, ...]:
    """The values of a list, an array or a tensor, as plain ones; none where it is no such thing, or has no order."""
    values = _plain(values)
    is_row = isinstance(values, Iterable) and not isinstance(values, str | bytes | Mapping | Set)
    return tuple(_plain(value) for value in values) if is_row else ()


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def _is_between(value: Any, above: float) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and above < value < LARGEST_STATISTIC  # which a value that is not a number never is
