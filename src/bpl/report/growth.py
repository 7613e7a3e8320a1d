"""How the memory of a training step grows beside its multiply-accumulates: a chart from recorded counts."""

import json
from pathlib import Path
from typing import Any

from bpl.report.display import Drawing
from bpl.report.rows import ReportError
from bpl.report.style import GREY, SERIES, drawing, new_axes

Axes = dict[str, list[tuple[str, float, float]]]  # axis -> label, MACs and bytes over those of the axis's first


def load_growth(path: Path) -> Axes:
    """Read what `benchmarks/memory.py` wrote.

    Args:
        path: its file.

    Returns:
        Axis -> for each network its label, and its multiply-accumulates an image and bytes a step over those of the
        axis's first network.

    Raises:
        ReportError: unreadable or incomplete; the message names the file and the reason.
    """
    try:
        rows: list[dict[str, Any]] = json.loads(Path(path).read_text())["rows"]
        axes: Axes = {}
        first: dict[str, dict[str, Any]] = {}
        for row in rows:
            least = first.setdefault(row["axis"], row)
            point = (row["label"], row["macs"] / least["macs"], row["bytes"] / least["bytes"])
            axes.setdefault(row["axis"], []).append(point)
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise ReportError(f"growth {path} cannot be read: {error}") from error
    return axes


def growth(axes: Axes) -> Drawing:
    """Memory against multiply-accumulates, both over those of the first network of an axis.

    Below the dashed line memory grows more slowly than computation.

    Args:
        axes: as `load_growth` returns them.
    """
    figure, plot = new_axes(height=4.4)
    ends = []
    for (axis, points), colour, marker in zip(axes.items(), SERIES, "osD^vP", strict=False):
        plot.plot([x for _, x, _ in points], [y for *_, y in points], marker + "-", color=colour, markersize=5)
        for label, x, y in points[1:]:
            plot.annotate(label, (x, y), xytext=(4, -9), textcoords="offset points", fontsize=7, color=colour)
        ends.append((*points[-1][1:], colour, axis))
    most = max(max(x, y) for x, y, *_ in ends)
    plot.plot([1, most], [1, most], "--", color=GREY, linewidth=1)
    plot.set(xscale="log", yscale="log", xlabel="MACs of an image, over the axis's first network")
    plot.set_ylabel("Memory of a step, over the same")
    plot.legend([name for *_, name in ends], loc="upper left", fontsize=8)
    return drawing(figure, "memory of a training step against its multiply-accumulates, by axis of growth")
