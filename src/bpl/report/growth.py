"""How the memory of a training step grows beside its multiply-accumulates: a chart from recorded counts."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpl.report.display import Drawing
from bpl.report.rows import ReportError
from bpl.report.style import GREY, SERIES, drawing, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes as PlotAxes
    from matplotlib.figure import Figure

PARTNERS = "partners"  # how the name of an axis of partners begins
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
    """Memory against multiply-accumulates as networks grow, both over those of the first network of an axis.

    Below the dashed line memory grows more slowly than computation.

    Args:
        axes: as `load_growth` returns them; those of partners, which are no sequence, are left out.
    """
    sizes = {axis: points for axis, points in axes.items() if not axis.startswith(PARTNERS)}
    figure, plot = _draw(sizes, "-")
    plot.set(xscale="log", yscale="log")
    return drawing(figure, "memory of a training step against its multiply-accumulates, by axis of growth")


def partners(axes: Axes) -> Drawing:
    """What each kind of partner adds: memory against multiply-accumulates, both over those of the network without.

    Args:
        axes: as `load_growth` returns them; all but those of partners are left out.
    """
    kinds = {axis: points for axis, points in axes.items() if axis.startswith(PARTNERS)}
    figure, _ = _draw(kinds, "")
    return drawing(figure, "memory of a training step against its multiply-accumulates, by kind of partner")


def _draw(axes: Axes, line: str) -> tuple["Figure", "PlotAxes"]:
    figure, plot = new_axes(height=4.0)
    for (axis, points), colour, marker in zip(axes.items(), SERIES, "osD^v", strict=False):
        x, y = [x for _, x, _ in points], [y for *_, y in points]
        plot.plot(x, y, marker + line, color=colour, markersize=5, label=axis)
        for label, *place in points[1:]:
            plot.annotate(label, place, xytext=(5, -9), textcoords="offset points", fontsize=8, color=colour)
    most = max(max(x, y) for points in axes.values() for _, x, y in points)
    plot.plot([1, most], [1, most], "--", color=GREY, linewidth=1)
    plot.set(xlabel="MACs of an image, over those of the first", ylabel="Memory of a step, over that of the first")
    plot.legend(loc="upper left", fontsize=9)
    return figure, plot
