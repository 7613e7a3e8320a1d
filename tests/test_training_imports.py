"""A sweep on a machine that has torch and little else: from one file of images, with nothing imported that is not there.

What may be imported is torch, torchvision, numpy, pillow, safetensors, tqdm, lightning-fabric, and what these need
themselves; every other installed package is made impossible to import, in all processes of the sweep.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image
from support import SMALL, files_below, places_fixture  # noqa: F401

from bpl.data import CARDS

pytestmark = pytest.mark.usefixtures("places")

ALLOWED = ("torch", "torchvision", "numpy", "pillow", "safetensors", "tqdm", "lightning-fabric")

# Python reads a module of this name at its start, wherever it comes first on the path.
BLOCKER = """
import sys

class Blocker:
    names = frozenset({names!r})

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
"""


def needed_by(names: tuple[str, ...]) -> set[str]:
    """The packages and all that they require, with no extras."""
    found, open_ = set(), list(names)
    while open_:
        name = canonicalize_name(open_.pop())
        if name in found:
            continue
        found.add(name)
        for text in importlib.metadata.requires(name) or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                open_.append(requirement.name)
    return found


def blocked_modules() -> list[str]:
    """Top-level modules of every installed package that is not among them."""
    allowed = needed_by(ALLOWED) | {"bpl"}
    owners = importlib.metadata.packages_distributions().items()
    return sorted(top for top, packages in owners if not allowed & {canonicalize_name(name) for name in packages})


@pytest.fixture
def bare(tmp_path) -> dict[str, str]:
    """The environment of a process that can import nothing but what training may need."""
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "sitecustomize.py").write_text(BLOCKER.format(names=blocked_modules()))
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "bare"), *filter(None, sys.path)])}


@pytest.fixture
def packed(tmp_path, monkeypatch) -> Path:
    """A packed file in the layout of UC Merced: five noise images a class."""
    from bpl.cli import main

    chance = np.random.default_rng(0)
    for name in CARDS["ucm"].classes:
        place = tmp_path / "root" / "UCMerced_LandUse" / "Images" / name
        place.mkdir(parents=True)
        for index in range(5):
            Image.fromarray(chance.integers(0, 255, (32, 32, 3), np.uint8)).save(place / f"{name}{index:02d}.png")
    monkeypatch.setenv("BPL_DATA", str(tmp_path / "root"))
    with pytest.raises(SystemExit) as ended:
        main(["data", "--pack", "ucm", "--to", str(tmp_path / "ucm.zip")])
    assert not ended.value.code
    return tmp_path / "ucm.zip"


def program(environment: dict[str, str], *words: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "bpl", *map(str, words)], env=environment, capture_output=True, text=True, timeout=600
    )


def test_the_packages_that_training_must_not_need_are_among_the_blocked():
    names = "pandas matplotlib seaborn scipy sklearn onnx onnxscript onnxruntime yaml tyro torch_pruning timm IPython"
    assert set(names.split()) - set(blocked_modules()) <= {"tyro"}  # which need not be installed
    assert not {"torch", "numpy", "PIL", "tqdm", "safetensors", "lightning_fabric", "bpl"} & set(blocked_modules())


def test_a_sweep_from_packed_images_needs_only_what_trains(bare, packed, tmp_path):
    """One epoch of one run in each of two processes, and the records in one file."""
    grid = [{"dataset": "ucm", "method": ["dense", "bpl"], "split": "paper", **SMALL, "epochs": 1, "precision": "bf16"}]
    (tmp_path / "grid.json").write_text(json.dumps(grid))
    words = ["--jobs", 2, "--time-budget", "8m", "--bundle", tmp_path / "records.zip", "--quiet"]
    done = program(bare | {"BPL_DATA": str(packed)}, "sweep", tmp_path / "grid.json", *words)
    assert "Traceback" not in done.stderr, done.stderr
    assert (done.returncode, done.stdout.splitlines()[-1]) == (
        0, "2 runs: 0 recorded before, 2 run now, 0 failed, 0 under way elsewhere, 0 left",
    )  # fmt: skip
    with zipfile.ZipFile(tmp_path / "records.zip") as records:
        assert sorted(records.namelist()) == files_below(tmp_path / "results")
        sources = {json.loads(records.read(name))["data"]["source"] for name in records.namelist()}
    assert sources == {"real"}


def test_a_grid_in_yaml_is_refused_with_a_way_out_where_yaml_is_missing(bare, tmp_path):
    (tmp_path / "grid.yaml").write_text("- {dataset: ucm, method: dense}\n")
    done = program(bare, "sweep", tmp_path / "grid.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("cannot be read without the package pyyaml: install it, or give JSON\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [["--pack", "ucm"], ["--to", "x.zip"]])
def test_pack_and_to_go_together(words, tmp_path, monkeypatch, capsys):
    from bpl.cli import main

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["data", *words])
    assert ended.value.code == 2
    assert "--pack NAME and --to FILE.zip go together" in capsys.readouterr().err
    assert files_below(tmp_path) == []
