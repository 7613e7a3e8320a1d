"""Class-folder trees: find the root, list the images, decode them all to one size.

The layout is the usual one, a folder per class with the images directly in it. Whether the tree lies on the disk or in
one packed file makes no difference here: both are a `Traversable`. Decoding goes through Pillow: torchvision's own
decoders are missing beside a CPU-only torch.
"""

import os
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from bpl.data.catalog import Card, DataError
from bpl.names import is_plain
from bpl.paths import project_root
from bpl.shown import flat, shown

SUFFIXES = frozenset({".tif", ".tiff", ".jpg", ".jpeg", ".png"})

# Scene images have some 0.1 megapixels. Pillow's own limit (179 megapixels, an error) lets one file take a gigabyte.
MAX_PIXELS = 50_000_000

# Pillow's other formats are not asked: to read Encapsulated PostScript, for one, it starts an interpreter of programs.
FORMATS = ("TIFF", "JPEG", "PNG", "BMP", "GIF", "WEBP")

# Files of these formats, where images of any origin are searched for. Data sets keep to `SUFFIXES`: with more files, a
# tree would have another digest than in the records.
DECODED_SUFFIXES = SUFFIXES | {".jpe", ".jfif", ".apng", ".bmp", ".gif", ".webp"}

_WORKERS = min(8, os.cpu_count() or 2)  # Pillow releases the interpreter lock while it decodes and resizes


@dataclass(frozen=True)
class Listing:
    """The images below one folder.

    Args:
        folder: The folder that holds the class folders.
        classes: Names of the class folders, sorted.
        files: ``class/filename`` of every image, sorted by class, then by name.
        labels: Index into ``classes`` of every image.
        stamps: Size in bytes of every file, and when it and its entry were changed in ns; in a packed file its CRC.
    """

    folder: Traversable
    classes: tuple[str, ...]
    files: tuple[str, ...]
    labels: tuple[int, ...]
    stamps: tuple[tuple[int, ...], ...]


def roots(data: str | Path | None = None) -> tuple[Path, ...]:
    """The data roots to look in, in order: the argument, ``$BPL_DATA``, ``data/`` of the checkout.

    Args:
        data: A root given by the caller. It then is the only one: a mistyped path must not be passed over.

    Returns:
        The roots, which may or may not exist.
    """
    if data is not None:
        return (Path(data).expanduser(),)
    found = [Path(os.environ["BPL_DATA"]).expanduser()] if os.environ.get("BPL_DATA") else []
    return (*found, project_root() / "data")


def open_root(root: Path) -> Traversable:
    """A data root as a folder to look into.

    Args:
        root: A folder, which may not exist, or a file that `bpl.data.pack_images` wrote.

    Returns:
        The folder itself, or the top of what the file holds.

    Raises:
        DataError: A file that is no such file, or not a safe one.
    """
    if not root.is_file():
        return root
    from bpl.data.packed import open_packed  # here, because that module builds upon this one

    return open_packed(root)


def find_folder(card: Card, candidates: Sequence[Path]) -> tuple[Path, Traversable] | None:
    """Find the class folders of a data set.

    Args:
        card: The data set.
        candidates: Data roots, or the folder of class folders itself.

    Returns:
        The data root and the folder that holds the class folders, or ``None``.

    Raises:
        DataError: A packed root cannot be read.
    """
    for root in candidates:
        top = open_root(root)
        # Any folder of folders would do as a set without known classes: the root itself has to bear the set's name.
        itself = (".",) if card.classes is not None or root.name in card.folders else ()
        for relative in (*card.folders, *itself):
            folder = top / relative
            names = [name for name in _subfolders(folder) if card.classes is None or name in card.classes]
            if any(_images(folder / name) for name in names):
                return root, folder
    return None


def too_deep(card: Card, candidates: Sequence[Path]) -> Traversable | None:
    """A folder of a data set whose images lie one folder deeper than those of class folders, as in train/class/image.

    Args:
        card: The data set, which `find_folder` has not found.
        candidates: As of `find_folder`.
    """
    for root in candidates:
        for relative in card.folders:
            folder = open_root(root) / relative
            for name in _subfolders(folder):
                if any(_images(folder / name / deeper) for deeper in _subfolders(folder / name)):
                    return folder
    return None


def list_images(folder: Traversable, classes: Sequence[str] | None = None) -> Listing:
    """List the images of a class-folder tree in an order that no file system changes.

    Hidden files and folders, and files that are no images by their extension (``Thumbs.db``, ``readme.txt``), are
    passed over.

    Args:
        folder: The folder that holds the class folders.
        classes: The class folders to take; ``None`` takes all that are there.

    Returns:
        The listing.

    Raises:
        DataError: The folder is missing, has fewer than two classes, lacks one of ``classes``, a class is empty, or a
            name is not one line of text.
    """
    if not folder.is_dir():
        raise DataError(f"'{folder}' is not a folder; give the folder that holds one folder of images per class.")
    present = _subfolders(folder)
    if classes is None:
        classes = present
    elif missing := sorted(set(classes) - set(present)):
        raise DataError(f"'{folder}' lacks {len(missing)} of {len(classes)} class folders: {', '.join(missing)}.")
    if len(classes) < 2:
        raise DataError(
            f"'{folder}' holds {len(classes)} class folders ({', '.join(classes) or 'none'}); "
            "a classifier needs at least 2, each a folder of images."
        )
    files: list[str] = []
    labels: list[int] = []
    stamps: list[tuple[int, ...]] = []
    for label, name in enumerate(sorted(classes)):
        _check_name(name, folder)
        entries = _images(folder / name)
        if not entries:
            raise DataError(
                f"class folder '{folder / name}' holds no images; allowed are {', '.join(sorted(SUFFIXES))} files."
            )
        for entry in entries:
            _check_name(entry.name, folder / name)
            files.append(f"{name}/{entry.name}")
            labels.append(label)
            stamps.append(_stamp(entry))
    return Listing(folder, tuple(sorted(classes)), tuple(files), tuple(labels), tuple(stamps))


def passed_over(listing: Listing) -> str:
    """What lies in the class folders and may be meant to be part of the data set, but is not.

    Args:
        listing: The listing.

    Returns:
        The number of images with other suffixes, which are named, of folders, and of links that lead nowhere; "" where
        there is nothing.
    """
    taken = set(listing.files)
    rest = [
        entry
        for name in listing.classes
        for entry in (listing.folder / name).iterdir()
        if f"{name}/{entry.name}" not in taken and not entry.name.startswith(".")
    ]
    suffixes = [Path(entry.name).suffix.lower() for entry in rest if entry.is_file()]
    others = [suffix for suffix in suffixes if suffix in DECODED_SUFFIXES]
    deeper = sum(entry.is_dir() for entry in rest)
    beside = [entry for entry in listing.folder.iterdir() if not entry.name.startswith(".")]
    lost = sum(isinstance(entry, Path) and entry.is_symlink() and not entry.exists() for entry in [*rest, *beside])
    of = ", ".join(sorted(set(others)))
    images = f"{len(others)} image{'s' * (len(others) > 1)} of other suffixes ({of})" if others else ""
    folders = f"{deeper} folder{'s' * (deeper > 1)}" if deeper else ""
    links = f"{lost} link{'s' * (lost > 1)} that lead{'s' * (lost == 1)} nowhere" if lost else ""
    return " and ".join(filter(None, (images, folders, links)))


def decode_all(listing: Listing, image_size: int, progress: bool = True) -> np.ndarray:
    """Decode every image of a listing to square RGB.

    Args:
        listing: The images.
        image_size: Height and width of the result, in pixels.
        progress: Show a bar on stderr.

    Returns:
        uint8, N x 3 x image_size x image_size.

    Raises:
        DataError: A file is truncated, no image, or too large; the message names it.
    """
    pixels = np.empty((len(listing.files), 3, image_size, image_size), dtype=np.uint8)

    def decode_one(index: int) -> None:
        pixels[index] = decode(listing.folder / listing.files[index], image_size).transpose(2, 0, 1)

    pool = ThreadPoolExecutor(_WORKERS)
    # Filters belong to the process, not to a thread: set them once around the pool, never inside it.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # odd EXIF; large images, for which `decode` has its limit
        try:
            done = pool.map(decode_one, range(len(listing.files)))
            for _ in tqdm(
                done, total=len(listing.files), desc="decode", unit="image", disable=not progress, file=sys.stderr
            ):
                pass
        finally:
            pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C the rest is not worth decoding
    return pixels


def decode(path: Traversable, image_size: int) -> np.ndarray:
    """Decode one image: upright, RGB, shorter side resized to ``image_size`` with antialiasing, centre crop.

    Args:
        path: The file.
        image_size: Height and width of the result, in pixels.

    Returns:
        uint8, image_size x image_size x 3.

    Raises:
        DataError: The file is truncated, no image, or has more than ``MAX_PIXELS`` pixels.
    """
    try:
        with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
            width, height = image.size  # known from the header, before any pixel is decoded
            if width * height <= MAX_PIXELS:
                return _to_square(_to_rgb(ImageOps.exif_transpose(image)), image_size)
    except DataError:  # of a packed file: it names the file and the reason
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"image {shown(str(path))} cannot be decoded: it is none of {', '.join(FORMATS)}.") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"image {shown(str(path))} is refused: {error}") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ... on damaged files
        raise DataError(f"image {shown(str(path))} cannot be decoded: {flat(error).rstrip('.')}.") from error
    raise DataError(f"image {shown(str(path))} has {width} x {height} pixels; at most {MAX_PIXELS:,} are allowed.")


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any of Pillow's modes to RGB without Pillow's silent clipping of deep images."""
    if image.mode.startswith("I"):  # 16-bit grey: 'I;16', 'I;16B', or widened to 'I'
        values = np.asarray(image).astype(np.int32)  # as many bytes a pixel as RGB takes in Pillow
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"grey values {values.min()}..{values.max()}, allowed are 0..65535")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        values = np.asarray(image)
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 255):
            raise ValueError(f"grey values {values.min()}..{values.max()}, allowed are 0..1 or 0..255")
        scale = 255 if values.max() <= 1 else 1
        return Image.fromarray((values * scale + 0.5).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        # Where nothing was seen, orthophotos are black; dropping alpha would show whatever colours lie beneath it.
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
    return image.convert("RGB")


def _to_square(image: Image.Image, image_size: int) -> np.ndarray:
    """Take the central square and resize it, antialiased, in one step (no huge intermediate for a 1 x 10000 strip)."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    resized = image.resize((image_size, image_size), Image.Resampling.BILINEAR, box=box)
    return np.asarray(resized)


def _check_name(name: str, folder: Traversable) -> None:
    """Refuse names that cannot stand in a line of a split file or of a table."""
    if not is_plain(name):
        raise DataError(f"'{folder}' holds {shown(name)}; a class or an image must have one line of text for a name.")


def _subfolders(folder: Traversable) -> list[str]:
    """Names of the visible folders directly in ``folder``, sorted; empty where there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(
        entry.name for entry in folder.iterdir() if not entry.name.startswith((".", "__MACOSX")) and entry.is_dir()
    )


def _images(folder: Traversable) -> list[Traversable]:
    """The visible image files directly in ``folder``, sorted by name."""
    images = [
        entry
        for entry in folder.iterdir()
        if not entry.name.startswith(".") and Path(entry.name).suffix.lower() in SUFFIXES and entry.is_file()
    ]
    return sorted(images, key=lambda entry: entry.name)


def _stamp(file: Traversable) -> tuple[int, ...]:
    """What tells a changed file from its predecessor without reading it."""
    if not isinstance(file, Path):
        return file.stamp
    status = file.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns  # the last one nobody sets: unzip sets the second
