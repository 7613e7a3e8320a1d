"""Divide a data set into train, validation and test part: stratified, seeded, the same on every platform.

The order in which images are dealt out is that of a SHA-256 of seed and ``class/stem``. No random number generator is
involved, so no version of one can change a split; and since the extension is left out, the TIFF originals and a JPEG
copy are divided alike. The test part is dealt first, so that it is the same for ``paper`` and ``protocol``.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path

import torch

from bpl.data.catalog import CARDS, DataError
from bpl.data.folders import open_root, roots
from bpl.data.image_set import ImageSet
from bpl.machine.atomic import write_atomic

PARTS = ("train", "validation", "test")

# Percent of each class in validation and test; the rest is trained on.
_SHARES = {"paper": (0, 20), "protocol": (10, 20)}

_AITLAS_STEMS = {"ucm": "ucmerced", "aid": "aid", "nwpu": "resisc45", "nwpu-21": "resisc45", "nwpu-45": "resisc45"}
_SHARES_OF_SETS = ("nwpu-21", "nwpu-45")  # which hold some of the images that the files name
AITLAS_FOLDER = "splits/aitlas"
_AITLAS_PARTS = {"train": "train", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class Split:
    """Which image belongs to which part.

    Args:
        train: int64 indices into the image set, ascending.
        validation: int64 indices, possibly empty.
        test: int64 indices.
        digest: SHA-256 over the lines ``path,part``, in hex.
    """

    train: torch.Tensor
    validation: torch.Tensor
    test: torch.Tensor
    digest: str


def make_split(image_set: ImageSet, split: str, seed: int) -> Split:
    """Divide an image set.

    Args:
        image_set: The images; only their names and classes matter.
        split: ``"paper"`` (80/20, no validation), ``"protocol"`` (70/10/20), or ``"aitlas"`` (published 60/20/20 files
            under ``splits/aitlas/`` of the data root).
        seed: Deals the images differently; without effect for ``"aitlas"``.

    Returns:
        The split. Images of a known data set that have the same pixels lie on one side, and so do files of one stem.

    Raises:
        DataError: Unknown split, no split files, or a class with too few images.
    """
    if split == "aitlas":
        return _aitlas(image_set)
    if split not in _SHARES:
        raise DataError(f"unknown split {split!r}; allowed are {', '.join((*_SHARES, 'aitlas'))}.")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise DataError(f"the split's seed is {seed!r}; allowed are whole numbers.")
    validation_percent, test_percent = _SHARES[split]
    needed = 3 if validation_percent else 2
    part_of: dict[str, str] = {}
    for name, groups in _groups_by_class(image_set).items():
        total = sum(map(len, groups))
        if len(groups) < needed:
            raise DataError(
                f"class '{name}' has {len(groups)} different images; split '{split}' needs at least {needed} per class."
            )
        dealt = sorted(groups, key=lambda group: _rank(seed, group))
        for part, percent in (("test", test_percent), ("validation", validation_percent)):
            if not percent:
                continue
            room = max(1, (total * percent + 50) // 100)
            # Groups left for the parts to come: two behind the test if there are, so that both splits have the same.
            later = min(2, len(groups) - 1) if part == "test" else 1
            taken = []
            for group in dealt:
                if len(group) <= room and len(dealt) - len(taken) > later:  # twins that do not fit go on, whole
                    room -= len(group)
                    taken.append(group)
            taken = taken or dealt[:1]  # nothing but twins, more of them than there is room for
            dealt = [group for group in dealt if group not in taken]
            part_of |= {image: part for group in taken for image in group}
        for group in dealt:
            part_of.update(dict.fromkeys(group, "train"))
    return _split_from(image_set, part_of)


def write_split(path: str | Path, image_set: ImageSet, split: Split) -> None:
    """Write a split down, one line ``path,part`` per image.

    Args:
        path: The text file; its folder must exist.
        image_set: The images that the split divides.
        split: The split.

    Raises:
        OSError: The file cannot be written; an older one stays as it was.
    """
    part_of = {image_set.files[i]: part for part in PARTS for i in getattr(split, part).tolist()}
    write_atomic(path, _as_text(part_of).encode())


def read_split(path: str | Path, image_set: ImageSet) -> Split:
    """Read a split that `write_split` wrote.

    Args:
        path: The text file.
        image_set: The images that it divides; extensions need not agree.

    Returns:
        The split.

    Raises:
        DataError: A line cannot be read, names an image twice or one that is not in the set, or a part is empty.
        OSError: The file cannot be read.
    """
    names = set(image_set.files)
    name_of = {_stem(name): name for name in image_set.files}
    part_of: dict[str, str] = {}
    for number, line in enumerate(_lines(Path(path)), start=1):
        file, _, part = line.rpartition(",")  # a file name may contain a comma, a part cannot
        if part not in PARTS:
            raise DataError(
                f"line {number} of '{path}' is {line!r}; allowed is 'class/file,part' with a part of {PARTS}."
            )
        name = file if file in names else name_of.get(_stem(file))
        if name is None:
            raise DataError(f"line {number} of '{path}' names '{file}', which is not among the {len(names)} images.")
        if name in part_of:
            raise DataError(f"line {number} of '{path}' names '{file}' a second time.")
        part_of[name] = part
    return _split_from(image_set, part_of)


def _stem(file: str) -> str:
    """``class/filename`` without the extension."""
    return os.path.splitext(file)[0]


def _rank(seed: int, group: tuple[str, ...]) -> str:
    """Where a group of images stands in the order of dealing."""
    return hashlib.sha256(f"{seed}:{_stem(group[0])}".encode()).hexdigest()


def _groups_by_class(image_set: ImageSet) -> dict[str, list[tuple[str, ...]]]:
    """Per class, the images in groups that must stay together; most groups have one member.

    Two files that differ in the extension only are taken for one image stored twice.
    """
    card = CARDS.get(image_set.name) if image_set.source == "real" else None
    twin = {stem: group[0] for group in (card.same_pixels if card else ()) for stem in group}
    members: dict[str, dict[str, list[str]]] = {name: {} for name in image_set.classes}
    for file, label in sorted(zip(image_set.files, image_set.labels.tolist(), strict=True)):
        stem = _stem(file)
        members[image_set.classes[label]].setdefault(twin.get(stem, stem), []).append(file)
    return {name: [tuple(group) for group in groups.values()] for name, groups in members.items()}


def _aitlas(image_set: ImageSet) -> Split:
    """The AiTLAS Benchmark Arena's split. Of a share of the set, lines whose images are not in it are skipped."""
    if image_set.name not in _AITLAS_STEMS or image_set.source != "real":
        raise DataError(
            f"there is no 'aitlas' split of the {image_set.source} set '{image_set.name}'; "
            f"allowed are the real images of {', '.join(_AITLAS_STEMS)}, or the splits {', '.join(_SHARES)}."
        )
    files = aitlas_files(image_set.name, image_set.root)
    if not files:
        looked = ", ".join(f"'{root / AITLAS_FOLDER}'" for root in (image_set.root, *roots()) if root is not None)
        raise DataError(f"no split files {', '.join(_aitlas_names(image_set.name).values())} in {looked}.")
    known = {_stem(file) for file in image_set.files}
    whole = image_set.name not in _SHARES_OF_SETS and len(image_set.files) == CARDS[image_set.name].images_total
    part_of_stem: dict[str, str] = {}
    for part, file in files.items():
        stems = [_stem(line.rpartition(",")[0]) for line in _lines(file) if line.strip()]
        unknown = [stem for stem in stems if stem not in known]
        if whole and unknown:
            raise DataError(f"'{file}' names {unknown[0]!r}, which is not among the {len(known)} images.")
        if twice := [stem for stem in stems if part_of_stem.get(stem, part) != part]:
            raise DataError(f"'{file}' names {twice[0]!r}, which is in the {part_of_stem[twice[0]]} part too.")
        if known.isdisjoint(stems):
            raise DataError(f"'{file}' names none of the images of '{image_set.name}'.")
        part_of_stem.update(dict.fromkeys(stems, part))
    part_of = {file: part_of_stem[_stem(file)] for file in image_set.files if _stem(file) in part_of_stem}
    _drop_leaks(part_of, _groups_by_class(image_set).values())
    return _split_from(image_set, part_of)


def _lines(file: Path | Traversable) -> list[str]:
    """The lines of a text file, which a spreadsheet may have marked as UTF-8."""
    try:
        return file.read_bytes().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"'{file}' is no text in UTF-8: {error}.") from error


def aitlas_files(name: str, root: Path | None) -> dict[str, Traversable]:
    """The published split files of a data set.

    Args:
        name: The data set.
        root: The data root to look in first; the usual ones follow.

    Returns:
        The file of each part, from the first root that has all three; empty where there are none.
    """
    names = _aitlas_names(name)
    for candidate in (root, *roots()) if names else ():
        if candidate is not None:
            folder = open_root(candidate) / AITLAS_FOLDER
            files = {part: folder / file for part, file in names.items()}
            if all(file.is_file() for file in files.values()):
                return files
    return {}


def _aitlas_names(name: str) -> dict[str, str]:
    """The name of each part's file; empty for a data set that was not published."""
    stem = _AITLAS_STEMS.get(name)
    return {part: f"{stem}_{suffix}.csv" for part, suffix in _AITLAS_PARTS.items()} if stem else {}


def _drop_leaks(part_of: dict[str, str], classes: Iterable[list[tuple[str, ...]]]) -> None:
    """Where a published split tears twins apart, leave out those that would leak: the test part stays as published."""
    for groups in classes:
        for group in groups:
            parts = [part_of[file] for file in group if file in part_of]
            kept = max(parts, key=PARTS.index, default=None)
            for file in group:
                if file in part_of and part_of[file] != kept:
                    del part_of[file]


def _split_from(image_set: ImageSet, part_of: Mapping[str, str]) -> Split:
    """Turn ``file -> part`` into index tensors, after checking that the parts can be used."""
    counts = Counter(part_of.values())
    for part in ("train", "test"):
        if not counts[part]:
            raise DataError(f"the {part} part of the split of '{image_set.name}' is empty.")
    indices = {part: [i for i, file in enumerate(image_set.files) if part_of.get(file) == part] for part in PARTS}
    return Split(
        *(torch.tensor(indices[part], dtype=torch.int64) for part in PARTS),
        digest=hashlib.sha256(_as_text(part_of).encode()).hexdigest(),
    )


def _as_text(part_of: Mapping[str, str]) -> str:
    """The lines ``path,part``, sorted: what is written down and what the digest covers."""
    return "".join(f"{file},{part}\n" for file, part in sorted(part_of.items()))
