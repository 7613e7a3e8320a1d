"""Networks from files of strangers: read rightly or refused in one sentence, never executed, never large."""

import json
import pickle
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzzing import HOSTILE, LONG, SHORT, fuzz, hostile_text, mutated_bytes
from PIL import Image

from bpl.cli import main
from bpl.deployment.predict import load_classifier
from bpl.export import ModelFileError, load_model, save_model
from bpl.models import build_model
from bpl.onnx_files import export_onnx

long = pytest.mark.parametrize("count", [SHORT // 2, pytest.param(LONG, marks=pytest.mark.slow)])
USE = {"classes": ["a", "b", "c"], "mean": [0.5] * 3, "std": [0.25] * 3}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A small network with all that classifying needs, as safetensors and as ONNX; its weights file."""
    folder = tmp_path_factory.mktemp("whole")
    model = build_model("resnet18", 3, 32, 2)
    export_onnx(model, folder / "model.onnx", 32, **USE)
    return save_model(model, folder / "model", **USE)


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    """All files of the network in a folder of the test's own."""
    for suffix in (".safetensors", ".json", ".onnx"):
        shutil.copy(whole.with_suffix(suffix), tmp_path)
    return tmp_path / whole.name


@long
def test_hostile_descriptions_are_refused_or_read(copy, count):
    content = json.loads(copy.with_suffix(".json").read_text())

    def use(text: str) -> None:
        copy.with_suffix(".json").write_text(text, errors="surrogateescape")
        load_classifier(copy)

    tally = fuzz("model JSON", count, lambda chance: hostile_text(content, chance), use, (ModelFileError,))
    assert tally.refused["ModelFileError"] > count / 2


@long
def test_damaged_weights_are_refused_or_read(copy, count):
    content = copy.read_bytes()

    def use(damaged: bytes) -> None:
        copy.write_bytes(damaged)
        load_classifier(copy)

    fuzz("model safetensors", count, lambda chance: mutated_bytes(content, chance), use, (ModelFileError,))


@long
def test_damaged_onnx_is_refused_or_read(copy, count, capfd):
    """Without a word of onnxruntime's own, which would stand among the lines of the table."""
    file = copy.with_suffix(".onnx")
    content = file.read_bytes()

    def use(damaged: bytes) -> None:
        file.write_bytes(damaged)
        load_classifier(file)

    fuzz("model ONNX", count, lambda chance: mutated_bytes(content, chance), use, (ModelFileError,))
    assert capfd.readouterr() == ("", "")


def _changed(copy: Path, **arch) -> None:
    content = json.loads(copy.with_suffix(".json").read_text())
    content["arch"] |= arch
    copy.with_suffix(".json").write_text(json.dumps(content))


@pytest.mark.parametrize("value", [value for value in HOSTILE if value not in (2, 32)] + [10**9], ids=repr)
@pytest.mark.parametrize("key", ["width", "image_size"])
def test_a_size_of_any_kind_costs_no_memory(copy, key, value):
    """A billion filters are refused before there is one: building on the meta device needs memory for none."""
    _changed(copy, **{key: value})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        load_classifier(copy)
    except ModelFileError as error:
        assert "\n" not in str(error)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_layers_that_do_not_fit_each_other_are_refused(copy):
    """Each has the width of its weights, so that the files agree, and the network still cannot be computed."""
    model = load_model(copy)
    model.layer1[0].conv1.weight = torch.nn.Parameter(model.layer1[0].conv1.weight[:1].clone())
    model.layer1[0].conv1.out_channels = 1
    save_model(model, copy, **USE)
    with pytest.raises(ModelFileError, match="model.safetensors cannot be run: .*1 elements not 2"):
        load_classifier(copy)


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[2J", "\u2028", "", "half \ud800"])
def test_a_class_name_is_one_line_of_text(copy, name):
    content = json.loads(copy.with_suffix(".json").read_text()) | {"classes": ["a", "b", name]}
    copy.with_suffix(".json").write_text(json.dumps(content))
    with pytest.raises(ModelFileError, match="a name must be one line of text"):
        load_classifier(copy)


def test_an_onnx_file_reads_no_other_file(copy, tmp_path, monkeypatch):
    """ONNX may keep weights in files of any name: a hostile one would read a key file as the weights of a layer."""
    onnx = pytest.importorskip("onnx")
    network = onnx.load(copy.with_suffix(".onnx"))
    weights = next(one for one in network.graph.initializer if one.name.endswith("weight"))
    (tmp_path / "here").mkdir()
    for place in (tmp_path / "key", tmp_path / "here" / "key"):
        place.write_bytes(bytes(4 * int(np.prod(weights.dims))))
    monkeypatch.chdir(tmp_path / "here")
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    entry = weights.external_data.add()
    entry.key = "location"
    for entry.value in ("key", "../key", str(tmp_path / "key")):
        Path("model.onnx").write_bytes(network.SerializeToString())
        with pytest.raises(ModelFileError, match="cannot be run"):
            load_classifier("model.onnx")


class Malice:
    """What a pickle may smuggle in."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self):
        return (Path.touch, (self.place,))


@pytest.mark.parametrize("name", ["model.safetensors", "model.json", "model.onnx", "model.pt", "picture.png"])
@pytest.mark.parametrize("write", ["pickle", "torch", "python"])
def test_nothing_in_a_file_is_executed(copy, tmp_path, name, write, capsys):
    mark, file = tmp_path / "executed", tmp_path / name
    if write == "torch":
        torch.save({"a": Malice(mark)}, file)
    else:
        python = f"from pathlib import Path\nPath({str(mark)!r}).touch()\n".encode()
        file.write_bytes(pickle.dumps(Malice(mark)) if write == "pickle" else python)
    picture = tmp_path / "picture.png"
    if name != picture.name:
        Image.new("RGB", (32, 32)).save(picture)
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(copy if name == picture.name else file), str(picture)])
    assert ended.value.code in (1, 2)
    assert not mark.exists()
    said = capsys.readouterr().err
    assert said.startswith("bpl: ") and said.count("\n") == 1
