"""Where every table and figure of the book comes from: its page, the command that makes it again, its state."""

import ast
import itertools
import json
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpl.report.display import Markdown
from bpl.report.origins import origins

_WRITTEN = re.compile(r"^(?:```|~~~)\{table\} (.*)\n:name: (tab-[\w-]+)$", re.MULTILINE)
_BORROWED = re.compile(r"<!-- output of (\S+), cell (\S+) -->")  # as `book/stage.py` reads it


# The command that writes a measured file; None for one that no command of this repository writes again.
MADE_BY = {
    "card.json": "python workflow/demo.py",
    "foreign_networks.json": "python tests/foreign_matrix.py",
    "gpu_inference.json": "python benchmarks/gpu_inference.py --rounds 15 --out data/latency/gpu_inference.json",
    "gpu_training.json": "python benchmarks/gpu.py --steps 13 --rounds 4 --out data/latency/gpu_training.json",
    "growth.json": "python benchmarks/memory.py --out data/latency/growth.json",
    "recipe.json": None,
    "resnet18-64.json": (
        "bpl bench data/latency/resnet18-64.json --arch resnet18 --width 32 --image-size 64 "
        "--ratios 0.3 0.5 0.7 0.78 --target 0.5 --rounds 5 --threads 1 --clock processor"
    ),
    "resnet50-224.json": (
        "bpl bench data/latency/resnet50-224.json --arch resnet50 --image-size 224 "
        "--ratios 0.5 0.7 0.8 --rounds 5 --threads 1 --clock processor"
    ),
    "streaming.json": "python benchmarks/streaming.py --out data/streaming.json",
    "training.json": (
        "python benchmarks/training.py --threads 1 --clock processor --rounds 5 --out data/latency/training.json"
    ),
    "trials.json": "BPL_TRIALS=data/trials.json make test-long",
    "whole_training.json": (
        "python benchmarks/whole_training.py --threads 1 --clock processor --rounds 5 "
        "--out data/latency/whole_training.json"
    ),
}
_WRITTEN_FROM = {"tab-trials": ("trials.json",), "tab-streaming": ("streaming.json",)}


@dataclass(frozen=True)
class Item:
    """One table or figure.

    Attributes:
        label: its name for cross-references, such as "tab-ucm-accuracy".
        caption: what it shows.
        page: the file that shows it, from the root of the repository.
        grids: names of the campaigns whose records it is made from; none where the page computes or states it.
        files: names of the measured files that it is made from.
        numbered: whether the book shows it, and so can give its number.
    """

    label: str
    caption: str
    page: str
    grids: tuple[str, ...]
    files: tuple[str, ...] = ()
    numbered: bool = True


def items(root: Path) -> list[Item]:
    """Every labelled table and figure of the book.

    Args:
        root: the repository.

    Returns:
        The items of the notebooks, then those that are written into pages.
    """
    found = []
    pages = {path: path.read_text(encoding="utf-8") for path in sorted((root / "book").glob("*.md"))}
    borrowed = set(_BORROWED.findall("\n".join(pages.values())))
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = [(cell, "".join(cell["source"])) for cell in cells if cell["cell_type"] == "code"]
        made_from = origins(source for _, source in code)
        for (cell, source), origin in zip(code, made_from, strict=True):
            figure = cell["metadata"].get("mystnb", {}).get("figure")
            shown = _tables(source) + ([(figure["name"], figure["caption"])] if figure else [])
            page = f"notebooks/{path.name}"
            for label, caption in shown:
                numbered = _shows(cell, label, (page, cell.get("id")) in borrowed)
                found.append(Item(label, caption, page, origin.grids, origin.files, numbered))
    for path, text in pages.items():
        page = f"book/{path.name}"
        written = _WRITTEN.findall(text)
        found += [Item(label, caption, page, (), _WRITTEN_FROM.get(label, ())) for caption, label in written]
    return found


def _shows(cell: Mapping[str, Any], label: str, borrowed: bool) -> bool:
    """Whether the book shows a cell's table or figure: on its own page, or on one that borrows the cell's output."""
    if "remove-cell" in cell["metadata"].get("tags", []) and not borrowed:
        return False
    data = [output.get("data", {}) for output in cell.get("outputs", [])]
    if label.startswith("fig-"):
        return any(kind.startswith("image/") for kinds in data for kind in kinds)
    return any(f":name: {label}\n" in "".join(kinds.get("text/markdown", "")) for kinds in data)


def _tables(source: str) -> list[tuple[str, str]]:
    """Name and caption of the tables that a cell makes: of its calls that are given both."""
    tree, found = ast.parse(source), []
    assigned = {
        target.id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            texts = [_text(value, assigned) for value in (*node.args, *(keyword.value for keyword in node.keywords))]
            names = [text for text in texts if text.startswith("tab-")]
            captions = [text for text in texts if " " in text]
            if names and captions:
                found.append((names[0], captions[0]))
    return found


def _text(node: ast.expr, assigned: Mapping[str, ast.expr]) -> str:
    """A text as the code has it, the values in it left open; empty for what is no text."""
    if isinstance(node, ast.Name) and node.id in assigned:
        return _text(assigned[node.id], {})
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part, {}) or "…" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def evidence(listed: list[Item], campaigns: Mapping[str, tuple[int, int]]) -> Markdown:
    """Page by page: what stands there, the command that makes it again, and whether what it stands on is whole.

    Args:
        listed: the items.
        campaigns: name of a grid -> runs without a record, and runs in all.

    Returns:
        A list of lists.

    Raises:
        KeyError: an item of a campaign that is not among those given, or of a file that is not in `MADE_BY`.
    """
    lines = []
    key = operator.attrgetter("page", "grids", "files")
    for (page, grids, files), members in itertools.groupby(listed, key=key):
        lines.append(f"- [{page}](../{page}): {_made_by(page, grids, files, campaigns)}")
        for item in members:
            name = f"{{numref}}`{item.label}`:" if item.numbered else f"`{item.label}`, not shown at present:"
            lines.append(f"  - {name} {_first_sentence(item.caption)}")
    return Markdown("\n".join(lines))


def _made_by(
    page: str, grids: tuple[str, ...], files: tuple[str, ...], campaigns: Mapping[str, tuple[int, int]]
) -> str:
    parts = []
    states = []
    for grid in grids:
        missing, total = campaigns[grid]
        runs = "" if states else " runs recorded"
        states.append(f"`bpl sweep workflow/{grid}.yaml` ({total - missing} of {total}{runs})")
    if states:
        parts.append(", ".join(states))
    for file in files:
        command = MADE_BY[file]
        parts.append(
            f"`{command}` writes `{file}`"
            if command
            else f"`{file}`, noted once; part of its settings is not in this library, so no command repeats it"
        )
    if parts:
        return "; ".join(parts)
    if page.endswith(".md"):
        return "written, with its sources: facts, definitions and arithmetic, no result of a run"
    return f"computed when the page runs, `papermill {page} out.ipynb`"


def _first_sentence(caption: str) -> str:
    text = re.sub(r" ?\{cite:p\}`[^`]*`", "", caption)
    return re.split(r"(?<=[\w)])\. ", text, maxsplit=1)[0].rstrip(".")
