"""What was measured on a GPU at the paper's scale: speed of training, and of the networks that ship."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from bpl.report.display import Markdown
from bpl.report.latency import ROUNDINGS
from bpl.report.measured_files import Values, load_parts
from bpl.report.numbers import NBSP, percent_change
from bpl.report.rows import ReportError, Row
from bpl.report.tables import MISSING, numbered_table
from bpl.schedule import images_an_epoch

# This library's goals on an H200: minutes for 300 epochs on UC Merced's 80 %, ResNet-50 at 256 x 256.
GOALS = {"dense": 3.0, "bpl after slimming": 4.0}
TRAINING_IMAGES, EPOCHS = 1680, 300
WAYS = {"eager": "eager", "graph": "CUDA graph"}


def load_gpu_training(path: Path) -> Values:
    """Read what `benchmarks/gpu.py` wrote.

    Args:
        path: its file.

    Raises:
        ReportError: unreadable, of another version, or incomplete; the message names the file and the reason.
    """
    parts = {"network": dict, "machine": dict, "device": str, "peak": dict, "phases": dict, "released": float}
    return load_parts(path, parts, "python benchmarks/gpu.py")


def load_gpu_inference(path: Path) -> Values:
    """Read what `benchmarks/gpu_inference.py` wrote.

    Args:
        path: its file.

    Raises:
        ReportError: unreadable, of another version, or incomplete; the message names the file and the reason.
    """
    parts = {"network": dict, "machine": dict, "device": str, "macs": dict, "rows": list}
    return load_parts(path, parts, "python benchmarks/gpu_inference.py")


def gpu_training_table(measured: Values, caption: str, name: str) -> Markdown:
    """One line a phase of a training: its speed, its arithmetic, and how much of the GPU that uses.

    Args:
        measured: what `load_gpu_training` returned.
        caption: what the table shows.
        name: label for cross-references, unique in the book.
    """
    phases, lines = measured["phases"], []
    dense = phases["dense"]
    for phase, values in phases.items():
        speed = values["images_per_second"]
        lines.append(
            [
                phase.replace("bpl", "BPL"),
                f"{speed:.0f}",
                MISSING if values is dense else f"{speed / dense['images_per_second']:.2f}",
                MISSING if values is dense else f"{values['macs'] / dense['macs']:.2f}",
                f"{100 * of_peak(measured, phase):.1f}{NBSP}%",
                f"{speed / measured['released']:.2f}{NBSP}×",
            ]
        )
    header = ["Training", "Images a second", "of dense", "MACs an image, of dense", "Of the peak", "Released style"]
    return Markdown(numbered_table(header, lines, caption, name))


def of_peak(measured: Values, phase: str) -> float:
    """Share of the GPU's bf16 rate that a phase's arithmetic comes to: forward and backward, two a MAC.

    Args:
        measured: what `load_gpu_training` returned.
        phase: one of its phases.
    """
    values = measured["phases"][phase]
    return 6 * values["macs"] * values["images_per_second"] / measured["peak"]["flops"]


def gpu_training_sentence(measured: Values) -> Markdown:
    """Where and how it was measured, and what a run of 300 epochs takes at these speeds, beside the goals.

    Args:
        measured: what `load_gpu_training` returned.
    """
    network, machine = measured["network"], measured["machine"]
    parts = []
    for phase, goal in GOALS.items():
        minutes = _minutes(measured, phase)
        met = "met" if minutes <= goal else "not met"
        parts.append(f"{minutes:.1f} minutes for {phase.split()[0]} (this library's goal, {goal:g} minutes, is {met})")
    return Markdown(
        f"Measured on one {measured['device']} with torch {machine['torch']}, {machine['date']}: {network['arch']}, "
        f"{network['image_size']} × {network['image_size']} pixels, batch {network['batch']}, {network['precision']}, "
        f"not compiled. At these speeds the steps of {EPOCHS} epochs on UC Merced take {' and '.join(parts)}; testing "
        "after every epoch, checkpoints and starting come on top."
    )


def _minutes(measured: Values, phase: str) -> float:
    images = EPOCHS * images_an_epoch(TRAINING_IMAGES, measured["network"]["batch"])
    return images / measured["phases"][phase]["images_per_second"] / 60


def minutes_a_run(rows: Sequence[Row]) -> Markdown:
    """What the recorded runs took, by how many of them shared the GPU, in a sentence.

    Args:
        rows: recorded rows of one method.
    """
    took: dict[int, list[float]] = {}
    for record in (record for row in rows for record in row.records):
        took.setdefault(record.environment["runs_beside_each_other"], []).append(record.seconds / 60)
    if not took:
        return Markdown("No run is recorded yet.")
    parts = []
    for beside, minutes in sorted(took.items()):
        middle = statistics.median(minutes)
        runs = "1 run" if len(minutes) == 1 else f"{len(minutes)} runs"
        parts.append(f"{beside} at once, {middle:.1f} each ({runs}), one done every {middle / beside:.1f}")
    return Markdown(
        "Minutes that the training of a recorded run took, by how many ran at once on the GPU, in median: "
        f"{'; '.join(parts)}."
    )


def gpu_inference_table(measured: Values, caption: str, name: str) -> Markdown:
    """One line a network and batch size: milliseconds a forward pass, and how many times faster than the dense one.

    Args:
        measured: what `load_gpu_inference` returned.
        caption: what the table shows.
        name: label for cross-references, unique in the book.
    """
    batches = list(dict.fromkeys(row["batch"] for row in measured["rows"]))
    ways = [way for way in WAYS if any(row["way"] == way for row in measured["rows"])]
    header = ["Network", "MACs, %"]
    header += [text for batch in batches for way in ways for text in (f"Batch {batch}, {WAYS[way]}, ms", "faster")]
    lines = []
    for network, macs in measured["macs"].items():
        dense = network == "dense"
        line = [_named(network), percent_change(-100 * (1 - macs / measured["macs"]["dense"]))]
        for batch in batches:
            for way in ways:
                line.append(f"{_ms(measured, network, batch, way):.2f}")
                line.append(MISSING if dense else f"{_faster(measured, network, batch, way):.2f}{NBSP}×")
        lines.append(line)
    return Markdown(numbered_table(header, lines, caption, name))


def gpu_inference_sentence(measured: Values) -> Markdown:
    """What the removed multiply-accumulates are worth in time there, in two sentences.

    Args:
        measured: what `load_gpu_inference` returned.
    """
    way = "graph" if any(row["way"] == "graph" for row in measured["rows"]) else "eager"
    batches = list(dict.fromkeys(row["batch"] for row in measured["rows"]))

    def said(network: str) -> str:
        return " and ".join(f"{_faster(measured, network, b, way):.2f} times at batch {b}" for b in batches)

    removed = 100 * (1 - measured["macs"]["rounded to 1"] / measured["macs"]["dense"])
    return Markdown(
        f"With {removed:.2f} % of the multiply-accumulates removed and widths left as they fall, the speed on this "
        f"{measured['device']} ({WAYS[way]}) is, of the dense network's, {said('rounded to 1')}. With widths rounded "
        f"to multiples of 16 it is {said('rounded to 16')}."
    )


def _named(network: str) -> str:
    start, _, rounding = network.rpartition(" ")
    return ROUNDINGS[int(rounding)] if start == "rounded to" else network


def _ms(measured: Values, network: str, batch: int, way: str) -> float:
    for row in measured["rows"]:
        if (row["network"], row["batch"], row["way"]) == (network, batch, way):
            return row["ms"]
    raise ReportError(f"the measurements lack {network!r} at batch {batch}, {way}")


def _faster(measured: Values, network: str, batch: int, way: str) -> float:
    return _ms(measured, "dense", batch, way) / _ms(measured, network, batch, way)
