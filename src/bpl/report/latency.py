"""Time beside multiply-accumulates: tables, figures and sentences made from a survey (`bpl bench`)."""

import math
from typing import Any

from bpl.config import RunConfig
from bpl.report.display import Drawing, Markdown
from bpl.report.numbers import NBSP, percent_change, spread
from bpl.report.rows import Row
from bpl.report.style import GREY, SERIES, drawing, label_at_right, new_axes
from bpl.report.survey import Survey
from bpl.report.tables import MISSING, numbered_table

ROUNDINGS = {1: "widths as they fall", 8: "rounded to 8", 16: "rounded to 16"}
BACKENDS = {"eager": "PyTorch (eager)", "compile": "torch.compile", "onnxruntime": "ONNX Runtime"}
AIM = 3.3  # times faster than the dense network, at ratio 0.7 rounded to 16 under ONNX Runtime
AIM_THREADS = 2  # on which that was aimed at


def machine(survey: Survey) -> Markdown:
    """What was measured, and where, in a sentence."""
    m, n = survey.machine, survey.network
    width = "" if n["width"] is None else f", width {n['width']}"
    best, stream = survey.best_rate / 1e9, survey.peak["bytes_per_second"] / 1e9
    return Markdown(
        f"Measured: {n['arch']}{width}, {n['classes']} classes, {n['image_size']} × {n['image_size']} pixels, float32, "
        f"{where(m)}, torch {m['torch']}, ONNX Runtime {m['onnxruntime']}, {m['date']}. "
        f"At best this machine made {best:.0f} G multiply-accumulates a second, in a large matrix product or in the "
        f"fastest convolution, and moved {stream:.0f} GB a second in a copy."
    )


def where(machine: dict[str, Any]) -> str:
    """The clock, the threads, the machine, and what else ran on it, as part of a sentence.

    Args:
        machine: as a file of measurements has it.
    """
    others = machine.get("others")
    shared = "" if others is None else f" ({100 * others:.0f} % of its time went to other programs meanwhile)"
    return f"{machine.get('clock', 'wall')} time of {_threads(machine)}, {machine['processor']}{shared}"


def _threads(machine: dict[str, Any]) -> str:
    return "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"


def cost_and_time(
    survey: Survey, rows: list[Row], caption: str, name: str, *, backend: str = "onnxruntime", method: str = "bpl"
) -> Markdown:
    """One line a network: widths, cost, time at every batch size, accuracy where there are records.

    Args:
        survey: the measurements.
        rows: recorded rows of the same architecture; may be empty.
        caption: what the table shows.
        name: label for cross-references, unique in the book.
        backend: what ran the networks.
        method: the method whose accuracy is shown.
    """
    batches = sorted({row["batch_size"] for row in survey.times})
    header = ["Ratio", "Rounded to", "Widths", "MACs, %", "Parameters, %", "Memory, MB"]
    header += [text for batch in batches for text in (f"Batch {batch}, ms", "faster")]
    shown = [entry for entry in survey.networks if entry is survey.dense or entry["name"].startswith("ratio ")]
    lines = []
    for entry in shown:
        dense = entry is survey.dense
        line = [MISSING if dense else f"{entry['ratio']:g}", MISSING if dense else str(entry["round_to"])]
        line += [_widths(survey, entry), *_costs(survey, entry)]
        for batch in batches:
            line += _time(survey, entry, backend, batch)
        lines.append([*line, _accuracy(rows, entry, "dense" if dense else method)])
    return Markdown(numbered_table([*header, "Top-1, %"], lines, caption, name))


def _costs(survey: Survey, entry: dict[str, Any]) -> list[str]:
    shares = [percent_change(-100 * survey.removed(entry, what)) for what in ("macs", "params")]
    return [*shares, f"{entry['memory'] / 1e6:.1f}"]


def _time(survey: Survey, entry: dict[str, Any], backend: str, batch_size: int) -> list[str]:
    """Median milliseconds, and how many times faster than the dense network with the quartiles over rounds."""
    time = survey.time(entry["name"], backend, batch_size)
    low, middle, high = time["speed_up"]
    faster = MISSING if entry is survey.dense else f"{middle:.2f}{NBSP}× [{low:.2f},{NBSP}{high:.2f}]"
    return [f"{time['median_ms']:.2f}", faster]


def _widths(survey: Survey, entry: dict[str, Any]) -> str:
    """What became of the widths of the dense network, such as "20, 39, 77, 154" for 64, 128, 256, 512."""
    pairs = {(survey.dense["widths"][name], entry["widths"][name]) for name in survey.prunable}
    if len({full for full, _ in pairs}) < len(pairs):  # layers of one width were cut differently
        kept = sorted(width for _, width in pairs)
        return f"{kept[0]} to {kept[-1]}"
    return ", ".join(str(width) for _, width in sorted(pairs))


_SIZE = ("arch", "width", "image_size", "stored_size", "epochs", "teacher_epochs", "ratio", "round_to", "target")


def _accuracy(rows: list[Row], entry: dict[str, Any], method: str) -> str:
    """Top-1 of the recorded row of a method at this size, every other knob at its default."""
    for row in rows:
        config = row.config
        if (row.method, row.ratio, config["round_to"] or 1) != (method, entry["ratio"], entry["round_to"]):
            continue
        sizes = {name: config[name] for name in _SIZE} | {"tier": row.records[0].config["tier"]}
        plain = RunConfig(dataset=config["dataset"], method=method, split=config["split"], **sizes).to_dict()
        if config["target"] == entry["target"] and all(value == plain[name] for name, value in config.items()):
            return spread(row.accuracy)
    return MISSING


def speed_up(survey: Survey, backend: str, batch_size: int) -> Drawing:
    """How many times faster, against the multiply-accumulates removed; the line is what counting alone promises.

    Args:
        survey: the measurements.
        backend: what ran the networks.
        batch_size: images in a pass.
    """
    figure, axes = new_axes(height=4.0)
    ends = []
    for (round_to, text), colour, marker in zip(ROUNDINGS.items(), SERIES, "osD", strict=False):
        entries = list(survey.uniform(round_to))
        x = [100 * survey.removed(entry) for entry in entries]
        times = [survey.time(entry["name"], backend, batch_size)["speed_up"] for entry in entries]
        for place, (low, _, high) in zip(x, times, strict=True):
            axes.plot([place, place], [low, high], color=colour, linewidth=1.2)
        axes.plot(x, [middle for _, middle, _ in times], marker + "-", color=colour, linewidth=1.2, markersize=5)
        ends.append((x[-1], times[-1][1], colour, text))
    promised = [100 * step / 200 for step in range(2 * math.ceil(max(end[0] for end in ends)) + 1)]
    axes.plot(promised, [1 / (1 - x / 100) for x in promised], "--", color=GREY, linewidth=1)
    ends.append((promised[-1], 1 / (1 - promised[-1] / 100), GREY, "as MACs promise"))
    axes.axhline(1, color=GREY, linewidth=0.8)
    axes.set_xlabel("MACs removed, % of the dense network")
    axes.set_ylabel(f"Times faster, batch {batch_size}")
    axes.set_title(BACKENDS.get(backend, backend), loc="left", fontsize=10)
    label_at_right(axes, ends)
    return drawing(figure, f"times faster than the dense network against MACs removed, {backend}, batch {batch_size}")


def fractions(survey: Survey, ratio: float, caption: str, name: str) -> Markdown:
    """What fraction of the removed multiply-accumulates became time, by backend, batch size and rounding.

    Args:
        survey: the measurements.
        ratio: share of the filters removed per layer.
        caption: what the table shows.
        name: label for cross-references, unique in the book.
    """
    cases = sorted({(row["backend"], row["batch_size"]) for row in survey.times})
    entries = [survey.find(ratio, round_to) for round_to in ROUNDINGS]
    removed = [f"{100 * survey.removed(entry):.1f}{NBSP}%" for entry in entries]
    lines = [["MACs removed", *removed]]
    for backend, batch in cases:
        became = [f"{100 * survey.becomes_time(entry, backend, batch):.0f}{NBSP}%" for entry in entries]
        lines.append([f"{BACKENDS.get(backend, backend)}, batch {batch}", *became])
    return Markdown(numbered_table(["", *ROUNDINGS.values()], lines, caption, name))


def aim(survey: Survey, ratio: float = 0.7, round_to: int = 16) -> Markdown:
    """Whether the network of rounded widths is as much faster as was aimed at, in a sentence."""
    entry = survey.find(ratio, round_to)
    rows = [row for row in survey.times if (row["network"], row["backend"]) == (entry["name"], "onnxruntime")]
    times = {row["batch_size"]: row["speed_up"] for row in rows}
    said = " and ".join(
        f"{middle:.2f} times [{low:.2f},{NBSP}{high:.2f}] as fast at batch {batch}"
        for batch, (low, middle, high) in sorted(times.items())
    )
    met = all(middle >= AIM for _, middle, _ in times.values())
    return Markdown(
        f"Ratio {ratio:g} with widths rounded to {round_to} removes {100 * survey.removed(entry):.1f} % of the "
        f"multiply-accumulates, and under ONNX Runtime on {_threads(survey.machine)} the network is {said} as "
        f"the dense one (brackets: quartiles over rounds). The aim was {AIM} times on {AIM_THREADS} threads: "
        f"{'reached' if met else 'not reached'} here, on {_threads(survey.machine)}."
    )


def kernels(survey: Survey, caption: str, name: str) -> Markdown:
    """What the convolutions alone take, each measured by itself: time, speed, and share of the machine's best.

    Args:
        survey: the measurements.
        caption: what the table shows.
        name: label for cross-references, unique in the book.
    """
    header = ["Network", "Convolutions, ms", "G MACs a second", "of the best", "below half of it"]
    best, lines = survey.best_rate, []
    for network, layers in survey.layers.items():
        ms, macs = sum(layer["ms"] for layer in layers), sum(layer["macs"] for layer in layers)
        slow = sum(layer["ms"] for layer in layers if _speed(layer) < best / 2)
        lines.append(
            [network, f"{ms:.2f}", f"{macs / ms / 1e6:.0f}", f"{100 * macs / ms * 1e3 / best:.0f}{NBSP}%",
             f"{100 * slow / ms:.0f}{NBSP}% of the time"]
        )  # fmt: skip
    return Markdown(numbered_table(header, lines, caption, name))


def _speed(layer: dict[str, Any]) -> float:
    """Multiply-accumulates a second."""
    return layer["macs"] / layer["ms"] * 1e3


def roofline(survey: Survey) -> Drawing:
    """Speed of every convolution against its multiply-accumulates per byte, under the machine's two roofs.

    Args:
        survey: the measurements.
    """
    figure, axes = new_axes(height=4.4)
    for (network, layers), colour, marker in zip(survey.layers.items(), ("#000000", *SERIES), "Dos^v", strict=False):
        x = [layer["macs"] / layer["bytes"] for layer in layers]
        y = [_speed(layer) / 1e9 for layer in layers]
        axes.plot(x, y, marker, color=colour, markersize=4.5, alpha=0.75, markeredgewidth=0, label=network)
    best, stream = survey.best_rate / 1e9, survey.peak["bytes_per_second"] / 1e9
    left, right = axes.get_xlim()
    left = max(left, 0.3)
    edge = best / stream  # MACs per byte where the two roofs meet
    axes.plot([left, edge, max(right, edge)], [left * stream, best, best], "-", color=GREY, linewidth=1.2)
    axes.annotate(
        "fastest measured", (max(right, edge), best), xytext=(0, 4), textcoords="offset points", ha="right", color=GREY
    )
    axes.annotate("copy", (left, left * stream), xytext=(6, 0), textcoords="offset points", va="top", color=GREY)
    axes.set(xscale="log", yscale="log", xlabel="MACs per byte that must be moved", ylabel="G MACs a second")
    axes.legend(loc="lower right", fontsize=9)
    return drawing(figure, "speed of every convolution against its MACs per byte, under the roofs of the machine")


def target(survey: Survey, rows: list[Row], caption: str, name: str) -> Markdown:
    """Widths chosen layer by layer for a latency, beside the uniform ratio that takes as long.

    Args:
        survey: the measurements.
        rows: recorded rows of the same architecture; may be empty.
        caption: what the table shows.
        name: label for cross-references, unique in the book.
    """
    batches = sorted({row["batch_size"] for row in survey.times})
    header = ["Network", "Widths", "Kept, harmonic mean", "MACs, %", "Parameters, %", "Memory, MB"]
    header += [text for batch in batches for text in (f"Batch {batch}, ms", "faster")]
    lines = []
    for entry in survey.networks:
        if entry is survey.dense or entry["name"].startswith("ratio "):
            continue
        named = f"`--target {entry['target']}`" if entry["target"] else f"uniform, ratio {entry['ratio']:g}"
        kept = [entry["widths"][conv] / survey.dense["widths"][conv] for conv in survey.prunable]
        line = [named, _widths(survey, entry), f"{len(kept) / sum(1 / share for share in kept):.3f}"]
        line += _costs(survey, entry)
        for batch in batches:
            line += _time(survey, entry, "onnxruntime", batch)
        lines.append([*line, _accuracy(rows, entry, "bpl")])
    return Markdown(numbered_table([*header, "Top-1, %"], lines, caption, name))
