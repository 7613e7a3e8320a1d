"""Where every table and figure of the book comes from: its page, the command that makes it again, its state."""

import ast
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bpl.report.display import Markdown

_GRID = re.compile(r'load_grid\(paths\.project_root\(\) / "workflow" / f?"([\w{}]+)\.yaml"\)')
_NAMED_GRIDS = re.compile(r"for grid in \(([^)]*)\)")
_WRITTEN = re.compile(r"^(?:```|~~~)\{table\} (.*)\n:name: (tab-[\w-]+)$", re.MULTILINE)


@dataclass(frozen=True)
class Item:
    """One table or figure.

    Attributes:
        label: its name for cross-references, such as "tab-ucm-accuracy".
        caption: what it shows.
        page: the file that shows it, from the root of the repository.
        grids: names of the campaigns whose records it is made from; none where the page computes or states it.
    """

    label: str
    caption: str
    page: str
    grids: tuple[str, ...]


def items(root: Path) -> list[Item]:
    """Every labelled table and figure of the book.

    Args:
        root: the repository.

    Returns:
        The items of the notebooks, then those that are written into pages.
    """
    found = []
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = [(cell, "".join(cell["source"])) for cell in cells if cell["cell_type"] == "code"]
        grids = tuple(dict.fromkeys(name for _, source in code for name in _grids(source)))
        for cell, source in code:
            figure = cell["metadata"].get("mystnb", {}).get("figure")
            shown = _tables(source) + ([(figure["name"], figure["caption"])] if figure else [])
            live = "nbval-ignore-output" in cell["metadata"].get("tags", [])
            page = f"notebooks/{path.name}"
            found += [Item(label, caption, page, () if live else grids) for label, caption in shown]
    for path in sorted((root / "book").glob("*.md")):
        written = _WRITTEN.findall(path.read_text(encoding="utf-8"))
        found += [Item(label, caption, f"book/{path.name}", ()) for caption, label in written]
    return found


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


def _grids(source: str) -> list[str]:
    """The campaigns that a cell reads, those of a loop over their names included."""
    names = _GRID.findall(source)
    listed = [re.findall(r"\w+", group) for group in _NAMED_GRIDS.findall(source)]
    return [name for name in names if "{" not in name] + [name for group in listed for name in group]


def evidence(listed: list[Item], campaigns: Mapping[str, tuple[int, int]]) -> Markdown:
    """Page by page: what stands there, the command that makes it again, and whether what it stands on is whole.

    Args:
        listed: the items.
        campaigns: name of a grid -> runs without a record, and runs in all.

    Returns:
        A list of lists.

    Raises:
        KeyError: an item of a campaign that is not among those given.
    """
    lines = []
    for (page, grids), members in itertools.groupby(listed, key=lambda item: (item.page, item.grids)):
        lines.append(f"- [{page}](../{page}): {_made_by(page, grids, campaigns)}")
        lines += [f"  - `{item.label}` {_first_sentence(item.caption)}" for item in members]
    return Markdown("\n".join(lines))


def _made_by(page: str, grids: tuple[str, ...], campaigns: Mapping[str, tuple[int, int]]) -> str:
    if page.endswith(".md"):
        return "written, with its sources: facts, definitions and arithmetic, no result of a run"
    if not grids:
        return f"computed when the page runs, `papermill {page} out.ipynb`"
    commands = " and ".join(f"`bpl sweep workflow/{grid}.yaml`" for grid in grids)
    states = [f"{total - missing} of {total}" for missing, total in (campaigns[grid] for grid in grids)]
    return f"{commands}; {' and '.join(states)} runs recorded"


def _first_sentence(caption: str) -> str:
    text = re.sub(r" ?\{cite:p\}`[^`]*`", "", caption)
    return re.split(r"(?<=[\w)])\. ", text, maxsplit=1)[0].rstrip(".")
