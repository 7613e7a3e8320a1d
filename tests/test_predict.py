"""`bpl predict`: the pixels are those of training, a table comes out, and bad input is said in one sentence."""

import csv
import io
import json
import os
import re
import shutil
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from deployed import (  # noqa: F401
    CLASSES,
    MEAN,
    SIZE,
    STD,
    command_fixture,
    copies_fixture,
    files_fixture,
    is_one_sentence,
    network,
    network_as_onnx,
)
from PIL import Image
from support import files_below, make_tree

import bpl
from bpl.data import load_images
from bpl.data.synthetic import draw_scenes
from bpl.deployment.predict import classify, find_images, load_classifier
from bpl.deployment.shipped import DEMO_FOLDER
from bpl.export import ModelFileError
from bpl.machine import atomic
from bpl.records import load_record
from bpl.train import predict


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    """Runs, records and the cache of this machine stay out of the tests."""
    for name in ("work", "cache"):
        monkeypatch.setenv(f"BPL_{name.upper()}", str(tmp_path / f"_{name}"))


def picture(seed: int = 0, height: int = 40, width: int = 52) -> Image.Image:
    """A picture with large coloured areas, which survive JPEG, and no symmetry."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three pictures, one in a folder below."""
    place = tmp_path / "pictures"
    (place / "more").mkdir(parents=True)
    for seed, name in enumerate(("b.png", "a.jpg", "more/c.TIF")):
        picture(seed).save(place / name)
    return place


def rows(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text)))


# -- the pixels ---------------------------------------------------------------------------------------------------
def test_the_pixels_are_those_of_training(copies, tmp_path):
    tree = make_tree(tmp_path / "tree", classes=3, per_class=4, size=50)
    images = load_images(str(tree), SIZE, progress=False)
    description = json.loads((copies / "net.json").read_text())
    (copies / "net.json").write_text(json.dumps(description | {"mean": images.mean, "std": images.std}))
    expected = predict(network(), images, torch.arange(len(images.files))).double().softmax(1)

    classifier = load_classifier(copies / "net.safetensors")
    got = {str(p.file.relative_to(tree)): p for p in classify(classifier, find_images([tree]), 5)}
    assert got.keys() == set(images.files)
    for file, probabilities in zip(images.files, expected, strict=True):
        best = probabilities.argsort(descending=True)[:5].tolist()
        assert got[file].classes == tuple(CLASSES[label] for label in best)
        assert got[file].probabilities == pytest.approx(probabilities[best].tolist(), abs=1e-6)


def _exif(image: Image.Image, path: Path) -> None:
    """Stored on its side, with the note that it is to be turned."""
    exif = Image.Exif()
    exif[0x0112] = 6  # the first row is the right edge
    image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)


def _black_where_transparent(image: Image.Image) -> Image.Image:
    pixels = np.array(image)
    pixels[:, :20] = 0
    return Image.fromarray(pixels)


def _with_alpha(image: Image.Image, path: Path) -> None:
    alpha = np.full((image.height, image.width), 255, np.uint8)
    alpha[:, :20] = 0
    image.putalpha(Image.fromarray(alpha))
    image.save(path)


def _sixteen_bits(image: Image.Image, path: Path) -> None:
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(path)


# name of the file -> (writes a picture so, the ordinary RGB picture that it shows)
MODES = {
    "plain.png": (Image.Image.save, lambda image: image),
    "turned.png": (_exif, lambda image: image),
    "alpha.png": (_with_alpha, _black_where_transparent),
    "grey.png": (lambda image, path: image.convert("L").save(path), lambda image: image.convert("L").convert("RGB")),
    "deep.png": (_sixteen_bits, lambda image: image.convert("L").convert("RGB")),
    "deep.tif": (_sixteen_bits, lambda image: image.convert("L").convert("RGB")),
    "palette.png": (
        lambda image, path: image.quantize(200).save(path),
        lambda image: image.quantize(200).convert("RGB"),
    ),
    "cmyk.tif": (lambda image, path: image.convert("CMYK").save(path), lambda image: image),
    "one bit.png": (lambda image, path: image.convert("1").save(path), lambda image: image.convert("1").convert("RGB")),
}


@pytest.mark.parametrize("name", MODES)
def test_a_picture_of_any_mode_is_what_it_shows(name, files, tmp_path):
    write, shown = MODES[name]
    write(picture(), tmp_path / name)
    shown(picture()).save(tmp_path / "shown.png")
    classifier = load_classifier(files / "net.onnx")
    got, expected = classify(classifier, [tmp_path / name, tmp_path / "shown.png"])
    assert got.problem is None
    assert got.classes == expected.classes and got.probabilities == pytest.approx(expected.probabilities, abs=1e-6)


def test_both_kinds_of_files_and_every_batch_size_say_the_same(files, folder):
    images = find_images([folder])
    tables = []
    for model, batch in (("net.safetensors", 64), ("net.onnx", 1), ("net.onnx", 2), ("net.json", 3)):
        tables.append(list(classify(load_classifier(files / model), images, batch)))
    for table in tables[1:]:
        for one, other in zip(table, tables[0], strict=True):
            assert (one.file, one.classes) == (other.file, other.classes)
            assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


# -- the table ----------------------------------------------------------------------------------------------------
def test_a_line_a_picture_with_five_classes(command, files, folder):
    code, out, err = command("predict", files / "net.onnx", folder)
    header, *lines = rows(out)
    assert (code, err) == (0, "")
    assert header == ["file", *(f"{what}_{rank}" for rank in range(1, 6) for what in ("class", "probability"))]
    assert [Path(line[0]) for line in lines] == [folder / "a.jpg", folder / "b.png", folder / "more" / "c.TIF"]
    for line in lines:
        probabilities = [float(text) for text in line[2::2]]
        assert len({*line[1::2]}) == 5 and {*line[1::2]} <= {*CLASSES}
        assert probabilities == sorted(probabilities, reverse=True) and 0 <= sum(probabilities) <= 1 + 5e-6


def test_of_fewer_classes_all_are_shown(copies, folder, command):
    model = bpl.build_model("resnet18", 2, SIZE, width=8)
    bpl.save_model(model, copies / "two", classes=["no", "yes"], mean=MEAN, std=STD)
    code, out, _ = command("predict", copies / "two.json", folder)
    header, *lines = rows(out)
    assert code == 0 and header == ["file", "class_1", "probability_1", "class_2", "probability_2"]
    assert all(float(line[2]) + float(line[4]) == pytest.approx(1, abs=2e-6) for line in lines)


def test_a_file_gets_what_standard_output_would_have_got(command, files, folder, tmp_path):
    expected = command("predict", files / "net.onnx", folder)[1]
    code, out, err = command("predict", files / "net.onnx", folder, "--csv", tmp_path / "table.csv")
    assert (code, err) == (0, "")
    assert out == f"3 of 3 images classified: {tmp_path / 'table.csv'}\n"
    assert (tmp_path / "table.csv").read_text() == expected


def test_names_with_commas_quotes_and_bytes_that_are_no_text_come_through(command, files, tmp_path):
    place = tmp_path / "odd"
    place.mkdir()
    names = [b'a, "b".png', b"new\nline.png", b"\xff\xfe.png"]
    for name in names:
        shutil.copy(_png(tmp_path), os.path.join(os.fsencode(place), name))
    code, _, err = command("predict", files / "net.onnx", place, "--csv", tmp_path / "table.csv")
    assert (code, err) == (0, "")
    with open(tmp_path / "table.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
        lines = list(csv.reader(file))[1:]
    assert sorted(os.fsencode(Path(line[0]).name) for line in lines) == sorted(names)


def _png(folder: Path) -> Path:
    picture().save(folder / "one.png")
    return folder / "one.png"


# -- which files --------------------------------------------------------------------------------------------------
def test_a_folder_gives_its_pictures_sorted_without_what_is_hidden_or_no_picture_by_name(folder):
    for name in (".hidden.png", "Thumbs.db", "readme.txt", ".cache/d.png", "__MACOSX/e.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    (folder / "folder.png").mkdir()
    assert find_images([folder]) == [folder / "a.jpg", folder / "b.png", folder / "more" / "c.TIF"]


def test_a_file_is_taken_whatever_it_is_called_and_once(folder):
    shutil.copy(folder / "b.png", folder / "b.data")
    assert find_images([folder / "b.data", folder / "b.png", folder]) == [
        folder / "b.data",
        folder / "b.png",
        folder / "a.jpg",
        folder / "more" / "c.TIF",
    ]


def test_every_format_that_is_decoded_is_found(command, files, tmp_path):
    place = tmp_path / "all"
    place.mkdir()
    for end in ("bmp", "gif", "webp", "TIFF", "jpe", "png"):
        picture().save(place / f"one.{end}")
    code, out, err = command("predict", files / "net.onnx", place)
    assert (code, err, len(rows(out))) == (0, "", 7)


def test_folders_are_searched_through_links_each_once(folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "below").mkdir(parents=True)
    picture().save(elsewhere / "below" / "d.png")
    for name, target in {
        "a link": elsewhere, "a second": elsewhere, "again": "more", "more/up": "..", "z": ".", ".hidden": elsewhere,
    }.items():  # fmt: skip
        (folder / name).symlink_to(target)
    expected = ["a link/below/d.png", "a.jpg", "b.png", "more/c.TIF"]
    assert find_images([folder]) == [folder / name for name in expected]


def test_a_link_that_leads_nowhere_is_a_problem_and_the_others_go_on(command, files, folder):
    (folder / "lost").symlink_to("gone")
    (folder / "more" / "round\x07.png").symlink_to("round\x07.png")
    code, out, err = command("predict", files / "net.onnx", folder)
    assert (code, len(rows(out))) == (1, 4)
    said = [
        f"bpl: link '{folder / 'lost'}' leads nowhere",
        f"bpl: link '{folder / 'more' / 'round'}\\x07.png' leads nowhere",
    ]
    assert err.splitlines() == said


# -- bad pictures -------------------------------------------------------------------------------------------------
BAD = {
    "text.png": b"no picture",
    "empty.jpg": b"",
    "cut off.png": None,  # filled in below
    "huge.png": None,
}


def spoil(folder: Path) -> None:
    """Put files that are no pictures among the pictures."""
    whole = (folder / "b.png").read_bytes()
    header = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + (100_000).to_bytes(4) * 2 + b"\x08\x02\x00\x00\x00"
    contents = BAD | {"cut off.png": whole[: len(whole) // 2], "huge.png": header + b"\x00" * 20}
    for name, content in contents.items():
        (folder / name).write_bytes(content)


def test_what_is_no_picture_is_named_and_the_others_go_on(command, files, folder):
    expected = rows(command("predict", files / "net.onnx", folder)[1])
    spoil(folder)
    code, out, err = command("predict", files / "net.onnx", folder, "--batch-size", 2)
    assert code == 1
    got = rows(out)
    assert [line[:2] for line in got] == [line[:2] for line in expected]
    complaints = err.splitlines()
    assert len(complaints) == len(BAD)
    for name in BAD:
        assert sum(f"{folder / name}" in line and line.startswith("bpl: image ") for line in complaints) == 1


def test_where_nothing_can_be_classified_no_table_is_left(command, files, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    code, out, err = command("predict", files / "net.onnx", tmp_path / "bad.png", "--csv", tmp_path / "table.csv")
    assert (code, out) == (1, "") and is_one_sentence(err)
    assert not (tmp_path / "table.csv").exists()


# -- bad input ----------------------------------------------------------------------------------------------------
def refused(command, said: str, *words, code: int = 2) -> None:
    """Assert that the command stops with one sentence that says this, and writes nothing."""
    got, out, err = command("predict", *words)
    assert (got, out) == (code, "")
    assert is_one_sentence(err) and re.search(said, err), err
    assert len(err) < 900


def test_an_empty_folder_a_missing_path_and_a_bad_batch_size(command, files, folder, tmp_path):
    (tmp_path / "empty" / "below").mkdir(parents=True)
    (tmp_path / "empty" / "notes.txt").write_text("no picture")
    table = ("--csv", tmp_path / "table.csv")
    refused(
        command, r"folder '.*empty' holds no images: \.apng", files / "net.onnx", folder, tmp_path / "empty", *table
    )
    refused(command, r"gone\.png' is neither a file nor a folder", files / "net.onnx", tmp_path / "gone.png", *table)
    refused(
        command, "batch_size is 0: it must be a whole number", files / "net.onnx", folder, "--batch-size", 0, *table
    )
    refused(command, "batch_size is 0: it must be a whole number", files / "net.onnx", folder, "--batch-size", 0)
    refused(command, "its folder does not exist", files / "net.onnx", folder, "--csv", tmp_path / "no" / "table.csv")
    assert not (tmp_path / "table.csv").exists()


def test_a_table_that_cannot_be_written_leaves_the_old_one(command, files, folder, tmp_path, monkeypatch):
    (tmp_path / "table.csv").write_text("old")

    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", no_space)
    before = files_below(tmp_path)
    refused(command, "No space left", files / "net.onnx", folder, "--csv", tmp_path / "table.csv", code=1)
    assert (tmp_path / "table.csv").read_text() == "old" and files_below(tmp_path) == before


@pytest.mark.parametrize("model", ["net.safetensors", "net.json", "net.onnx"])
def test_a_table_does_not_destroy_what_it_is_made_from(command, copies, folder, tmp_path, monkeypatch, model):
    (tmp_path / "link.csv").symlink_to(folder / "b.png")
    os.link(copies / "net.json", tmp_path / "hard.csv")
    monkeypatch.chdir(folder)
    before = {name: (tmp_path / name).read_bytes() for name in files_below(tmp_path)}
    for table in ("b.png", folder / "a.jpg", tmp_path / "link.csv"):
        refused(command, "--csv is .*: that is an image to classify", copies / model, folder, "--csv", table)
    for table in (copies / "net.safetensors", copies / "net.json", copies / "net.onnx", tmp_path / "hard.csv"):
        refused(command, "--csv is .*: that is a file of the network", copies / model, folder, "--csv", table)
    assert before == {name: (tmp_path / name).read_bytes() for name in files_below(tmp_path)}


def test_a_table_goes_through_a_link_and_not_over_a_pipe(command, files, folder, tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link.csv").symlink_to("table.csv")
    assert command("predict", files / "net.onnx", folder, "--csv", tmp_path / "link.csv")[0] == 0
    assert (tmp_path / "link.csv").is_symlink() and len(rows((tmp_path / "table.csv").read_text())) == 4
    monkeypatch.setattr("bpl.deployment.predict.load_classifier", lambda *_, **__: pytest.fail("found out too late"))
    refused(command, "It is no file.*pipe'", files / "net.onnx", folder, "--csv", tmp_path / "pipe", code=1)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_classified(
    command, files, folder, tmp_path, monkeypatch
):
    def read_only(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(atomic.tempfile, "TemporaryFile", read_only)
    monkeypatch.setattr("bpl.deployment.predict.load_classifier", lambda *_, **__: pytest.fail("found out too late"))
    refused(command, f"Read-only.*'{tmp_path}'", files / "net.onnx", folder, "--csv", tmp_path / "t.csv", code=1)


@pytest.mark.parametrize("suffix", [".safetensors", ".onnx"])
@pytest.mark.parametrize("size", [0, 8, 2000, -1])
def test_a_truncated_network_is_refused(command, copies, folder, suffix, size):
    file = copies / f"net{suffix}"
    file.write_bytes(file.read_bytes()[:size])
    refused(command, f"net{suffix}.* cannot be (read|run)", file, folder)


@pytest.mark.parametrize("name", ["gone.safetensors", "gone.json", "gone.onnx", "gone/", "no-such-run"])
def test_a_missing_network_is_refused(command, copies, folder, name):
    refused(command, "gone|no run, file or folder 'no-such-run'", copies / name if "gone" in name else name, folder)


DESCRIPTIONS = [
    ({"version": 2}, "has version 2: this library reads 1"),
    ({"format": "other"}, "does not describe a model of this library"),
    ({"classes": None}, "does not name its classes"),
    ({"classes": []}, "does not name its classes"),
    ({"classes": [1, 2, 3, 4, 5, 6]}, "classes has 1: a name must be one line of text"),
    ({"classes": list("abcdea")}, "classes has 'a' twice"),
    ({"classes": "abcdef"}, "classes is 'abcdef': it must be a list of class names"),
    ({"classes": ["a", "b"]}, "gives 6 logits for 2 classes"),
    ({"mean": None}, "has mean None"),
    ({"mean": [0.5, 0.5]}, r"has mean \[0.5, 0.5\]"),
    ({"mean": ["a", "b", "c"]}, "mean is .*: it must be finite numbers, one a channel"),
    ({"mean": [10**400, 0.5, 0.5]}, "mean is .*: it must be finite numbers, one a channel"),
    ({"std": [0.5, 0.0, 0.5]}, "std is .*: it must be finite numbers above 0"),
    ({"std": [0.5, float("nan"), 0.5]}, "std is .*: it must be finite numbers above 0"),
]


@pytest.mark.parametrize(("change", "said"), DESCRIPTIONS, ids=lambda value: str(value)[:40])
def test_a_description_that_does_not_suffice_is_refused(command, copies, folder, change, said):
    content = json.loads((copies / "net.json").read_text()) | change
    (copies / "net.json").write_text(json.dumps(content))
    refused(command, said, copies / "net.safetensors", folder)

    import onnx

    model = onnx.load(copies / "net.onnx")
    del content["widths"]
    onnx.helper.set_model_props(model, {"bpl-model": json.dumps(content)})
    onnx.save(model, copies / "net.onnx")
    refused(command, said, copies / "net.onnx", folder)


def test_an_onnx_file_of_others_and_one_for_other_images_are_refused(command, copies, folder):
    import onnx

    model = onnx.load_from_string(network_as_onnx())
    onnx.helper.set_model_props(model, {})
    onnx.save(model, copies / "net.onnx")
    refused(command, "net.onnx has no metadata 'bpl-model'", copies / "net.onnx", folder)
    model = onnx.load_from_string(network_as_onnx())
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_param = "any"
    onnx.save(model, copies / "net.onnx")
    refused(command, "does not take square images of one size", copies / "net.onnx", folder)


def test_without_onnxruntime_it_is_named(command, copies, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as where it is not installed
    refused(command, r"needs onnxruntime: pip install -e '.\[export\]'", copies / "net.onnx", folder)
    assert command("predict", copies / "net.safetensors", folder)[0] == 0


def test_a_network_of_ones_own_is_sent_to_onnx(command, copies, folder):
    content = json.loads((copies / "net.json").read_text())
    (copies / "net.json").write_text(json.dumps(content | {"arch": None}))
    refused(command, "names no network of build_model: export it as ONNX", copies / "net.safetensors", folder)


def test_weights_that_are_not_finite_are_refused(copies):
    model = bpl.load_model(copies / "net")
    with torch.no_grad():
        model.fc.weight[0, 0] = torch.nan
    bpl.save_model(model, copies / "net", classes=CLASSES, mean=MEAN, std=STD)
    with pytest.raises(ModelFileError, match="not finite"):
        load_classifier(copies / "net.json")


# -- the demo network ---------------------------------------------------------------------------------------------
def test_the_demo_network_works_as_it_is_installed(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()  # a folder of that name is not what is meant
    Image.fromarray(draw_scenes(64, 1, seed=0)[0][0]).save("scene.png")
    code, out, err = command("predict", "demo", "scene.png")
    assert (code, err) == (0, "")
    assert rows(out)[1][0] == "scene.png" and rows(out)[1][1] in load_classifier("demo").classes
    assert len(load_classifier("demo").classes) == 21
    refused(command, "demo/model.json cannot be read", "./demo", "scene.png")


def test_the_demo_network_is_small_and_its_card_says_where_it_is_from():
    files = {file.name: file.stat().st_size for file in DEMO_FOLDER.iterdir()}
    assert files.keys() == {"model.safetensors", "model.json", "card.json"} and sum(files.values()) < 2_000_000
    card = json.loads((DEMO_FOLDER / "card.json").read_text())
    assert card["run"].startswith("bpl-") and card["command"].startswith("bpl run --dataset ucm --method bpl")
    assert "MIT" in card["licence"] and card["classes_changed_by_half_precision"] <= 4
    assert card["bytes"] == files["model.safetensors"]
    assert (
        card["exported"]["onnx"]["same_top1"] == 1.0 and "test images of ucm (real)" in card["exported"]["checked_on"]
    )
    record = Path(__file__).parents[1] / "data" / "results" / "ucm" / f"{card['run']}.json"
    assert record.exists(), "the run that the demo network is from is no longer recorded: make demo"
    assert load_record(record).accuracy["test"] == card["accuracy"]


def test_a_record_that_cannot_be_used_stops_no_prediction(command, copies, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("BPL_RESULTS", str(tmp_path / "results"))
    (tmp_path / "results" / "ucm").mkdir(parents=True)
    (tmp_path / "results" / "ucm" / "run-1.json").write_text("{}")
    (tmp_path / "run-1").mkdir()
    for suffix in (".safetensors", ".json"):
        shutil.copy(copies / f"net{suffix}", tmp_path / "run-1" / f"model{suffix}")
    assert command("predict", tmp_path / "run-1", folder)[0] == 0


@pytest.mark.parametrize("words", [["predict"], ["predict", "demo"], ["predict", "demo", "x", "--top", "3"]])
def test_words_that_are_lacking_or_unknown(command, words):
    code, out, err = command(*words)
    assert (code, out) == (2, "") and err and "Traceback" not in err


def test_half_precision_is_computed_with_in_single_precision(copies, folder):
    half = bpl.load_model(copies / "net").half()
    bpl.save_model(half, copies / "half", classes=CLASSES, mean=MEAN, std=STD)
    whole = list(classify(load_classifier(copies / "net.json"), find_images([folder])))
    for one, other in zip(classify(load_classifier(copies / "half.json"), find_images([folder])), whole, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=2e-2)
    assert {p.dtype for p in bpl.load_model(copies / "half").parameters()} == {torch.float16}
