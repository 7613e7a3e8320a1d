"""`bpl export`: a run is found however it is named, what is written was checked, a refused export leaves nothing."""

import importlib.util
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from deployed import command_fixture, is_one_sentence  # noqa: F401
from exactness import TOLERANCE, first_filters, images, logits, randomise_statistics, relative_error
from little_networks import STRUCTURES
from PIL import Image
from support import (  # noqa: F401
    files_below,
    no_stopwatch_fixture,
    places_fixture,
    small,
    tree_fixture,
)

import bpl
from bpl.data import load_images
from bpl.deployment import deploy
from bpl.export import check_finished, load_model, read_description, save_model
from bpl.machine import atomic
from bpl.pruning import masks_of_zeros

pytestmark = pytest.mark.usefixtures("places", "no_stopwatch")


@pytest.fixture(scope="module")
def once(tmp_path_factory, tree):
    """A finished run in a work and a results folder of its own, to copy from."""
    folder = tmp_path_factory.mktemp("once")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BPL_CACHE", str(folder / "cache"))
        record = bpl.run(small(tree, "bpl", epochs=2), folder=folder / "results", work=folder / "work", progress=False)
    return folder, record


_onnx_bytes = deploy.onnx_bytes


@pytest.fixture(autouse=True, scope="module")
def exporter_once():
    """Torch's exporter takes seconds: the same network with the same metadata is exported once."""
    known: dict[tuple, bytes] = {}

    def onnx_bytes(model, image_size, use=None):
        key = (json.dumps(use), *(tensor.numpy().tobytes() for tensor in model.state_dict().values()))
        if key not in known:
            known[key] = _onnx_bytes(model, image_size, use)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deploy, "onnx_bytes", onnx_bytes)
        yield


@pytest.fixture
def finished(once, places):
    """The run in the places of this test; returns its record."""
    folder, record = once
    for name in ("work", "results", "cache"):
        shutil.copytree(folder / name, places / name)
    return record


def network_folder(places: Path, record) -> Path:
    return places / "work" / record.name


# -- what is written ----------------------------------------------------------------------------------------------
NAMED = {
    "name": lambda places, record: record.name,
    "record": lambda places, record: places / "results" / "tiny" / f"{record.name}.json",
    "folder": lambda places, record: network_folder(places, record),
    "weights": lambda places, record: network_folder(places, record) / "model.safetensors",
    "description": lambda places, record: network_folder(places, record) / "model.json",
}


@pytest.mark.parametrize("how", NAMED)
def test_a_run_is_found_however_it_is_named(how, command, finished, places):
    code, out, err = command("export", NAMED[how](places, finished))
    place = network_folder(places, finished)
    assert (code, err) == (0, "")
    made = ["model.export.json", "model.json", "model.onnx", "model.safetensors"]
    assert files_below(place) == ["images.sha256", "lock", "log.jsonl", *made]
    lines = out.splitlines()
    assert lines[0] == f"checked on the run's {finished.data['test']} test images of tiny (real)"
    assert f"the run's record says {finished.accuracy['test']:.2f} %" in lines[2]
    assert lines[-2:] == [str(place / "model.onnx"), str(place / "model.export.json")]


def test_the_report_is_what_one_counts_oneself(command, finished, places, tree):
    """Logits of both files over the run's test part, counted here with nothing of the exporter's."""
    import onnxruntime

    assert command("export", finished.name, "--int8", "--out", places / "out")[0] == 0
    assert files_below(places / "out") == [
        "model.export.json",
        "model.int8.onnx",
        "model.json",
        "model.onnx",
        "model.safetensors",
    ]
    report = json.loads((places / "out" / "model.export.json").read_text())
    data = load_images(str(tree), 32, progress=False)
    test = bpl.data.make_split(data, "protocol", 0).test
    x = (data.images[test].double() / 255 - torch.tensor(data.mean).view(3, 1, 1)) / torch.tensor(data.std).view(
        3, 1, 1
    )
    expected = logits(load_model(places / "out" / "model"), x.float()).numpy()
    for kind, file in (("onnx", "model.onnx"), ("int8", "model.int8.onnx")):
        session = onnxruntime.InferenceSession(places / "out" / file, providers=["CPUExecutionProvider"])
        (got,) = session.run(None, {"images": x.float().numpy()})
        assert report[kind]["images"] == len(test) == 16
        assert report[kind]["same_top1"] == (got.argmax(1) == expected.argmax(1)).mean()
        assert report[kind]["largest_difference"] == pytest.approx(np.abs(got - expected).max(), rel=0.2, abs=2e-6)
        assert report[kind]["bytes"] == (places / "out" / file).stat().st_size
        right = 100 * (got.argmax(1) == data.labels[test].numpy()).mean()
        assert report["accuracy"][kind] == pytest.approx(right)
    assert report["accuracy"]["record"] == finished.accuracy["test"] == report["accuracy"]["onnx"]
    assert report["onnx"]["same_top1"] == 1.0 and report["onnx"]["largest_difference"] <= 1e-4
    assert report["int8"]["calibrated_on"] == f"{finished.data['train']} training images of tiny (real)"


def test_an_exported_network_classifies(command, finished, places, tree):
    command("export", finished.name, "--out", places / "out")
    tables = [
        command("predict", model, tree / "class_0")[1]
        for model in (places / "out" / "model.onnx", places / "out" / "model.safetensors", finished.name)
    ]
    first = [[line.split(",")[:2] for line in table.splitlines()] for table in tables]
    assert first[0] == first[1] == first[2] and len(first[0]) == 21


def test_weights_in_another_folder_are_the_same_bytes(command, finished, places):
    command("export", finished.name, "--out", places / "out")
    for name in ("model.safetensors", "model.json"):
        assert (places / "out" / name).read_bytes() == (network_folder(places, finished) / name).read_bytes()


# -- other images -------------------------------------------------------------------------------------------------
def test_without_the_runs_images_it_is_checked_on_drawn_scenes_and_said_so(
    command, finished, places, tree, monkeypatch
):
    record = places / "results" / "tiny" / f"{finished.name}.json"
    content = json.loads(record.read_text())
    content["config"]["dataset"] = str(places / "gone")
    record.write_text(json.dumps(content))
    code, out, err = command("export", finished.name)
    assert (code, err) == (0, "")
    assert out.startswith("checked on 105 drawn scenes: the images of tiny are not at hand\n")
    assert "top-1" not in out and "record says" not in out  # an accuracy on drawn scenes would mean nothing
    refused(command, places, "8 bits are calibrated on images of the run's training part", finished.name, "--int8")


def test_images_that_have_changed_since_are_not_the_runs_own(command, finished, places, tree):
    changed = Path(shutil.copytree(tree, places / "tiny"))
    Image.new("RGB", (32, 32)).save(changed / "class_0" / "0_00.png")
    record = places / "results" / "tiny" / f"{finished.name}.json"
    content = json.loads(record.read_text())
    content["config"]["dataset"] = str(changed)
    record.write_text(json.dumps(content))
    code, out, _ = command("export", finished.name)
    assert code == 0
    assert out.startswith("checked on 105 drawn scenes: the images of tiny at hand are not those of the run\n")


def test_a_network_without_a_record_says_so(command, finished, places):
    lonely = Path(shutil.copytree(network_folder(places, finished), places / "lonely"))
    code, out, _ = command("export", lonely)
    assert code == 0
    why = "no record says which images the network was trained on; where there is one, name it in place of the run"
    assert out.startswith(f"checked on 105 drawn scenes: {why}\n")


def test_a_root_that_is_named_and_lacks_the_images_is_refused(command, finished, places):
    record = places / "results" / "tiny" / f"{finished.name}.json"
    content = json.loads(record.read_text())
    content["config"]["dataset"] = "ucm"
    record.write_text(json.dumps(content))
    (places / "root").mkdir()
    refused(command, places, "no images of 'ucm' found in", finished.name, "--data", places / "root")


# -- refused, and nothing left ------------------------------------------------------------------------------------
def refused(command, places, said: str, *words, code: int = 2) -> None:
    """Assert that the export stops with one sentence that says this, and no file has come or gone or changed."""
    before = {name: (places / name).read_bytes() for name in files_below(places) if not name.startswith("cache/")}
    got, out, err = command("export", *words)
    assert (got, out) == (code, "")
    assert is_one_sentence(err) and re.search(said, err), err
    assert before == {name: (places / name).read_bytes() for name in before}
    assert before.keys() == {name for name in files_below(places) if not name.startswith("cache/")}


def test_a_network_that_is_still_masked_is_refused_and_then_slimmed(command, finished, places):
    weights = network_folder(places, finished) / "model.safetensors"
    masked, use = load_model(weights), read_description(weights)
    check_finished(masked)
    masks = first_filters(masked, 0.5)
    x = images(dtype=torch.float32)
    bpl.apply_masks(masked, masks)
    save_model(masked, weights, **{key: use[key] for key in ("classes", "mean", "std")})
    said = "of the . channels of 'layer1.0.conv1' are exactly zero: .* call bpl.slim before"
    refused(command, places, said, finished.name)
    with pytest.raises(ValueError, match="call bpl.slim before"):
        bpl.export_onnx(masked, places / "net.onnx", 32)

    found = masks_of_zeros(masked)
    assert found.keys() == masks.keys() and all(torch.equal(found[name], masks[name]) for name in masks)
    small = bpl.slim(masked, found)
    assert relative_error(logits(small, x), logits(masked, x)) <= TOLERANCE[torch.float32]
    check_finished(small)


def test_onnx_that_computes_something_else_is_not_written(command, finished, places, monkeypatch):
    exported = deploy.onnx_bytes

    def another(model, image_size, use=None):
        network = onnx.load_from_string(exported(model, image_size, use))
        (bias,) = [one for one in network.graph.initializer if one.name == "fc.bias"]
        values = onnx.numpy_helper.to_array(bias) + np.float32([0.01, 0, 0, 0])
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
        return network.SerializeToString()

    monkeypatch.setattr(deploy, "onnx_bytes", another)
    said = r"the ONNX network is not the PyTorch one: .* logits differ by up to 1\.0e-02"
    refused(command, places, said, finished.name, "--out", places / "new", code=1)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_nothing(command, finished, places, monkeypatch, step):
    def no_space(*_):
        raise OSError(28, "No space left on device")

    (network_folder(places, finished) / "model.onnx").write_bytes(b"of an earlier export")
    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, step, no_space)
        refused(command, places, "No space left on device: .*model", finished.name, code=1)
        refused(command, places, "No space left on device: ", finished.name, "--out", places / "new", code=1)
    assert not (places / "new").exists()


def test_what_is_named_and_is_not_there(command, finished, places):
    refused(command, places, f"no run, file or folder '{finished.name}x'; .* {finished.name}$", f"{finished.name}x")
    refused(command, places, "no network, no record and no folder", places / "nowhere" / finished.name)
    (places / "notes.txt").write_text("no network")
    refused(command, places, "no network, no record and no folder", places / "notes.txt")
    refused(command, places, "gone.safetensors|gone.json", places / "gone.safetensors")
    (places / "work" / "bpl-unfinished").mkdir()
    refused(command, places, "the run has not ended", "bpl-unfinished")
    shutil.rmtree(network_folder(places, finished))
    refused(command, places, "network of run .* is not at .* --work", finished.name)
    refused(command, places, "network of run .* is not at", places / "results" / "tiny" / f"{finished.name}.json")


def test_a_record_or_a_network_that_cannot_be_used(command, finished, places):
    weights = network_folder(places, finished) / "model.safetensors"
    content = json.loads(weights.with_suffix(".json").read_text())
    record = places / "results" / "tiny" / f"{finished.name}.json"
    kept = record.read_text()
    record.write_text(json.dumps(json.loads(kept) | {"schema": 99}))
    refused(command, places, "schema version 99", finished.name)
    record.write_text(kept)
    weights.with_suffix(".json").write_text(json.dumps(content | {"version": 2}))
    refused(command, places, "has version 2: this library reads 1", finished.name)
    weights.with_suffix(".json").write_text(json.dumps(content | {"arch": None}))
    refused(command, places, "export it from Python", finished.name)
    weights.with_suffix(".json").write_text(json.dumps(content))
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(command, places, "cannot be read", finished.name)


def test_the_demo_network_is_not_written_into_the_library(command, places):
    refused(command, places, "name another folder to write to with --out", "demo")


def test_missing_packages_are_named(command, finished, places, monkeypatch):
    find = deploy.importlib.util.find_spec
    monkeypatch.setattr(deploy.importlib.util, "find_spec", lambda name: None if "onnx" in name else find(name))
    refused(
        command, places, r"exporting needs onnx, onnxscript, onnxruntime: pip install -e '.\[export\]'", finished.name
    )


@pytest.mark.parametrize("how", ["relative", "link"])
def test_no_other_path_leads_into_the_library_either(command, places, monkeypatch, how):
    monkeypatch.chdir(places)
    (places / "link").symlink_to(deploy.DEMO_FOLDER)
    out = "link" if how == "link" else os.path.relpath(deploy.DEMO_FOLDER)
    monkeypatch.setattr(deploy, "load_model", lambda *_: pytest.fail("not refused"))
    refused(command, places, "name another folder to write to with --out", "demo", "--out", out)


def test_an_8_bit_network_of_an_earlier_export_goes(command, finished, places):
    out = places / "out"
    assert command("export", finished.name, "--int8", "--out", out)[0] == 0
    (out / "notes.txt").write_text("mine")
    code, said, _ = command("export", finished.name, "--out", out)
    assert code == 0 and f"removed {out / 'model.int8.onnx'}: it was of an earlier export\n" in said
    assert files_below(out) == ["model.export.json", "model.json", "model.onnx", "model.safetensors", "notes.txt"]
    assert "removed" not in command("export", finished.name, "--out", out)[1]


def test_a_folder_in_the_way_of_one_file_leaves_all_as_they_were(command, finished, places):
    (places / "out" / "model.export.json").mkdir(parents=True)
    (places / "out" / "model.onnx").write_text("old")
    (places / "out" / "model.int8.onnx").write_text("old")
    refused(command, places, "Is a directory: '.*model.export.json'$", finished.name, "--out", places / "out", code=1)


def test_of_a_nested_folder_nothing_is_left(command, finished, places, monkeypatch):
    def no_space(*_):
        raise OSError(28, "No space left on device")

    (places / "there").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "fsync", no_space)
        words = (finished.name, "--out", places / "there" / "a" / "b")
        refused(command, places, "No space left", *words, code=1)
    assert list((places / "there").iterdir()) == []


DESCRIPTIONS = [
    ({"classes": ["a", "b"]}, "gives 4 logits for 2 classes"),
    ({"classes": []}, r"does not name its classes|classes is \[\]: it must be a list of class names"),
    ({"classes": ["a", "b", "c", "d\n"]}, "must be one line of text"),
    ({"mean": [0.5, 0.5]}, r"has mean \[0.5, 0.5\]: three numbers are needed"),
    ({"mean": [0.5, float("nan"), 0.5]}, r"mean is \[0.5, nan, 0.5\]: it must be finite numbers"),
    ({"std": [0.5, 0.0, 0.5]}, r"std is \[0.5, 0.0, 0.5\]: it must be finite numbers above 0"),
    ({"arch": {"name": "resnet18"}}, "takes images of None pixels"),
]


@pytest.mark.parametrize(("change", "said"), DESCRIPTIONS, ids=lambda value: str(value)[:40])
def test_what_predict_refuses_is_not_exported(command, finished, places, change, said):
    file = network_folder(places, finished) / "model.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    refused(command, places, said, finished.name)
    assert re.search(said, command("predict", finished.name, file)[2])


def test_a_description_that_leaves_keys_out_is_exported_as_one_that_says_none(command, finished, places):
    file = network_folder(places, finished) / "model.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({key: content[key] for key in content if key not in ("classes", "mean", "std")}))
    code, _, err = command("export", finished.name)
    assert (code, err) == (0, "")
    file.write_text(json.dumps({key: content[key] for key in content if key != "arch"}))
    refused(command, places, "export it from Python", finished.name)


# -- the demo network ---------------------------------------------------------------------------------------------
@pytest.fixture
def demo(monkeypatch):
    """workflow/demo.py, for a data set that it knows no card of; the export in it has tests of its own above."""
    path = Path(__file__).parents[1] / "workflow" / "demo.py"
    spec = importlib.util.spec_from_file_location("demo", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "CARDS", module.CARDS | {"tiny": module.CARDS["ucm"]})
    monkeypatch.setattr(module, "export", lambda shipped, int8: deploy.Exported((), {"int8": int8}))
    return module


def test_a_demo_network_is_its_runs_network_in_half_precision(demo, finished, places):
    card = demo.make_demo(finished.name, places / "demo")
    assert files_below(places / "demo") == ["card.json", "model.json", "model.safetensors"]
    assert card == json.loads((places / "demo" / "card.json").read_text())
    assert card["run"] == finished.name and card["accuracy"] == finished.accuracy["test"] and card["exported"]["int8"]
    whole, half = load_model(network_folder(places, finished) / "model"), load_model(places / "demo" / "model")
    assert all(torch.equal(one.half(), other) for one, other in zip(whole.parameters(), half.parameters(), strict=True))
    keys = ("arch", "classes", "mean", "std", "widths")
    both = [
        read_description(place) for place in (network_folder(places, finished) / "model", places / "demo" / "model")
    ]
    assert {key: both[0][key] for key in keys} == {key: both[1][key] for key in keys}


def test_a_demo_network_is_not_made_from_images_that_are_not_the_runs_or_weights_that_half_precision_breaks(
    demo, finished, places, monkeypatch
):
    lonely = Path(shutil.copytree(network_folder(places, finished), places / "lonely"))
    with pytest.raises(ValueError, match="there are only 105 drawn scenes"):
        demo.make_demo(lonely, places / "demo")
    weights = network_folder(places, finished) / "model.safetensors"
    model, use = load_model(weights), read_description(weights)
    with torch.no_grad():  # the classes lie closer together than half precision has numbers
        model.fc.bias.copy_(1024 + torch.tensor([0.0, 0.1, 0.2, 0.3]))
        model.fc.weight.mul_(1e-3)
    save_model(model, weights, **{key: use[key] for key in ("classes", "mean", "std")})
    with pytest.raises(ValueError, match="half precision changes the class of .* of 16 test images"):
        demo.make_demo(finished.name, places / "demo")
    assert not (places / "demo").exists()


# -- channels of zeros --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("structure", sorted(STRUCTURES))
def test_what_is_masked_is_found_and_can_go(structure):
    """Of any structure: nothing in a trained network, all that was masked, and slimming by it is exact."""
    model = randomise_statistics(STRUCTURES[structure]().double()).eval()
    assert masks_of_zeros(model) == {}
    masks = first_filters(model, 0.5, "all")
    if not masks:
        return
    x, masked = images(size=8), bpl.apply_masks(model, masks)
    found = masks_of_zeros(masked)
    assert found.keys() == masks.keys() and all(torch.equal(found[name], masks[name]) for name in masks)
    small = bpl.slim(masked, found)
    assert relative_error(logits(small, x), logits(masked, x)) <= TOLERANCE[torch.float64]
    assert masks_of_zeros(small) == {}


def test_a_shortcut_that_starts_at_zero_is_no_waste():
    """Networks may start with the last gamma of a block at 0: the channel still carries the other side of the sum."""
    import torchvision

    assert masks_of_zeros(torchvision.models.resnet18(zero_init_residual=True)) == {}


def test_a_network_with_partners_is_not_searched():
    grown = bpl.grow_partners(bpl.build_model("resnet18", 4, 32, width=8))
    with pytest.raises(ValueError, match="'conv1' still has a partner: call bpl.fuse_partners before"):
        masks_of_zeros(grown)


def test_a_layer_of_zeros_keeps_one_channel():
    model = bpl.build_model("resnet18", 4, 32, width=8)
    with torch.no_grad():
        model.layer1[0].bn1.weight.zero_()
    masks = masks_of_zeros(model)
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {"layer1.0.conv1": 1}
    assert masks_of_zeros(bpl.slim(model, masks)) == {}
