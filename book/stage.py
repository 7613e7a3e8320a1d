"""Copy the sources of the book to a folder of their own, so that a build never writes into the repository.

    python book/stage.py                      # the committed pages, to _build/book-source
    python book/stage.py --executed _build    # the same, with notebooks executed under _build/ in their place

The copy keeps the repository's paths, since _toc.yml and the links between pages use them. Needs Python's standard
library only.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("_config.yml", "_toc.yml", "book", "notebooks", "data/results", "data/latency", "data/search")
# A page may show what a cell of a notebook shows, by a line of its own:
# `<!-- output of notebooks/ucm.ipynb, cell ucm-answer -->`.
OUTPUT_OF = re.compile(r"^( *)<!-- output of (\S+\.ipynb), cell (\S+) -->$", re.MULTILINE)
NOT_PAGES = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "*.tmp", "stage.py", "refresh.py", ".DS_Store")


def executed_notebooks(folder: Path, notebooks: Path) -> dict[str, Path]:
    """Return {file name: path} of the notebooks in `folder` that ran to their end and have a page in `notebooks`."""
    found = {}
    for path in sorted(folder.glob("*.ipynb")):
        if not (notebooks / path.name).exists():
            continue
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code" and "".join(cell["source"]).strip()]
        broken = any(output["output_type"] == "error" for cell in code for output in cell["outputs"])
        if broken or any(cell["execution_count"] is None for cell in code):
            print(f"  {path.name}: its last run did not finish, the committed page stays")
        else:
            found[path.name] = path
    return found


def output_of(notebook: Path, cell_id: str, pictures: Path) -> str:
    """Return what a notebook's cell shows, as Markdown; what is on a page so comes from the cell that is compared.

    Args:
        notebook: the notebook's file.
        cell_id: the cell.
        pictures: folder beside the page that asks; the drawing of a cell that shows one is written to it.

    Raises:
        ValueError: no such notebook or cell, or a cell that shows neither Markdown nor a drawing with a caption.
    """
    if notebook.exists():
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
            if cell.get("id") == cell_id:
                for output in cell["outputs"]:
                    data = output.get("data", {})
                    if "text/markdown" in data:
                        return "".join(data["text/markdown"])
                    if "image/svg+xml" in data and "mystnb" in cell["metadata"]:
                        pictures.mkdir(exist_ok=True)
                        (pictures / f"{cell_id}.svg").write_text("".join(data["image/svg+xml"]), encoding="utf-8")
                        return figure(f"{pictures.name}/{cell_id}.svg", cell["metadata"]["mystnb"])
    raise ValueError(f"{notebook} has no cell {cell_id!r} that shows Markdown or a drawing with a caption")


def figure(path: str, shown: dict) -> str:
    """Return the Markdown of a figure that is a cell's drawing.

    Args:
        path: the drawing, from the page.
        shown: what the cell's metadata say under "mystnb": caption and label of the figure, words for the image.
    """
    caption, name, alt = shown["figure"]["caption"], shown["figure"]["name"], shown["image"]["alt"]
    return f":::{{figure}} {path}\n:name: {name}\n:alt: {alt}\n\n{caption}\n:::"


def fill_in(pages: Path, notebooks: Path) -> None:
    """Put what notebooks show into the staged pages that ask for it.

    Args:
        pages: folder of the staged Markdown pages.
        notebooks: root that the notebooks' paths start from; the committed ones, whatever was executed.
    """

    def shown(found: re.Match) -> str:
        indent, notebook, cell = found.groups()  # what stands in an item of a list or a definition stays in it
        return textwrap.indent(output_of(notebooks / notebook, cell, pages / "drawn"), indent)

    for page in sorted(pages.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        filled = OUTPUT_OF.sub(shown, text)
        if filled != text:
            page.write_text(filled, encoding="utf-8")


def stage(target: Path, executed: Path | None = None, root: Path = ROOT) -> list[str]:
    """Write the book's sources to `target` anew; return the names of the notebooks taken from `executed`."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in SOURCES:
        source, copy = root / name, target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy, ignore=NOT_PAGES)
        elif source.exists():
            shutil.copy2(source, copy)
    fill_in(target / "book", root)
    taken = executed_notebooks(executed, root / "notebooks") if executed else {}
    for name, path in taken.items():
        shutil.copy2(path, target / "notebooks" / name)
    return sorted(taken)


def main() -> None:
    """Read the command line and stage the book."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=Path, default=ROOT / "_build" / "book-source", help="where to put the copy")
    parser.add_argument("--executed", type=Path, help="folder of executed notebooks that replace the committed ones")
    arguments = parser.parse_args()
    for name in stage(arguments.target, arguments.executed):
        print(f"  {name}: your own run takes the place of the committed page")


if __name__ == "__main__":
    main()
