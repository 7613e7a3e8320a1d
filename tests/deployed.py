"""What the tests of shipped networks share: one small network as files, made once a process, and the command line."""

import functools
import shutil
from pathlib import Path

import pytest
import torch
from exactness import randomise_statistics
from torch import nn

import bpl
from bpl.cli import main
from bpl.export import describe_use
from bpl.onnx_files import onnx_bytes

CLASSES = ("beach", "forest", "harbour", "river, wide", "runway", "tennis")
MEAN, STD = (0.4, 0.45, 0.5), (0.2, 0.25, 0.3)
SIZE = 32  # pixels


@functools.cache
def network() -> nn.Module:
    """A network as a run ships it: grown, slimmed, fused. Not to be changed."""
    torch.manual_seed(0)
    model = randomise_statistics(bpl.grow_partners(bpl.build_model("resnet18", len(CLASSES), SIZE, width=8)))
    return bpl.slim(bpl.fuse_partners(model), bpl.prune_masks(model, 0.5)).eval()


@functools.cache
def network_as_onnx() -> bytes:
    """The content of its ONNX file."""
    return onnx_bytes(network(), SIZE, describe_use(network(), CLASSES, MEAN, STD))


@pytest.fixture(name="files", scope="session")
def files_fixture(tmp_path_factory) -> Path:
    """A folder with the network as net.safetensors, net.json and net.onnx."""
    folder = tmp_path_factory.mktemp("net")
    bpl.save_model(network(), folder / "net", classes=CLASSES, mean=MEAN, std=STD)
    (folder / "net.onnx").write_bytes(network_as_onnx())
    return folder


@pytest.fixture(name="copies")
def copies_fixture(files, tmp_path) -> Path:
    """The same files, to spoil."""
    return Path(shutil.copytree(files, tmp_path / "net"))


@pytest.fixture(name="command")
def command_fixture(capsys):
    """Runs the command line in this process; returns exit code, standard output and standard error."""

    def run(*words):
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        return ended.value.code or 0, *capsys.readouterr()

    return run


def is_one_sentence(text: str) -> bool:
    return text.startswith("bpl: ") and text.count("\n") == 1 and text.endswith("\n")
