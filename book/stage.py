"""Copy the sources of the book to a folder of their own, so that a build never writes into the repository.

    python book/stage.py                      # the committed pages, to _build/book-source
    python book/stage.py --executed _build    # the same, with notebooks executed under _build/ in their place

The copy keeps the repository's paths, since _toc.yml and the links between pages use them. Needs Python's standard
library only.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("_config.yml", "_toc.yml", "book", "notebooks", "data/results")
NOT_PAGES = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "*.tmp", "stage.py", ".DS_Store")


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
