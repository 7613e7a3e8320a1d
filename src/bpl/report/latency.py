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

ROUNDINGS = {1: "not rounded", 8: "rounded to 8", 16: "rounded to 16"}
BACKENDS = {"eager": "PyTorch (eager)", "compile": "torch.compile", "onnxruntime": "ONNX Runtime"}
AIM = 3.3  # times as fast as the dense network, at ratio 0.7 rounded to 16 under ONNX Runtime: this library's goal
AIM_THREADS = 2  # on which that is the goal


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
    """One line a network: widths, cost, time at every batch size, accuracy where there are records; and the noise.

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
        line = [
            MISSING if dense else f"{entry['ratio']:g}",
            MISSING if dense or entry["round_to"] == 1 else str(entry["round_to"]),
        ]
        line += [_widths(survey, entry), *_costs(survey, entry)]
        for batch in batches:
            line += _time(survey, entry, backend, batch)
        lines.append([*line, _accuracy(rows, entry, "dense" if dense else method)])
    table = _with_accuracy(header, lines, caption, name)
    groups = _equal_networks(survey)
    if not groups:
        return Markdown(table)
    ratios = " and ".join(f"{ratio:g}" for ratio in dict.fromkeys(group[0]["ratio"] for group in groups))
    return Markdown(
        f"{table}\n\nRows of the same widths (ratio {ratios}) are one network, measured anew for each row. Its median "
        f"speeds differ by up to {_percents(_noise(survey, backend))}. So a difference of that size between two "
        f"networks may be noise, whatever the brackets say, which hold the rounds of one measurement only."
    )


def _equal_networks(survey: Survey) -> list[list[dict[str, Any]]]:
    """The uniformly pruned networks that have the same widths at several roundings, and so are one network."""
    groups: dict[tuple[int, ...], list[dict[str, Any]]] = {}
    for entry in survey.networks:
        if entry["name"].startswith("ratio "):
            groups.setdefault(tuple(entry["widths"].values()), []).append(entry)
    return [group for group in groups.values() if len(group) > 1]


def _apart(survey: Survey, entries: list[dict[str, Any]], backend: str) -> dict[int, float]:
    """For every batch size, how far apart the speeds of some networks are, in percent of the slowest."""
    batches = sorted({row["batch_size"] for row in survey.times})
    speeds = {b: [survey.time(entry["name"], backend, b)["speed_up"][1] for entry in entries] for b in batches}
    return {batch: 100 * (max(values) / min(values) - 1) for batch, values in speeds.items()}


def _noise(survey: Survey, backend: str) -> dict[int, float]:
    """For every batch size, how far apart the speeds of one network are that was measured several times, in percent."""
    found = [_apart(survey, group, backend) for group in _equal_networks(survey)]
    return {batch: max(values[batch] for values in found) for batch in (found[0] if found else ())}


def _percents(apart: dict[int, float]) -> str:
    """Percentages by batch size, such as "8 % at batch 1 and 6 % at batch 16"."""
    return " and ".join(f"{value:.1f}{NBSP}% at batch {batch}" for batch, value in apart.items())


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


def _with_accuracy(header: list[str], lines: list[list[str]], caption: str, name: str) -> str:
    """The table with top-1 as its last column, which is left out where no network of it has a recorded row."""
    if all(line[-1] == MISSING for line in lines):
        return numbered_table(header, [line[:-1] for line in lines], caption, name)
    return numbered_table([*header, "Top-1, %"], lines, caption, name)


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
    """How much faster the network of rounded widths is, and whether that is this library's goal, in two sentences."""
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
        f"the dense one (brackets: quartiles over rounds). The goal that was set for this library, {AIM} times, "
        f"was set for {AIM_THREADS} threads; here, on {_threads(survey.machine)}, the medians are "
        f"{'not below it' if met else 'below it'}."
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
            [_not_rounded(network), f"{ms:.2f}", f"{macs / ms / 1e6:.0f}", f"{100 * macs / ms * 1e3 / best:.0f}{NBSP}%",
             f"{100 * slow / ms:.0f}{NBSP}% of the time"]
        )  # fmt: skip
    return Markdown(numbered_table(header, lines, caption, name))


def _not_rounded(network: str) -> str:
    """A network's name as a reader sees it: rounding to multiples of 1 is none."""
    return network.replace("rounded to 1", "not rounded") if network.endswith("rounded to 1") else network


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
        axes.plot(
            x, y, marker, color=colour, markersize=4.5, alpha=0.75, markeredgewidth=0, label=_not_rounded(network)
        )
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
    """Widths chosen layer by layer for a latency, beside the uniform ratio that takes as long; and whether they differ.

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
    entries = [entry for entry in survey.networks[1:] if not entry["name"].startswith("ratio ")]
    for entry in entries:
        named = f"`--target {entry['target']}`" if entry["target"] else f"uniform, ratio {entry['ratio']:g}"
        kept = [entry["widths"][conv] / survey.dense["widths"][conv] for conv in survey.prunable]
        line = [named, _widths(survey, entry), f"{len(kept) / sum(1 / share for share in kept):.3f}"]
        line += _costs(survey, entry)
        for batch in batches:
            line += _time(survey, entry, "onnxruntime", batch)
        lines.append([*line, _accuracy(rows, entry, "bpl")])
    table = _with_accuracy(header, lines, caption, name)
    noise = _noise(survey, "onnxruntime")
    if len(entries) < 2 or not noise:
        return Markdown(table)
    apart = _apart(survey, entries, "onnxruntime")
    more = [f"batch {batch}" for batch in batches if apart[batch] > noise[batch]]
    verdict = f"more than that noise at {' and '.join(more)}" if more else "no more than that noise"
    return Markdown(
        f"{table}\n\nThe speeds of these networks differ by {_percents(apart)}; those of one and the same network, "
        f"measured several times, by up to {_percents(noise)}. The difference is {verdict}."
    )
