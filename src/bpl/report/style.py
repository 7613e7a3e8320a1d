"""How figures look: colours that colour-blind readers tell apart, and the same SVG text for the same numbers."""

import io
from typing import TYPE_CHECKING

from bpl.report.display import Drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, then Tol's muted one; markers differ too, so that no reading depends on colour alone.
COLOURS = {
    "bpl": "#D55E00",
    "scratch": "#0072B2",
    "dense": "#000000",
    "sfp": "#009E73",
    "fpgm": "#CC79A7",
    "l1": "#E69F00",
    "random": "#666666",
    "hrank": "#999933",
    "kd": "#332288",
    "self_kd": "#882255",
    "compact_kd": "#117733",
    "oed": "#AA4499",
    "fcs_mlft": "#CC6677",
    "ddsl": "#44AA99",
}
MARKERS = {
    "bpl": "o", "scratch": "s", "dense": "D", "sfp": "^", "fpgm": "v", "l1": "P", "random": "X", "hrank": "d",
    "kd": "<", "self_kd": ">", "compact_kd": "p", "oed": "h", "fcs_mlft": "8", "ddsl": "*",
}  # fmt: skip
SERIES = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#666666")  # where colours are not methods
GREY = "#555555"
_SETTINGS = {
    "svg.hashsalt": "bpl",  # ids of clip paths and glyphs, else drawn by chance
    "svg.fonttype": "path",  # the same letters whatever fonts the reader has
    "font.family": ["DejaVu Sans"],  # comes with matplotlib
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def new_axes(height: float = 4.2, width: float = 6.4) -> tuple["Figure", "Axes"]:
    """A figure with one set of axes in the book's style, outside of pyplot: nothing is shown by itself.

    Args:
        height: in inches.
        width: in inches; 6.4 stays readable when a phone shrinks it.

    Returns:
        Figure and axes.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.add_subplot()


def drawing(figure: "Figure", title: str) -> Drawing:
    """A finished figure as SVG text.

    Args:
        figure: the figure.
        title: what it shows, in words.

    Returns:
        The drawing; equal numbers give equal text.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context(_SETTINGS):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return Drawing(buffer.getvalue(), title)


def label_at_right(axes: "Axes", ends: list[tuple[float, float, str, str]]) -> None:
    """Name series at the right edge, moved apart where they would overlap. Call it when all else is drawn.

    Args:
        axes: the axes; their limits are kept from now on.
        ends: x and y of the last point, colour and name of each series.
    """
    limits, (bottom, top) = axes.get_xlim(), axes.get_ylim()
    line = (top - bottom) / 16  # the height of a line of text, about
    heights = spread_out([y for _, y, _, _ in ends], line)
    above = max(0.0, max(heights) - top)
    heights = [max(bottom + line / 2, height - above) for height in heights]
    for (x, y, colour, name), height in zip(ends, heights, strict=True):
        axes.annotate(
            name, (x, y), xytext=(1.03, height), textcoords=("axes fraction", "data"), color=colour, va="center",
            annotation_clip=False, arrowprops={
                "arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.6, "relpos": (0, 0.5), "shrinkB": 0,
            },
        )  # fmt: skip
    axes.set(xlim=limits, ylim=(bottom, top))


def spread_out(positions: list[float], least: float) -> list[float]:
    """Move labels apart so that neighbours do not overlap, each as little as possible.

    Args:
        positions: where the labels would stand.
        least: smallest distance between two.

    Returns:
        Where they stand, in the order given.
    """
    order = sorted(range(len(positions)), key=positions.__getitem__)
    blocks: list[tuple[list[int], float]] = []  # labels that touch, and the position of the lowest
    for index in order:
        members, start = [index], positions[index]
        while blocks and blocks[-1][1] + least * len(blocks[-1][0]) > start:
            members = blocks.pop()[0] + members
            start = sum(positions[m] - least * rank for rank, m in enumerate(members)) / len(members)
        blocks.append((members, start))
    placed = list(positions)
    for members, start in blocks:
        for rank, member in enumerate(members):
            placed[member] = start + least * rank
    return placed
