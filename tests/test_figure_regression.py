"""`pytest --nbval` passes on untouched records, and fails when one number in one record that a page shows is changed.

The page under test is the UC Merced notebook without the cells that run something live.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bpl.config import RunConfig

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "notebooks" / "ucm.ipynb"


def recorded_part(notebook: dict) -> dict:
    """The notebook's compared cells that read nothing but records."""
    kept = [
        cell
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
        and "report." in "".join(cell["source"])
        and "nbval-ignore-output" not in cell["metadata"].get("tags", [])
    ]
    # Importing matplotlib for the first time on a machine writes a line to standard error; the live cells came before.
    first = {"cell_type": "code", "execution_count": 1, "id": "first", "metadata": {"tags": ["nbval-ignore-output"]},
             "outputs": [], "source": "import matplotlib.font_manager"}  # fmt: skip
    return notebook | {"cells": [first, *kept]}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded part of the notebook, and a copy of the records beside it."""
    folder = tmp_path_factory.mktemp("page")
    part = recorded_part(json.loads(NOTEBOOK.read_text(encoding="utf-8")))
    assert len(part["cells"]) > 6
    (folder / "ucm.ipynb").write_text(json.dumps(part), encoding="utf-8")
    shutil.copytree(ROOT / "data" / "results", folder / "results")
    return folder


def compare(page: Path) -> subprocess.CompletedProcess:
    """Compare the page with its committed outputs, on the copy of the records."""
    environment = os.environ | {"BPL_RESULTS": str(page / "results"), "NO_COLOR": "1"}
    options = ["--nbval", "-q", "-p", "no:cacheprovider", "--rootdir", str(page)]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, "ucm.ipynb"],
        cwd=page,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_untouched_records_pass(page: Path) -> None:
    done = compare(page)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize(
    ("method", "place"),
    [("scratch", ("accuracy", "test")), ("bpl", ("curves", "partner_cosine", 1))],
    ids=["accuracy", "curve"],
)
def test_one_changed_number_fails(page: Path, method: str, place: tuple) -> None:
    shown = RunConfig(dataset="ucm", method=method, ratio=0.78)  # the ratio of the page's curves
    path = page / "results" / "ucm" / f"{shown.run_name('real')}.json"
    before = path.read_text()
    values = json.loads(before)
    inner = values
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] += 100 / 420  # one test image more; for a cosine, a visible step
    try:
        path.write_text(json.dumps(values))
        done = compare(page)
    finally:
        path.write_text(before)
    assert done.returncode == 1, done.stdout[-3000:]
    assert "mismatch" in done.stdout, done.stdout[-3000:]
