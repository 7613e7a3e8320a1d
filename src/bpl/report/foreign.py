"""The tables about networks of other libraries, and about the network that comes with this one."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bpl.paths import project_root
from bpl.report.display import Markdown
from bpl.report.numbers import percent_change
from bpl.report.tables import MISSING, numbered_table

_MARKS = {True: "✓", False: "✗", None: MISSING}
# Reasons as the channel analysis words them -> as a sentence about layers has it.
_REASONS = {
    "is a grouped convolution": "a grouped convolution makes them, which ties the channels of a group",
    "grouped convolution reads it": "a grouped convolution reads them, which ties the channels of a group",
    "cat reads it": "a concatenation reads them",
    "view produces it": "the channels change their order (a shuffle)",
    "getitem produces it": "only some of them are read (a slice)",
    "permute": "the channels move to another dimension (`permute`)",
    "ConvMlp reads it": "a head that cannot be traced reads them (`ConvMlp`)",
    "it is combined with a tensor": "they are scaled by a parameter outside every normalisation (layer scale)",
    "it is combined with something": "they are added to something whose channels are not known",
}


def load_matrix() -> list[dict[str, Any]]:
    """What tests/foreign_matrix.py wrote down: one entry a network."""
    return json.loads((project_root() / "data" / "results" / "foreign_networks.json").read_text())


def networks_table(rows: Sequence[Mapping[str, Any]], caption: str, name: str) -> Markdown:
    """Which networks grow, shrink and leave, one line each.

    Args:
        rows: as `load_matrix` returns them.
        caption: what the table shows.
        name: label for cross-references, unique in the book.
    """
    header = ["Network", "From", "Partners", "Trains", "Inner", "All", "Exact", "torch-pruning", "Reloads", "ONNX"]
    lines = []
    for row in rows:
        library, network = row["network"].split("/")
        checks = (row[key] for key in ("exact", "torch_pruning_agrees", "comes_back", "onnx_agrees"))
        lines.append(
            [
                f"`{network}`",
                library,
                f"{row['partners']} of {row['convolutions']}",
                _MARKS[row["trains"]],
                _change(row["macs_inner"], row["macs"]),
                _change(row["macs_all"], row["macs"]),
                *(_MARKS[check] for check in checks),
            ]
        )
    return Markdown(numbered_table(header, lines, caption, name))


def _change(small: int | None, dense: int) -> str:
    return MISSING if small is None else percent_change(100 * (small / dense - 1))


def reasons_table(rows: Sequence[Mapping[str, Any]], caption: str, name: str) -> Markdown:
    """Why channels stay, with the number of convolutions in each network.

    Args:
        rows: as `load_matrix` returns them.
        caption: what the table shows.
        name: label for cross-references, unique in the book.

    Raises:
        ValueError: a reason that this module has no words for.
    """
    where: dict[str, dict[str, int]] = {}
    for row in rows:
        for reason, convolutions in row["left_alone"].items():
            counts = where.setdefault(in_words(reason), {})
            counts[row["network"]] = counts.get(row["network"], 0) + convolutions
    lines = [
        [reason, ", ".join(f"{network.replace('/', ' `')}` {count}" for network, count in counts.items())]
        for reason, counts in where.items()
    ]
    return Markdown(numbered_table(["Output channels stay because", "Convolutions"], lines, caption, name))


def in_words(reason: str) -> str:
    """A reason of the channel analysis, names left out, as the table has it.

    Args:
        reason: a key of ``left_alone`` of an entry.

    Raises:
        ValueError: there are no words for it here.
    """
    for start, words in _REASONS.items():
        if reason.startswith(start):
            return words
    raise ValueError(f"there are no words for the reason {reason!r}")


def demo_table(card: Mapping[str, Any], caption: str, name: str) -> Markdown:
    """The demo network in each form that it can be run in.

    Args:
        card: content of the demo's card.json.
        caption: what the table shows.
        name: label for cross-references, unique in the book.
    """
    exported = card["exported"]
    header = ["Form", "Size, kB", "Top-1, %", "Same class, %", "Logits differ by"]
    accuracy, half = exported["accuracy"]["record"], f"{card['bytes'] / 1000:,.0f}"
    lines = [["safetensors, float16", half, f"{accuracy:.2f}", MISSING, MISSING]]
    for kind, label in (("onnx", "ONNX, float32"), ("int8", "ONNX, 8 bits")):
        check = exported[kind]
        size, same = f"{check['bytes'] / 1000:,.0f}", f"{100 * check['same_top1']:.2f}"
        lines.append(
            [label, size, f"{exported['accuracy'][kind]:.2f}", same, f"at most {check['largest_difference']:.1e}"]
        )
    return Markdown(numbered_table(header, lines, caption, name))


def load_card() -> dict[str, Any]:
    """The card of the demo network."""
    return json.loads((Path(__file__).parents[1] / "demo" / "card.json").read_text())
