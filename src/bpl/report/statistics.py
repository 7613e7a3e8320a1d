"""Statistics over seeds: mean, standard deviation, bootstrap interval, paired difference.

Few seeds bear few claims, so the tools say what they cannot do:

- The bootstrap draws from the values at hand. With three of them its 95 % interval is their range, which covers the
  true mean less often than 95 % of the time. It is a picture of the scatter, not a test.
- Differences are taken seed by seed, since a seed fixes the split: both runs of a pair are measured on the same test
  images. Interval and p come from Student's t on the pairs. An exact sign-flip test assumes less, but with n pairs its
  p cannot fall below 2 / 2**n, 0.25 at n = 3, so it could never speak here. The price of t is the assumption that
  differences are normal, which three values cannot check; with 2 degrees of freedom it takes a mean of 4.3 standard
  errors to leave zero outside the interval. p is of one comparison; `holm` corrects for several.
- Of three pairs the scatter is hardly known: among many comparisons those whose pairs happen to agree look sure, and a
  large difference whose pairs do not is lost to the 2 degrees of freedom. Where several arms have run at the same
  seeds, the scatter of all of them (`scatter_of`), as in an analysis of variance, is better known. With fewer than five
  pairs it takes the place of their own where theirs is smaller. Where theirs is larger the arm may be one that scatters
  more than others do, so it stands alone, with its own degrees of freedom.
- Seeds deal the same images anew, so their training and test parts overlap, and t on the pairs speaks of dealing these
  images once more. What it says of new images is corrected by how much of a deal is tested (Nadeau and Bengio 2003).
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
FEWEST = 3  # values that an interval, or a verdict, takes at the least
FEW = 5  # pairs; of fewer the scatter is not trusted where that of other arms says more
_ENUMERATED = 6  # up to this many values all n**n resamples are listed: exact, and no chance in a committed page
_RESAMPLES = 20_000


@dataclass(frozen=True)
class Summary:
    """Values of one quantity over seeds.

    Attributes:
        n: how many values.
        mean: their mean.
        deviation: their standard deviation (n - 1); None for one value.
        low: lower end of the bootstrap 95 % interval of the mean; None for fewer than three values.
        high: its upper end.
    """

    n: int
    mean: float
    deviation: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference:
    """Mean difference of pairs, one pair a seed.

    Attributes:
        n: how many seeds both sides have.
        mean: mean of (value - control).
        low: lower end of the 95 % t interval; None for fewer than three pairs, or where all differences are equal.
        high: its upper end.
        p: two-sided p of the paired t test; None where there is no interval.
        freedom: degrees of freedom of interval and p; None where there is no interval.
    """

    n: int
    mean: float
    low: float | None
    high: float | None
    p: float | None
    freedom: int | None = None

    @property
    def testable(self) -> bool:
        """Whether a verdict may be taken from it: there are pairs enough, and they differ."""
        return self.n >= FEWEST and self.low is not None

    @property
    def why_undecided(self) -> str | None:
        """Why no verdict can be taken from it, in words; None where one can: it is beyond chance."""
        if self.n < FEWEST:
            return f"from {'one pair' if self.n == 1 else f'{self.n} pairs'} of runs, too few to say"
        if self.low is None:
            return f"from {self.n} pairs of runs that agree"
        return None if self.beyond_chance else "undecided, the interval includes 0"

    @property
    def beyond_chance(self) -> bool:
        """Whether it is testable, and the interval leaves zero outside."""
        return self.testable and not self.low <= 0 <= self.high

    def p_against(self, limit: float) -> float | None:
        """Two-sided p of the paired t test of a mean difference other than 0.

        Args:
            limit: the mean that is tested, in the unit of the values.

        Returns:
            p, or None where there is no interval.
        """
        from scipy import stats

        if self.low is None:
            return None
        error = (self.high - self.mean) / float(stats.t.ppf((1 + CONFIDENCE) / 2, self.freedom))
        return float(2 * stats.t.sf(abs(self.mean - limit) / error, self.freedom))


def summarise(values: Sequence[float]) -> Summary:
    """Mean, spread and interval of values over seeds.

    Args:
        values: (n,) one value a seed, n at least 1.

    Returns:
        The summary, in the unit of the values.

    Raises:
        ValueError: no value.
    """
    if not len(values):
        raise ValueError("there is no value to summarise")
    array = np.asarray(values, dtype=float)
    if len(array) == 1:
        return Summary(1, float(array[0]), None, None, None)
    low, high = bootstrap_interval(array) if len(array) >= FEWEST else (None, None)
    return Summary(len(array), float(array.mean()), float(array.std(ddof=1)), low, high)


def bootstrap_interval(values: Sequence[float]) -> tuple[float, float]:
    """Percentile bootstrap 95 % interval of the mean, the same for the same values.

    Args:
        values: (n,) values, n at least 2.

    Returns:
        Lower and upper end.

    Raises:
        ValueError: fewer than two values.
    """
    array = np.asarray(values, dtype=float)
    if len(array) < 2:
        raise ValueError(f"an interval needs at least 2 values, not {len(array)}")
    if len(array) <= _ENUMERATED:
        picks = np.array(list(itertools.product(range(len(array)), repeat=len(array))))
    else:
        picks = np.random.default_rng(0).integers(len(array), size=(_RESAMPLES, len(array)))
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(array[picks].mean(axis=1), [tail, 100 - tail], method="inverted_cdf")
    return float(low), float(high)


def paired_values(values: Mapping[int, float], control: Mapping[int, float]) -> list[float]:
    """Value minus control of every seed that both have, in the order of the seeds.

    Args:
        values: seed -> value.
        control: seed -> value of the control.
    """
    return [values[seed] - control[seed] for seed in sorted(values.keys() & control.keys())]


@dataclass(frozen=True)
class Scatter:
    """How runs scatter that have arms and seeds in common.

    Attributes:
        deviation: standard deviation of one run about what its arm and its seed make of it.
        freedom: degrees of freedom that it is known with.
    """

    deviation: float
    freedom: int


def scatter_of(arms: Sequence[Mapping[int, float]]) -> Scatter | None:
    """The scatter of several arms at once: what least squares leave of value = arm + seed.

    Args:
        arms: seed -> value of each arm; not all need to have the same seeds.

    Returns:
        The scatter; None where arms and seeds explain every value.
    """
    if not any(arms):
        return None
    runs = [(arm, seed, value) for arm, values in enumerate(arms) for seed, value in values.items()]
    of_arm, of_seed, observed = np.array(runs, dtype=float).T
    design = np.hstack([of_arm[:, None] == np.unique(of_arm), of_seed[:, None] == np.unique(of_seed)]).astype(float)
    found, _, rank, _ = np.linalg.lstsq(design, observed, rcond=None)  # design (runs, arms + seeds)
    freedom = len(runs) - int(rank)
    if freedom < 1:
        return None
    return Scatter(math.sqrt(float(((observed - design @ found) ** 2).sum()) / freedom), freedom)


def paired_difference(
    values: Mapping[int, float], control: Mapping[int, float], dealt: float = 0.0, scatter: Scatter | None = None
) -> Difference | None:
    """Difference to a control at the same seeds.

    Args:
        values: seed -> value.
        control: seed -> value of the control.
        dealt: test images over training images of a deal, for what the difference says of new images (Nadeau and
            Bengio 2003, the corrected resampled t test: the variance of the mean is s**2 * (1 / n + dealt)); 0 for what
            it says of dealing these images once more.
        scatter: that of several arms, these two among them. With fewer than five pairs it takes the place of theirs,
            degrees of freedom included, unless theirs is larger (a difference of two runs has twice their variance).

    Returns:
        The difference over the seeds that both have; None where there is no such seed.
    """
    from scipy import stats

    pairs = np.array(paired_values(values, control))
    if not len(pairs):
        return None
    n, mean = len(pairs), float(pairs.mean())
    if n < FEWEST:
        return Difference(n, mean, None, None, None)
    deviation, freedom = float(pairs.std(ddof=1)), n - 1
    if n < FEW and scatter is not None and deviation < math.sqrt(2) * scatter.deviation:
        deviation, freedom = math.sqrt(2) * scatter.deviation, scatter.freedom
    if deviation < 1e-12:  # t has no scale: n values that agree are no proof of zero scatter
        return Difference(n, mean, None, None, None)
    error = deviation * math.sqrt(1 / n + dealt)
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, freedom))
    return Difference(n, mean, mean - reach, mean + reach, p, freedom)


def holm(p_values: Sequence[float]) -> list[float]:
    """p of several comparisons, corrected so that the chance of one or more false finds is what it says (Holm 1979).

    Args:
        p_values: (n,) p of each comparison.

    Returns:
        (n,) the corrected p, in the same order, at most 1.
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def left_together(p_values: Sequence[float]) -> list[bool]:
    """Which of several comparisons are beyond chance when all of them are tested at once (`holm`).

    Args:
        p_values: (n,) p of each comparison.

    Returns:
        (n,) in the same order.
    """
    return [p <= 1 - CONFIDENCE for p in holm(p_values)]
