"""A sweep where torch and little else is installed: from one file of images, and nothing else is imported.

What may be imported is torch, torchvision, numpy, pillow, safetensors, tqdm, lightning-fabric, and what these need
themselves. Python is started without its site-packages, and with a folder of links to these in their place.
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

import bpl
from bpl.data import CARDS

pytestmark = pytest.mark.usefixtures("places")

ALLOWED = ("torch", "torchvision", "numpy", "pillow", "safetensors", "tqdm", "lightning-fabric")


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


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """A folder with links to what the packages installed, and to the library itself."""
    folder = tmp_path_factory.mktemp("site")
    for name in needed_by(ALLOWED):
        installed = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in installed.files if file.parts[0] not in ("..", "__pycache__")}:
            (folder / top).symlink_to(installed.locate_file(top))
    (folder / "bpl").symlink_to(Path(bpl.__file__).parent)
    return folder


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


def bare(site: Path, *words: object) -> subprocess.CompletedProcess:
    """Python without site-packages; processes that it starts are without them too."""
    environment = os.environ | {"PYTHONPATH": str(site)}
    words = [sys.executable, "-S", *map(str, words)]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600)


def test_the_site_holds_what_trains_and_nothing_of_the_book(site):
    there = {path.name for path in site.iterdir()}
    assert there >= {"torch", "torchvision", "numpy", "PIL", "safetensors", "tqdm", "lightning_fabric", "bpl"}
    others = ["pandas", "matplotlib", "scipy", "sklearn", "onnx", "onnxscript", "onnxruntime", "yaml", "torch_pruning"]
    assert not there & {*others, "seaborn", "timm", "IPython", "tyro", "pytest"}
    tried = f"import importlib.util as u; print([name for name in {others!r} if u.find_spec(name)])"
    assert bare(site, "-c", tried).stdout == "[]\n"


def test_a_sweep_from_packed_images_needs_only_what_trains(site, packed, tmp_path, monkeypatch):
    """One epoch of one run in each of two processes, and the records in one file."""
    grid = [{"dataset": "ucm", "method": ["dense", "bpl"], "split": "paper", **SMALL, "epochs": 1, "precision": "bf16"}]
    (tmp_path / "grid.json").write_text(json.dumps(grid))
    words = ["--jobs", 2, "--time-budget", "8m", "--bundle", tmp_path / "records.zip", "--quiet"]
    monkeypatch.setenv("BPL_DATA", str(packed))
    done = bare(site, "-m", "bpl", "sweep", tmp_path / "grid.json", *words)
    assert "Traceback" not in done.stderr, done.stderr
    assert (done.returncode, done.stdout.splitlines()[-1]) == (
        0, "2 runs: 0 recorded before, 2 run now, 0 failed, 0 under way elsewhere, 0 left",
    )  # fmt: skip
    with zipfile.ZipFile(tmp_path / "records.zip") as records:
        assert sorted(records.namelist()) == files_below(tmp_path / "results")
        sources = {json.loads(records.read(name))["data"]["source"] for name in records.namelist()}
    assert sources == {"real"}


def test_a_grid_in_yaml_is_refused_with_a_way_out_where_yaml_is_missing(site, tmp_path):
    (tmp_path / "grid.yaml").write_text("- {dataset: ucm, method: dense}\n")
    done = bare(site, "-m", "bpl", "sweep", tmp_path / "grid.yaml")
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
