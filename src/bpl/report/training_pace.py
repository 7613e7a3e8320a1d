"""How fast a training gets where another one ends: epochs to equal accuracy."""

from dataclasses import dataclass

import numpy as np

from bpl.report.display import Markdown
from bpl.report.rows import Row

SMOOTH = 5  # epochs that are averaged, since a small validation part makes single ones jump


@dataclass(frozen=True)
class Reached:
    """Where one training gets to another's end, on the validation part.

    Attributes:
        epoch: after which epoch it is there; None if never.
        goal: the accuracy to reach, percent.
        best: the highest of its own, percent.
        seeds: number of seeds of both.
    """

    epoch: int | None
    goal: float
    best: float
    seeds: int


def epochs_to_reach(row: Row, goal: Row) -> Reached | None:
    """After which epoch a row is where another one ends, on the validation part, over the seeds of both.

    Accuracies are means over seeds and over five epochs, up to the epoch itself.

    Args:
        row: whose epochs are counted.
        goal: whose last epochs set the accuracy to reach.

    Returns:
        The epoch, and the accuracies; None without a seed in common, and where a split has no validation part.
    """
    seeds = sorted(set(row.seeds) & set(goal.seeds))
    if not seeds or not all("validation" in record.curves for one in (row, goal) for record in one.records):
        return None
    ours, theirs = (_smooth(one, seeds) for one in (row, goal))
    there = np.flatnonzero(ours >= theirs[-1] - 1e-9)  # rounding aside
    epoch = int(there[0]) + min(SMOOTH, len(ours)) if len(there) else None
    return Reached(epoch, float(theirs[-1]), float(ours.max()), len(seeds))


def _smooth(row: Row, seeds: list[int]) -> np.ndarray:
    """Validation accuracy, mean over seeds and a window of epochs; entry 0 is of the first whole window."""
    curves = [record.curves["validation"] for record in row.records if record.config["seed"] in seeds]
    mean = np.mean(curves, axis=0)  # (epochs,)
    window = min(SMOOTH, len(mean))
    return np.convolve(mean, np.ones(window) / window, mode="valid")


def pace(fast: Row | None, slow: Row | None, names: tuple[str, str]) -> Markdown:
    """The sentence on a claim that one training reaches another's accuracy in fewer epochs.

    Args:
        fast: the training that is claimed to need fewer epochs, or None where it is not recorded.
        slow: the other one.
        names: what to call them.

    Returns:
        Markdown.
    """
    found = None if fast is None or slow is None else epochs_to_reach(fast, slow)
    if found is None:
        return Markdown(f"{names[0]} and {names[1]} are not recorded at the same seeds with a validation part yet.")
    total, price = slow.config["epochs"], fast.training_macs / slow.training_macs
    where = f"what {names[1]} has after all {total} ({found.goal:.2f} %)"
    gets = f"reaches {where} after {found.epoch} epochs"
    if found.epoch is None:
        gets = f"comes to {found.best:.2f} % and does not reach {where}"
    return Markdown(
        f"On the validation part, averaged over {SMOOTH} epochs (n = {found.seeds}), {names[0]} {gets}. Its whole "
        f"training takes {price:.2f} times the multiply-accumulates of the other's, the dense network's training "
        "included in both. Both follow one schedule to its end, and much of any accuracy comes when the rate falls; "
        "arms that stop after fewer epochs are the fairer test."
    )
