"""What `import bpl` does and does not do, seen from a fresh interpreter."""

import json
import subprocess
import sys

import pytest
import torch

from bpl import _torchvision_guard as guard

HEAVY = ("matplotlib", "seaborn", "scipy", "sklearn", "onnx", "onnxscript", "onnxruntime", "lightning_fabric", "timm")

FRESH = """
import json, sys, time
import torch
start = time.process_time()
import bpl
seconds = time.process_time() - start
loaded = sorted(sys.modules)
import torchvision
from torchvision.transforms import v2
model = torchvision.models.resnet18(num_classes=3)
out = v2.Resize(8)(torch.zeros(3, 16, 16))
print(json.dumps({"seconds": seconds, "loaded": loaded, "shape": list(out.shape), "missing": [
    name for name in bpl.__all__ if not hasattr(bpl, name)]}))
"""


@pytest.fixture(scope="module")
def fresh() -> dict:
    """What a fresh interpreter saw."""
    done = subprocess.run([sys.executable, "-W", "error::ImportWarning", "-c", FRESH], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_torchvision_works_after_importing_the_library(fresh):
    assert fresh["shape"] == [3, 8, 8]


def test_every_public_name_exists(fresh):
    assert fresh["missing"] == []


@pytest.mark.parametrize("package", HEAVY)
def test_importing_the_library_does_not_import(package, fresh):
    assert package not in fresh["loaded"]


def test_importing_the_library_takes_seconds_at_most(fresh):
    assert fresh["seconds"] < 10  # of processor time, beside torch's own; 1 to 2 where nothing else runs


@pytest.fixture
def library(monkeypatch):
    """The guard as before its first use; what it declares is only listed."""
    declared = []

    class Library:
        def __init__(self, *names):
            self.names = names

        def define(self, schema):
            declared.append(schema)

    monkeypatch.setattr(guard, "_library", None)
    monkeypatch.setattr(torch.library, "Library", Library)
    return declared


def test_nothing_is_declared_where_the_extension_loads(library, monkeypatch):
    monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
    assert guard.install() is False
    assert library == []


def test_both_schemas_are_declared_once_where_it_does_not(library, monkeypatch):
    monkeypatch.setattr(guard, "_extension_loads", lambda: False)
    assert guard.install() is True and guard.install() is True
    assert [schema.partition("(")[0] for schema in library] == ["nms", "qnms"]


def test_nothing_is_declared_where_there_is_no_torchvision(library, monkeypatch):
    monkeypatch.setattr(guard.importlib.util, "find_spec", lambda name: None)
    assert guard.install() is False
    assert library == []
