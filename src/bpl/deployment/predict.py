"""Classify image files with a network that was shipped: the pixels are decoded as they were for its training."""

import csv
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor

from bpl.data import DataError, normalise
from bpl.data.catalog import LARGEST_IMAGE
from bpl.data.folders import DECODED_SUFFIXES, decode
from bpl.deployment.shipped import find_shipped
from bpl.export import FORMAT, ModelFileError, load_model, parse_description, read_description
from bpl.onnx_files import open_session
from bpl.records import RecordError
from bpl.shown import check_whole, flat, shown
from bpl.use import Use, check_use

TOP = 5  # classes in a row
CHANNELS = 3  # images are read as red, green and blue
_WORKERS = 4  # threads that decode; Pillow releases the interpreter lock


@dataclass(frozen=True)
class Classifier:
    """A network with all that stands between a file and a class name.

    Attributes:
        source: the file it was read from.
        classes: class names, in the order of the logits.
        mean: per-channel mean of the training images, 0..1.
        std: per-channel standard deviation of the training images, 0..1.
        image_size: height and width in pixels.
        network: normalised images (B, 3, H, W) float32 -> logits (B, classes).
    """

    source: Path
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    network: Callable[[Tensor], Tensor]

    def probabilities(self, pixels: Tensor) -> Tensor:
        """Class probabilities of decoded images.

        Args:
            pixels: (B, 3, H, W) uint8, of the network's image size.

        Returns:
            (B, classes) float64; the softmax of the logits.

        Raises:
            ModelFileError: the logits are not finite, or not as many as there are class names.
        """
        logits = self.network(normalise(pixels, self.mean, self.std)).double()
        check_logits(logits, self.classes, self.source)
        return logits.softmax(1)


def load_classifier(model: str | Path, *, work: Path | None = None) -> Classifier:
    """Read a network to classify images with.

    Args:
        model: an ONNX file that `bpl.export_onnx` wrote, or whatever `bpl.deployment.shipped.find_shipped` finds: a
            run's name, record, folder or safetensors file, or ``demo``.
        work: folder of the runs' networks; None for ``_build/runs``.

    Returns:
        The classifier, on the CPU.

    Raises:
        ModelFileError: missing, damaged, of another version, or without what classifying needs.
        RecordError: a record was named, and it cannot be used.
    """
    try:
        classifier = _from_onnx(Path(model)) if Path(model).suffix == ".onnx" else _from_weights(model, work)
        size = classifier.image_size
        # One grey image now, so that a network that does not fit its description says so before a line is written.
        classifier.probabilities(torch.full((1, 3, size, size), 128, dtype=torch.uint8))
    except (ModelFileError, RecordError):
        raise
    except Exception as error:  # layers that do not fit each other; onnxruntime's exceptions have no public base class
        raise ModelFileError(f"network {model} cannot be run: {flat(error)}") from error
    return classifier


def _from_weights(model: str | Path, work: Path | None) -> Classifier:
    """A classifier from safetensors and their description, run by PyTorch."""
    weights = find_shipped(model, work=work).weights
    description = read_description(weights)
    use = read_use(description, weights)
    image_size = read_image_size(description, weights)
    network = load_model(weights).float()

    @torch.inference_mode()
    def run(images: Tensor) -> Tensor:
        return network(images)

    return Classifier(weights, use.classes, use.mean, use.std, image_size, run)


# -- what a description must hold, whether images are classified with it or an export is made of it -----------------
def read_use(description: dict[str, Any], source: Path, *, whole: bool = True) -> Use:
    """Classes, mean and deviation from a description, which may hold anything.

    Args:
        description: the model's, as `bpl.export.read_description` gives it.
        source: the file it is of, for messages.
        whole: refuse a description that leaves something open, as `bpl.save_model` may; what it does hold is checked
            either way.

    Returns:
        What it holds.

    Raises:
        ModelFileError: something is lacking or cannot be.
    """
    given = {key: description.get(key) for key in ("classes", "mean", "std")}
    if whole and not given["classes"]:
        raise ModelFileError(f"{source} does not name its classes: save it with classes, mean and std")
    try:
        use = check_use(**given)
    except ValueError as error:
        raise ModelFileError(f"{source} cannot be used: {error}") from error
    for key, values in (("mean", use.mean), ("std", use.std)):
        if (whole or values is not None) and len(values or ()) != CHANNELS:
            raise ModelFileError(
                f"{source} has {key} {shown(given[key])}: three numbers are needed, save it with mean and std"
            )
    return use


def read_image_size(description: dict[str, Any], source: Path) -> int:
    """Height and width of a network's images in pixels, from its description, which may hold anything.

    Args:
        description: the model's.
        source: the file it is of, for messages.

    Raises:
        ModelFileError: it names no network of `build_model`, or a size that cannot be.
    """
    arch = description.get("arch")
    if not isinstance(arch, dict):
        raise ModelFileError(f"{source} names no network of build_model: export it as ONNX from Python, and use that")
    return _possible_size(arch.get("image_size"), source)


def _possible_size(size: Any, source: Path) -> int:
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= LARGEST_IMAGE:
        raise ModelFileError(f"{source} takes images of {shown(size)} pixels: allowed are 1 to {LARGEST_IMAGE}")
    return size


def check_logits(logits: Tensor, classes: Sequence[str] | None, source: Path) -> None:
    """Refuse logits that no prediction can be made from.

    Args:
        logits: (B, classes).
        classes: class names; None where they are not known.
        source: the network's file, for messages.

    Raises:
        ModelFileError: they are not finite, or not as many as there are class names.
    """
    if logits.dim() != 2 or (classes is not None and logits.shape[1] != len(classes)):
        raise ModelFileError(f"{source} gives {logits.shape[-1]} logits for {len(classes or ())} classes")
    if not logits.isfinite().all():
        raise ModelFileError(f"{source} gives logits that are not finite: its weights are damaged")


def _from_onnx(path: Path) -> Classifier:
    """A classifier from an ONNX file, float or quantised, run by onnxruntime."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"network {path} cannot be read: {error}") from error
    session = open_session(content, path)
    metadata = session.get_modelmeta().custom_metadata_map
    if FORMAT not in metadata:
        raise ModelFileError(f"{path} has no metadata {FORMAT!r}: it was not written by this library")
    use = read_use(parse_description(metadata[FORMAT], path), path)
    inputs, outputs = session.get_inputs(), session.get_outputs()
    shape = inputs[0].shape
    if len(inputs) != 1 or len(shape) != 4 or shape[1] != 3 or not isinstance(shape[3], int) or shape[2] != shape[3]:
        raise ModelFileError(f"{path} does not take square images of one size: its input is {shape}")

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run([outputs[0].name], {inputs[0].name: images.numpy()})[0])

    return Classifier(path, use.classes, use.mean, use.std, _possible_size(shape[3], path), run)


# -- files --------------------------------------------------------------------------------------------------------
def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """The image files that a user means.

    Args:
        paths: files, taken whatever they are called, and folders, searched with all that is below them, through links
            too, for files with a suffix of a format that is decoded; hidden ones are passed over.

    Returns:
        The files, those of a folder sorted by their path, each once; links that lead nowhere are among them, since
        nobody can tell what is missing there.

    Raises:
        ValueError: no path, one that is not there, or a folder without images.
        OSError: a folder cannot be searched.
    """
    found: dict[Path, None] = {}
    if not (paths := [Path(path) for path in paths]):
        raise ValueError("no image was named: give files, or folders that hold some")
    for path in paths:
        name = shown(str(path))
        if path.is_dir():
            if not (below := sorted(_images_below(path))):
                wanted = ", ".join(sorted(DECODED_SUFFIXES))
                raise ValueError(f"folder {name} holds no images: {wanted} files are looked for")
            found |= dict.fromkeys(below)
        elif path.is_file():
            found[path] = None
        else:
            raise ValueError(f"{name} is neither a file nor a folder")
    return list(found)


def _images_below(top: Path) -> Iterator[Path]:
    """The visible images in a folder and all folders below, each folder once: links may lead to it twice or round."""
    waiting, linked, seen = deque([top]), deque(), set()
    while waiting or linked:
        folder = (waiting or linked).popleft()  # links last: what has a path of its own in the tree is called by it
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in sorted(folder.iterdir()):
            if entry.name.startswith((".", "__MACOSX")):
                continue
            if entry.is_dir():
                (linked if entry.is_symlink() else waiting).append(entry)
            elif _leads_nowhere(entry) or (entry.suffix.lower() in DECODED_SUFFIXES and entry.is_file()):
                yield entry


def _leads_nowhere(path: Path) -> bool:
    return path.is_symlink() and not os.path.exists(path)


def check_table(table: Path, model: str | Path, classifier: Classifier, images: Iterable[Path]) -> None:
    """Refuse to write a table over what it is made from.

    Args:
        table: the file to write.
        model: how the network was named.
        classifier: the network.
        images: the files to classify.

    Raises:
        ValueError: the table is one of the images or of the network's files, by whatever path.
    """
    if not os.path.exists(table):
        return
    network = (Path(model), *(classifier.source.with_suffix(end) for end in (".safetensors", ".json", ".onnx")))
    for what, files in (("a file of the network", (classifier.source, *network)), ("an image to classify", images)):
        if any(os.path.exists(file) and os.path.samefile(file, table) for file in files):
            raise ValueError(f"--csv is {shown(str(table))}: that is {what}, and a table would destroy it")


@dataclass(frozen=True)
class Prediction:
    """What a network says about one file.

    Attributes:
        file: the image.
        classes: the most probable classes, at most `TOP`, most probable first.
        probabilities: theirs.
        problem: why the file could not be classified, in one sentence; None where it was.
    """

    file: Path
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    problem: str | None = None


def classify(classifier: Classifier, files: Sequence[Path], batch_size: int = 64) -> Iterator[Prediction]:
    """Classify image files.

    Args:
        classifier: the network.
        files: the images, of any size and mode: turned upright, cut to the central square and resized as for training.
        batch_size: images at once.

    Returns:
        One prediction a file, in their order, as they are made; a file that cannot be decoded says so and stops
        nothing.

    Raises:
        ValueError: a batch size below 1.
    """
    check_whole("batch_size", batch_size, 1)
    return _in_batches(classifier, files, batch_size)


def _in_batches(classifier: Classifier, files: Sequence[Path], batch_size: int) -> Iterator[Prediction]:
    def read(file: Path) -> np.ndarray | str:
        if _leads_nowhere(file):
            return f"link {shown(str(file))} leads nowhere"
        try:
            return decode(file, classifier.image_size)
        except DataError as error:
            return str(error)

    with ThreadPoolExecutor(_WORKERS) as pool:
        for start in range(0, len(files), batch_size):
            batch = files[start : start + batch_size]
            with warnings.catch_warnings():  # set once around the threads: filters belong to the process
                warnings.filterwarnings("ignore", module=r"PIL\.")
                decoded = list(pool.map(read, batch))
            pixels = [image for image in decoded if not isinstance(image, str)]
            rows = iter(_ranked(classifier, pixels))
            for file, image in zip(batch, decoded, strict=True):
                yield Prediction(file, problem=image) if isinstance(image, str) else Prediction(file, *next(rows))


def _ranked(classifier: Classifier, pixels: list[np.ndarray]) -> list[tuple[tuple[str, ...], tuple[float, ...]]]:
    """The most probable classes of each image (H, W, 3), and their probabilities."""
    if not pixels:
        return []
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()  # (B, 3, H, W)
    best, which = classifier.probabilities(images).topk(min(TOP, len(classifier.classes)), dim=1)
    return [
        (tuple(classifier.classes[label] for label in labels), tuple(values))
        for labels, values in zip(which.tolist(), best.tolist(), strict=True)
    ]


def write_table(
    predictions: Iterable[Prediction], classes: int, file: TextIO, complain: Callable[[str], object]
) -> int:
    """Write predictions as CSV: file, class 1, probability 1, class 2, ...

    Args:
        predictions: what to write, one line each.
        classes: how many the network knows; there are columns for at most `TOP` of them.
        file: where to.
        complain: called with the problem of each file that could not be classified; such a file has no line.

    Returns:
        How many files could not be classified.
    """
    table, failed = csv.writer(file, lineterminator="\n"), 0
    ranks = range(1, min(TOP, classes) + 1)
    table.writerow(["file", *(name for rank in ranks for name in (f"class_{rank}", f"probability_{rank}"))])
    for prediction in predictions:
        if prediction.problem is not None:
            complain(prediction.problem)
            failed += 1
            continue
        pairs = zip(prediction.classes, prediction.probabilities, strict=True)
        table.writerow([prediction.file, *(text for name, value in pairs for text in (name, f"{value:.6f}"))])
    return failed
