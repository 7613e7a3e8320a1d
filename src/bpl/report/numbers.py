"""How numbers are written: decimals, signs and brackets, the same in tables, sentences and figures."""

from bpl.report.statistics import Difference, Summary

MINUS = "−"
NBSP = "\N{NO-BREAK SPACE}"  # a number and its interval stay on one line


def points(value: float, decimals: int = 2) -> str:
    """A difference in percentage points, with its sign, such as "−0.24"."""
    text = f"{value:+.{decimals}f}"
    if float(text) == 0:
        text = text[1:]  # neither +0.00 nor -0.00
    return text.replace("-", MINUS)


def percent_change(value: float) -> str:
    """A change in percent, such as "−73.97"; "0" for none."""
    return "0" if value == 0 else points(value)


def interval(low: float | None, high: float | None, *, signed: bool = False) -> str:
    """An interval in brackets; empty where there is none.

    Args:
        low: lower end, or None.
        high: upper end, or None.
        signed: write the signs, as for differences.
    """
    if low is None or high is None:
        return ""
    if signed:
        return f"[{_end(low)},{NBSP}{_end(high)}]"
    return f"[{low:.1f},{NBSP}{high:.1f}]"


def with_interval(value: Difference | Summary, unit: str = "") -> str:
    """A mean difference with its sign, its unit and its interval where it has one: "−0.24 points [−1.2, +0.7]".

    Args:
        value: the difference, or what is summarised.
        unit: written behind the mean; none in a table.
    """
    mean = f"{points(value.mean)} {unit}".rstrip()
    return f"{mean} {interval(value.low, value.high, signed=True)}".rstrip()


def p_value(value: float, equals: str = "") -> str:
    """The p of a test, such as "0.041" or "< 0.001".

    Args:
        value: the p.
        equals: written before a p that is given as it is.
    """
    return "< 0.001" if value < 0.001 else f"{equals}{value:.2g}"


def _end(value: float) -> str:
    """One decimal, but as many as show on which side of zero the end of an interval lies, up to three."""
    decimals = next((places for places in (1, 2, 3) if round(value, places)), 1)
    return points(value, decimals)


def spread(summary: Summary | None) -> str:
    """Mean and standard deviation, such as "74.29 ± 0.5"; the mean alone for one value; "–" for none."""
    if summary is None:
        return "–"
    if summary.deviation is None:
        return f"{summary.mean:.2f}"
    return f"{summary.mean:.2f}{NBSP}±{NBSP}{summary.deviation:.1f}"
