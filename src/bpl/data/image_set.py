"""Load a data set by name: real images where they are found, drawn scenes where not, and always said which."""

import hashlib
import json
import math
from dataclasses import dataclass, replace
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np
import PIL
import torch

from bpl.data import cache, folders
from bpl.data.catalog import CARDS, LARGEST_IMAGE, Card, DataError, name_of_folder
from bpl.data.memory_limit import VARIABLE, in_bytes, memory_limit
from bpl.data.rows import stream
from bpl.data.statistics import channel_statistics
from bpl.data.streamed import StreamedImages

_SIZES = (8, LARGEST_IMAGE)


@dataclass(frozen=True)
class ImageSet:
    """A whole data set, its pixels in memory or, where they would take too much of it, on the disk.

    Args:
        name: The data set asked for, or the folder's name.
        source: ``"real"`` or ``"synthetic"``.
        images: uint8, N x 3 x H x W: a tensor, or what stands for one where pixels are streamed from disk.
        labels: int64, N, indices into ``classes``.
        classes: Class names, sorted for real images.
        files: ``class/filename`` of every image, unique.
        digest: SHA-256 over files, labels and pixels, in hex.
        mean: Per-channel mean, 0..1.
        std: Per-channel standard deviation, 0..1.
        root: The data root the images were found in, a folder or a packed file; ``None`` for drawn scenes.
    """

    name: str
    source: str
    images: torch.Tensor | StreamedImages
    labels: torch.Tensor
    classes: tuple[str, ...]
    files: tuple[str, ...]
    digest: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    root: Path | None

    def to(self, device: torch.device | str) -> "ImageSet":
        """The same set with pixels, or the batches that are read of them, and labels on a device."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    @property
    def streamed(self) -> bool:
        """Whether the pixels stay on the disk."""
        return isinstance(self.images, StreamedImages)


def load_images(dataset: str, image_size: int, data: str | Path = "auto", progress: bool = True) -> ImageSet:
    """Load a data set at one image size. Real images that exceed `memory_limit` stay on the disk, and that is said.

    Args:
        dataset: A name from `CARDS`, or a path to a folder that holds one folder of images per class.
        image_size: Height and width in pixels.
        data: ``"auto"`` (real images where found, else drawn scenes, with a line on stdout), ``"real"``,
            ``"synthetic"``, or a path to a data root (a folder, or one file that `pack_images` wrote).
        progress: Show a bar on stderr while decoding.

    Returns:
        The images, decoded now or taken from the cache.

    Raises:
        DataError: Unknown name, images not found, or images that cannot be used.
    """
    lowest, highest = _SIZES
    if isinstance(image_size, bool) or not isinstance(image_size, int) or not lowest <= image_size <= highest:
        raise DataError(
            f"image_size is {image_size!r}; allowed are whole numbers of pixels from {lowest} to {highest}."
        )
    card = CARDS.get(dataset)
    if card is None and not Path(dataset).expanduser().is_dir():
        raise DataError(
            f"unknown dataset {dataset!r}; allowed are {', '.join(CARDS)}, or a path to a folder of class folders."
        )
    if dataset == "synthetic" and data == "real":
        raise DataError("data is 'real', but the data set 'synthetic' is drawn: allowed for it are auto and synthetic.")
    if dataset == "synthetic" or data == "synthetic":
        return _load_synthetic(dataset if card else name_of_folder(dataset), image_size)
    if card is None:
        folder = Path(dataset).expanduser().resolve()
        return _load_real(name_of_folder(folder), folder, folder, None, image_size, progress)
    found = find_real(card, data)
    if found is not None:
        return _load_real(card.name, *found, card, image_size, progress)
    # No path in this line: committed notebook outputs are compared word by word on other machines.
    print(
        f"bpl: no images of '{card.name}' were found, so this run uses drawn scenes (source: synthetic); "
        "set BPL_DATA to the folder that holds the real ones."
    )
    return _load_synthetic(card.name, image_size)


def find_real(card: Card, data: str | Path) -> tuple[Path, Traversable] | None:
    """Find the real images of a known data set.

    Args:
        card: The data set.
        data: ``"auto"``, ``"real"``, or a path to a data root.

    Returns:
        The data root and the folder that holds the class folders; ``None`` only where ``data`` is ``"auto"``.

    Raises:
        DataError: There are none, and ``data`` is not ``"auto"``; or a root that does not exist or cannot be read.
    """
    explicit = None if data in ("auto", "real") else data
    candidates = folders.roots(explicit)
    if explicit is not None and not candidates[0].exists():
        raise DataError(
            f"data is {str(data)!r}; allowed are auto, real, synthetic, or an existing folder or packed .zip file."
        )
    found = folders.find_folder(card, candidates)
    if found is None and (deep := folders.too_deep(card, candidates)) is not None:
        raise DataError(
            f"'{deep}' holds the images of '{card.name}' one folder too deep; expected is that folder/class/image."
        )
    if found is None and data != "auto":
        looked = ", ".join(f"'{root}'" for root in candidates)
        raise DataError(
            f"no images of '{card.name}' found in {looked} (expected: {' or '.join(card.folders)}); "
            f"{_how_to_get(card)}."
        )
    return found


def list_known(card: Card, folder: Traversable) -> folders.Listing:
    """List the images of a known data set, and say or refuse what does not fit its name.

    Args:
        card: The data set.
        folder: The folder that holds its class folders.

    Returns:
        The listing.

    Raises:
        DataError: Classes are missing, or a share would run under the name of the whole.
    """
    listing = folders.list_images(folder, card.classes)
    _check_total(card, len(listing.files), folder)
    return listing


def _how_to_get(card: Card) -> str:
    """The way to the images, as the end of a sentence."""
    if card.archives:
        return f"get them with bpl.data.download({card.name!r}, root), then pass that root or set BPL_DATA to it"
    return f"ask its authors at {card.home}, unpack the images there, and set BPL_DATA to that folder"


def _load_real(
    name: str, root: Path, folder: Traversable, card: Card | None, image_size: int, progress: bool
) -> ImageSet:
    """List, decode or take from the cache."""
    listing = list_known(card, folder) if card else folders.list_images(folder)
    if (card is None or card.classes is None) and (others := folders.passed_over(listing)):
        allowed = ", ".join(sorted(folders.SUFFIXES))
        cache.say_once(f"passed over in the class folders of '{folder}': {others}. {allowed} files are taken.")
    key = cache.cache_key(files=listing.files, stamps=listing.stamps, image_size=image_size)
    shape = (len(listing.files), 3, image_size, image_size)
    known = None if card is None or card.mean is None or card.std is None else (card.mean, card.std)
    if (needed := math.prod(shape)) > (limit := memory_limit()):
        cache.say(
            f"the pixels of '{name}' at {image_size} x {image_size} take {in_bytes(needed)}, more than the "
            f"{in_bytes(limit)} that they may have of the memory: they stay on the disk ({VARIABLE} sets the limit)."
        )
        source, facts = stream(name, key, listing, image_size, progress)
        images, statistics = StreamedImages(source, shape), known or facts.statistics
        return _assemble(
            name, "real", images, facts.sha256, listing.labels, listing.classes, listing.files, statistics, root
        )
    cached = cache.load(name, key)
    if cached is None:
        pixels = folders.decode_all(listing, image_size, progress)
        pixels_digest = cache.store(name, key, pixels)
    else:
        pixels, pixels_digest = cached
    statistics = known or channel_statistics(pixels)
    images = torch.from_numpy(pixels)
    return _assemble(
        name, "real", images, pixels_digest, listing.labels, listing.classes, listing.files, statistics, root
    )


def _check_total(card: Card, found: int, folder: Traversable) -> None:
    """A share that runs under the name of the whole set would make its table rows lie."""
    if card.images_total is None or found == card.images_total:
        return
    if card.share is not None and found < card.images_total:
        raise DataError(
            f"'{folder}' holds {found:,} of the {card.images_total:,} images of '{card.name}'; "
            f"a share is run under its own name: use '{card.share}'."
        )
    cache.say(
        f"'{folder}' holds {found:,} images, '{card.name}' stands for {card.images_total:,}: "
        "results are not comparable with the recorded ones."
    )


def _load_synthetic(name: str, image_size: int) -> ImageSet:
    """Draw the scenes, or take them from the cache."""
    from bpl.data import synthetic

    # The drawing code itself is part of the key: an edit to it must never meet the scenes of its predecessor.
    folder = Path(synthetic.__file__).parent
    code = [folder / "synthetic.py", *sorted(folder.glob("scene_*.py"))]
    source = hashlib.sha256(b"".join(file.read_bytes() for file in code)).hexdigest()
    seed = _seed_of_scenes(name)
    versions = {"numpy": np.__version__, "pillow": PIL.__version__}
    key = cache.cache_key(synthetic=source, image_size=image_size, seed=seed, **versions)
    classes = tuple(synthetic.CLASSES)
    cached = cache.load("synthetic", key)
    per_class = CARDS["synthetic"].images_total // len(classes)
    if cached is None:
        drawn, _ = synthetic.draw_scenes(image_size, per_class, seed)  # class by class, as a listing
        pixels = np.ascontiguousarray(drawn.transpose(0, 3, 1, 2))
        pixels_digest = cache.store("synthetic", key, pixels)
    else:
        pixels, pixels_digest = cached
    labels = np.repeat(np.arange(len(classes)), per_class)
    files = tuple(
        f"{classes[label]}/{classes[label]}_{index % per_class:03d}.png" for index, label in enumerate(labels)
    )
    statistics = channel_statistics(pixels)
    images = torch.from_numpy(pixels)
    return _assemble(name, "synthetic", images, pixels_digest, labels, classes, files, statistics, None)


def _seed_of_scenes(name: str) -> int:
    """The seed of the scenes that stand for a data set: of its own, so that a start on another one's is a start.

    UC Merced's are those of the data set ``synthetic``, which has its classes, as have folders that are not known here.
    """
    others = [card for card in CARDS if card not in ("ucm", "synthetic")]
    return 100 + others.index(name) if name in others else 0  # 0 and 1: `synthetic`, and what the demo is tested on


def _assemble(name, source, images, pixels_digest, labels, classes, files, statistics, root) -> ImageSet:
    """Put the parts together and sign them."""
    labels = np.asarray(labels, dtype=np.int64)
    signed = json.dumps([files, labels.tolist(), list(images.shape), pixels_digest])
    return ImageSet(
        name=name,
        source=source,
        images=images,
        labels=torch.from_numpy(labels),
        classes=tuple(classes),
        files=tuple(files),
        digest=hashlib.sha256(signed.encode()).hexdigest(),
        mean=statistics[0],
        std=statistics[1],
        root=root,
    )
