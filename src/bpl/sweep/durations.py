"""How long runs will take, by how long such runs took."""

import statistics
from collections.abc import Iterable

from bpl.config import RunConfig
from bpl.sweep.estimate import size_of, training_macs


class Durations:
    """The seconds that runs took, by kind of run; runs that differ in their seed only are of one kind."""

    def __init__(self) -> None:
        self._took: dict[tuple, list[float]] = {}
        self._example: dict[tuple, RunConfig] = {}
        self._work: dict[tuple, int | None] = {}

    def add(self, config: RunConfig, seconds: float) -> None:
        """Take note of a run.

        Args:
            config: the run.
            seconds: that it took.
        """
        self._took.setdefault(_kind(config), []).append(seconds)
        self._example.setdefault(_kind(config), config)

    def of_its_kind(self, config: RunConfig) -> float | None:
        """Seconds that a run may take by the others of its kind; None where none was noted.

        Args:
            config: the run.
        """
        took = self._took.get(_kind(config))
        return statistics.median_high(took) if took else None

    def of(self, config: RunConfig) -> float | None:
        """Seconds that a run may take: by its kind, else by the arithmetic of other kinds, else as long as any run.

        The other kinds are those of its architecture where there are any, and of these those of its method: a
        multiply-accumulate of a depthwise or a narrow convolution takes several times as long as one of a wide one.

        Args:
            config: the run.

        Returns:
            None where no run was noted.
        """
        known = self.of_its_kind(config)
        if known is not None or not self._took:
            return known
        others = list(self._example.values())
        alike = [other for other in others if other.arch == config.arch]
        closest = [other for other in alike if other.method == config.method]
        examples = ((self.of_its_kind(other), self._macs(other)) for other in closest or alike or others)
        paces = [seconds / work for seconds, work in examples if work is not None]
        work = self._macs(config)
        if paces and work is not None:
            return statistics.median_high(paces) * work
        return statistics.median_high([seconds for took in self._took.values() for seconds in took])

    def of_all(self, configs: Iterable[RunConfig]) -> float | None:
        """Seconds that runs may take one after another; None where no run was noted.

        Args:
            configs: the runs.
        """
        return sum(map(self.of, configs)) if self._took else None

    def _macs(self, config: RunConfig) -> int | None:
        """Multiply-accumulates of a run's training; None where the size of its data set is not known beforehand."""
        kind = _kind(config)
        if kind not in self._work:
            try:
                self._work[kind] = training_macs(config, *size_of(config))
            except ValueError:
                self._work[kind] = None
        return self._work[kind]


def in_words(seconds: float) -> str:
    """A time as one reads it: ``40 s``, ``25 min``, ``3.5 h``.

    Args:
        seconds: the time.
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _kind(config: RunConfig) -> tuple:
    """What the time of a run depends on, or most of it."""
    return config.dataset, config.arch, config.width, config.method, config.ratio, config.epochs, config.image_size
