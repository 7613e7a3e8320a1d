"""Execute the committed notebooks anew and strip what differs from machine to machine.

    python book/refresh.py                      # all notebooks
    python book/refresh.py notebooks/ucm.ipynb  # one

Each notebook runs in a kernel of its own, without real images: a committed page shows drawn scenes. A notebook that
stops with an error is left as it was.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def execute(path: Path) -> nbformat.NotebookNode:
    """Run a notebook from its own folder, as `pytest --nbval` does, and return it with its outputs."""
    import papermill

    os.environ["BPL_DATA"] = "/nonexistent"
    return papermill.execute_notebook(str(path), None, kernel_name="python3", cwd=str(path.parent), progress_bar=False)


def strip(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Keep of the metadata what the book and the tests read, and of the outputs all but standard error.

    Papermill adds times and paths, the kernel its version, and a progress bar ends on another figure every time.
    """
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        kept = {key: value for key, value in cell.metadata.items() if key in ("tags", "mystnb") and value}
        cell.metadata = nbformat.from_dict(kept)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def main() -> None:
    """Read the command line and refresh the notebooks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "notebooks", nargs="*", type=Path, help="notebooks to execute; all of notebooks/ if none is named"
    )
    # the list of tables and figures comes last: it reads the other notebooks
    every = sorted((ROOT / "notebooks").glob("*.ipynb"), key=lambda path: (path.stem == "evidence", path))
    for path in parser.parse_args().notebooks or every:
        print(f"  {path.name}", file=sys.stderr)
        nbformat.write(strip(execute(path)), path)


if __name__ == "__main__":
    main()
