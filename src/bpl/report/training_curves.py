"""What happened while training, epoch by epoch, as mean over seeds."""

import itertools
from collections import Counter

import numpy as np

from bpl.report.display import Drawing, Markdown
from bpl.report.rows import Row, named_among
from bpl.report.sentences import NO_RECORDS
from bpl.report.style import (
    LINES,
    MAIN_ROLES,
    SERIES,
    End,
    colour_of,
    drawing,
    label_at_right,
    name_of,
    new_axes,
    role_of,
)

TITLES = {
    "validation": "Top-1 on the validation part, %",
    "test": "Top-1 on the test part, %",
    "loss": "Training loss",
    "partner_cosine": "Cosine between block and partner",
    "kernel_norm": "Norm of the kernels, root mean square",
}


def curves(rows: list[Row], name: str = "validation") -> Drawing | Markdown:
    """One curve a row, the range over its seeds as a band; rows of one role differ in the style of the line.

    Args:
        rows: rows that were trained for any number of epochs.
        name: a key of `Record.curves`, such as "validation", "test", "loss" or "partner_cosine"; records without it,
            and rows without such a record, are left out.

    Returns:
        The figure; one sentence where no row has such a curve.
    """
    drawn = named_among([row for row in rows if any(name in record.curves for record in row.records)])
    if not drawn:
        return Markdown(NO_RECORDS)
    figure, axes = new_axes(height=3.8)
    ends = []
    for row, line, colour in zip(drawn, _lines(drawn), _colours(drawn), strict=True):
        values = np.array([record.curves[name] for record in row.records if name in record.curves])  # (seeds, epochs)
        epochs = np.arange(1, values.shape[1] + 1)
        axes.plot(epochs, values.mean(axis=0), line, color=colour, linewidth=1.6)
        if len(values) > 1:
            axes.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15, linewidth=0)
        ends.append(End(epochs[-1], values[:, -1].mean(), colour, _label(row, drawn), line=line))
    axes.set_xlim(0, max(end.x for end in ends))
    axes.xaxis.get_major_locator().set_params(integer=True)
    label_at_right(axes, ends)
    axes.set_xlabel("Epoch")
    axes.set_ylabel(TITLES.get(name, name.replace("_", " ")))
    return drawing(figure, f"{TITLES.get(name, name)} against the epoch, mean over seeds")


def strengths(rows: list[Row]) -> Drawing | Markdown:
    """How strongly DDSL distilled (alpha) and pulled towards sparsity (rho), on a logarithmic axis.

    Args:
        rows: rows; those that are not of DDSL are left out. Rho ends where the masks freeze.

    Returns:
        The figure; one sentence where no row is left.
    """
    names = {"distill_strength": "distillation", "sparsity_strength": "sparsity"}
    return _log_curves(rows, names, "Strength", "Strength of distillation and of sparsity against the epoch")


def residuals(rows: list[Row]) -> Drawing | Markdown:
    """DDSL's residuals, W - Z (primal) and the last change of Z (dual), on a logarithmic axis.

    Args:
        rows: rows; those that are not of DDSL are left out. Both curves end where the masks freeze.

    Returns:
        The figure; one sentence where no row is left.
    """
    names = {"primal_residual": "primal", "dual_residual": "dual"}
    return _log_curves(rows, names, "Residual over the norm of the weights", "Residuals of ADMM against the epoch")


def _log_curves(rows: list[Row], names: dict[str, str], what: str, title: str) -> Drawing | Markdown:
    """Several curves of each row: a colour for each curve, a line style for each row; values of 0 are not drawn."""
    drawn = [row for row in rows if all(name in record.curves for record in row.records for name in names)]
    if not drawn:
        return Markdown(NO_RECORDS)
    figure, axes = new_axes(height=3.8)
    ends = []
    for row, line in zip(drawn, itertools.cycle(LINES)):
        label = _label(row, drawn).removeprefix("DDSL, ")
        for (name, word), colour in zip(names.items(), SERIES, strict=False):
            values = np.array([record.curves[name] for record in row.records])  # (seeds, epochs)
            there = (values > 0).all(axis=0)
            if not there.any():
                continue
            logs, epochs = np.log10(values[:, there]), 1 + np.flatnonzero(there)
            axes.plot(epochs, logs.mean(axis=0), line, color=colour, linewidth=1.6)
            if len(values) > 1:
                axes.fill_between(epochs, logs.min(axis=0), logs.max(axis=0), color=colour, alpha=0.15, linewidth=0)
            ends.append(End(epochs[-1], logs[:, -1].mean(), colour, f"{word}, {label}", line=line))
    axes.set_xlim(0, max(len(record.curves["loss"]) for row in drawn for record in row.records))
    if not ends:
        return Markdown(NO_RECORDS)
    low, high = axes.get_ylim()
    ticks = [digit * 10.0**power for power in range(-6, 7) for digit in (1, 2, 5)]
    axes.set_yticks([np.log10(tick) for tick in ticks], [f"{tick:g}" for tick in ticks])
    axes.set_ylim(low, high)
    label_at_right(axes, ends)
    axes.set_xlabel("Epoch")
    axes.set_ylabel(what)
    return drawing(figure, f"{title}, geometric mean over seeds")


def _lines(rows: list[Row]) -> list[str]:
    """The style of each line: of the rows of one role, the one with the method's own settings is drawn whole."""
    lines, used = {}, Counter()
    for index in sorted(range(len(rows)), key=lambda index: not rows[index].is_default_method):
        role = role_of(rows[index])
        lines[index] = LINES[used[role] % len(LINES)]
        used[role] += 1
    return [lines[index] for index in range(len(rows))]


def _colours(rows: list[Row]) -> list[str]:
    """The colour of each row's role; where all are variants of one other method, they are what the figure compares."""
    roles = {role_of(row) for row in rows}
    if len(rows) > 1 and len(roles) == 1 and not roles & set(MAIN_ROLES):
        return [SERIES[index % len(SERIES)] for index in range(len(rows))]
    return [colour_of(row) for row in rows]


def _label(row: Row, rows: list[Row]) -> str:
    """The row's name, with its ratio where the rows differ in it."""
    ratios = {other.ratio for other in rows if other.method != "dense"}
    return name_of(row) if len(ratios) <= 1 or row.method == "dense" else f"{name_of(row)}, ratio {row.ratio:g}"
