"""Images of every kind and condition: read rightly, or refused in one sentence that names the file."""

import io
import random
import resource
import shutil
import subprocess
import zlib

import numpy as np
import pytest
from fuzzing import LONG, SHORT, fuzz, mutated_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from bpl.data import DataError
from bpl.data.folders import MAX_PIXELS, decode, list_images
from bpl.deployment.predict import find_images

long = pytest.mark.parametrize("count", [SHORT, pytest.param(LONG, marks=pytest.mark.slow)])
MODES = {
    "png": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "jpg": ("L", "RGB", "CMYK"),
    "tif": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"),
}
NAMES = {"png": "PNG", "jpg": "JPEG", "tif": "TIFF"}


def picture(mode: str, kind: str, size: tuple[int, int] = (24, 16), orientation: int = 1) -> bytes:
    """The content of an image file: the left half black, the right half light grey (200)."""
    grey = np.zeros(size[::-1], np.uint8)
    grey[:, size[0] // 2 :] = 200
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode == "F":
        image = Image.fromarray(grey.astype(np.float32))
    elif mode == "CMYK":
        image = Image.fromarray(np.stack([grey] * 3, 2)).convert("CMYK")
    else:
        image = Image.fromarray(grey).convert(mode, dither=Image.Dither.NONE)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = io.BytesIO()
    image.save(content, NAMES[kind], exif=exif)
    return content.getvalue()


ALL = [picture(mode, kind) for kind, modes in MODES.items() for mode in modes] + [picture("RGB", "jpg", (16, 24), 6)]


@long
def test_damaged_images_are_refused_or_read(tmp_path, count):
    """Under every suffix, right or wrong: what counts is the content."""

    def make(chance: random.Random) -> tuple[str, bytes]:
        return chance.choice(tuple(MODES)), mutated_bytes(chance.choice(ALL), chance)

    def use(case: tuple[str, bytes]) -> None:
        file = tmp_path / f"image.{case[0]}"
        file.write_bytes(case[1])
        pixels = decode(file, 16)
        assert pixels.shape == (16, 16, 3) and pixels.dtype == np.uint8

    tally = fuzz("images", count, make, use, (DataError,))
    assert tally.read > count / 10 and tally.refused["DataError"] > count / 10


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(sorted(MODES)),
    mode=st.integers(0, 8),
    suffix=st.sampled_from([".png", ".jpg", ".tif", ".data"]),
    orientation=st.integers(0, 9),
)
def test_any_mode_orientation_and_suffix_shows_what_it_shows(tmp_path, kind, mode, suffix, orientation):
    mode = MODES[kind][mode % len(MODES[kind])]
    file = tmp_path / f"image{suffix}"
    file.write_bytes(picture(mode, kind, orientation=orientation))
    upright = {2: np.fliplr, 3: lambda p: np.rot90(p, 2), 4: np.flipud, 5: lambda p: p.transpose(1, 0, 2)}
    upright |= {6: lambda p: np.rot90(p, -1), 7: lambda p: np.rot90(p, 2).transpose(1, 0, 2), 8: np.rot90}
    expected = np.zeros((16, 16, 3), int)
    expected[:, 8:] = 255 if mode == "1" else 200
    pixels = decode(file, 16).astype(int)
    expected = upright.get(orientation, lambda p: p)(expected)
    inner = np.abs(np.diff(expected.sum(2), axis=0, prepend=expected[:1].sum(2))) > 0  # an edge between the halves
    inner |= np.abs(np.diff(expected.sum(2), axis=1, prepend=expected[:, :1].sum(2))) > 0
    near = inner | np.roll(inner, -1, 0) | np.roll(inner, -1, 1)  # JPEG rings there
    assert np.abs(pixels - expected)[~near].max() <= (16 if kind == "jpg" else 2)


@pytest.mark.parametrize("size", [(100_000, 1), (1, 100_000), (1, 1), (9000, 3)])
def test_a_strip_is_read_and_costs_no_memory(tmp_path, size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    Image.new("RGB", size, (10, 20, 30)).save(tmp_path / "strip.png")
    assert (decode(tmp_path / "strip.png", 64) == (10, 20, 30)).all()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def _of_size(width: int, height: int) -> bytes:
    """A PNG whose header says so; what follows is the content of a small one."""
    whole = picture("RGB", "png")
    header = b"IHDR" + width.to_bytes(4) + height.to_bytes(4) + whole[24:29]
    return whole[:12] + header + zlib.crc32(header).to_bytes(4) + whole[33:]


def _text_bomb() -> bytes:
    """A PNG of one pixel with a comment of 100 MB that is compressed a thousandfold."""
    whole = picture("RGB", "png")
    chunk = b"zTXtbomb\0\0" + zlib.compress(bytes(100 << 20), 9)
    at = whole.index(b"IDAT") - 4
    return whole[:at] + (len(chunk) - 4).to_bytes(4) + chunk + zlib.crc32(chunk).to_bytes(4) + whole[at:]


SAID = {
    "zero bytes": (lambda: b"", "cannot be decoded"),
    "text": (lambda: b"no picture\n" * 100, "cannot be decoded"),
    "zeros": (lambda: bytes(10_000), "cannot be decoded"),
    "truncated": (lambda: picture("RGB", "png", (300, 300))[:300], "cannot be decoded"),
    "truncated JPEG": (lambda: picture("RGB", "jpg", (300, 300))[:1000], "cannot be decoded"),
    "ten thousand million pixels": (lambda: _of_size(100_000, 100_000), "is refused|at most 50,000,000"),
    "fifty million and one": (lambda: _of_size(MAX_PIXELS + 1, 1), "at most 50,000,000 are allowed"),
    "comment of 100 MB": (_text_bomb, "cannot be decoded"),
    "no number": (lambda: _float(float("nan")), "allowed are 0..1 or 0..255"),
    "out of range": (lambda: _float(1e30), "allowed are 0..1 or 0..255"),
    "PostScript": (lambda: POSTSCRIPT, "cannot be decoded"),
}


def _float(value: float) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.full((8, 8), value, np.float32)).save(content, "TIFF")
    return content.getvalue()


POSTSCRIPT = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(executed) (w) file closefile showpage\n%%EOF\n"
)


@pytest.mark.parametrize("kind", SAID)
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_what_cannot_be_read_is_named_in_one_sentence(tmp_path, kind, suffix):
    content, said = SAID[kind]
    file = tmp_path / f"image.{suffix}"
    file.write_bytes(content())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=said) as error:
        decode(file, 32)
    assert str(file) in str(error.value) and "\n" not in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_no_program_is_started_for_an_image(tmp_path, monkeypatch):
    """Pillow hands PostScript to Ghostscript where that is installed, whatever the file's suffix is."""
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(a))
    monkeypatch.setattr(shutil, "which", lambda name, *_: f"/usr/bin/{name}")
    (tmp_path / "image.png").write_bytes(POSTSCRIPT)
    with pytest.raises(DataError):
        decode(tmp_path / "image.png", 32)
    assert not started


# -- names --------------------------------------------------------------------------------------------------------
HOSTILE_NAMES = ["two\nlines", "\x1b[2Jcleared", "\r", "tab\there", "\u2028", "turned \u202e", "\udcff", "bell\a"]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
@pytest.mark.parametrize("of", ["class", "file"])
def test_a_hostile_name_of_a_class_folder_or_a_file_is_refused(tmp_path, of, name):
    for label in ("a", name if of == "class" else "b"):
        (tmp_path / label).mkdir()
        (tmp_path / label / (f"{name}.png" if of == "file" else "x.png")).write_bytes(ALL[0])
    with pytest.raises(DataError, match="must have one line of text for a name") as error:
        list_images(tmp_path)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "name", ["..a", "a b", "ä ö", "日本　語", "-rf", "=1+1", "a,b", "%s", "$(touch x)", "'; --", "con", "x" * 200]
)
def test_an_odd_name_of_a_class_folder_is_a_name(tmp_path, name):
    for label in ("zz", name):
        if not label.startswith("."):
            (tmp_path / label).mkdir()
            (tmp_path / label / "x.png").write_bytes(ALL[0])
    if name.startswith("."):
        return
    assert set(list_images(tmp_path).classes) == {"zz", name}
    assert len(find_images([tmp_path])) == 2
