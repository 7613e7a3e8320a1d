"""From the network that a run left to files that run elsewhere: ONNX, checked on images, and an 8-bit version of it."""

import contextlib
import dataclasses
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bpl.data import DataError, ImageSet, Split, load_images, make_split, normalise
from bpl.data.synthetic import draw_scenes
from bpl.deployment.predict import check_logits, read_image_size, read_use
from bpl.deployment.quantise import calibration_part, quantise_onnx
from bpl.deployment.shipped import DEMO_FOLDER, Shipped
from bpl.export import ModelFileError, check_finished, describe_use, exports_of, load_model, read_description
from bpl.machine.atomic import write_together
from bpl.onnx_files import onnx_bytes, open_session
from bpl.records import Record, full_config, load_record
from bpl.shown import flat
from bpl.train import predict, top1

TOLERANCE = 1e-4  # between logits, absolute; relative to the largest logit where that is above 1
DRAWN_PER_CLASS = 5  # scenes of each of 21 classes, where the run's own images are not at hand
NEEDED = ("onnx", "onnxscript", "onnxruntime")  # the packages of the extra [export]


class ExportError(ValueError):
    """An export that was refused; the message says why in one sentence, and no file was written."""


class NotTheSameError(ArithmeticError):
    """An exported network that computes something else than the one it was made from; no file was written."""


# -- the images to check on ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class CheckImages:
    """What an export is checked on.

    Attributes:
        set: images, with the mean and deviation that the network was trained with.
        split: their parts: the test part is checked on, the training part calibrates.
        what: the test part in words.
        own: whether they are the run's own, so that an accuracy on them means something.
    """

    set: ImageSet
    split: Split
    what: str
    own: bool


def images_for(record: Record | None, description: dict[str, Any], image_size: int, data: str = "auto") -> CheckImages:
    """The run's own images where they are at hand, else drawn scenes.

    They count as the run's own only where the digests of images and split are those in its record.

    Args:
        record: the run's record; None where there is none.
        description: the model's, for mean and deviation.
        image_size: height and width in pixels.
        data: where real images are looked for: ``auto``, or a data root.

    Returns:
        The images.

    Raises:
        DataError: ``data`` names a root without the run's images.
    """
    if record is None:
        why = "no record says which images the network was trained on; where there is one, name it in place of the run"
        return _drawn(description, image_size, why)
    config, source = full_config(record), record.data["source"]
    where = "synthetic" if source == "synthetic" else "real" if data == "auto" else data
    name = record.data["name"]
    try:
        images = load_images(config["dataset"], image_size, where, progress=False)
    except DataError:
        if data != "auto":
            raise
        return _drawn(description, image_size, f"the images of {name} are not at hand")
    try:
        split = make_split(images, config["split"], config["seed"])
    except DataError as error:
        if data != "auto":
            raise
        return _drawn(description, image_size, f"the images of {name} cannot be split as the run's were: {flat(error)}")
    if (images.digest, split.digest) != (record.data["digest"], record.data["split_digest"]):
        return _drawn(description, image_size, f"the images of {images.name} at hand are not those of the run")
    return CheckImages(images, split, f"the run's {len(split.test)} test images of {images.name} ({source})", own=True)


def _drawn(description: dict[str, Any], image_size: int, why: str) -> CheckImages:
    """A few drawn scenes, all in the test part: good enough to compare two programs, not to measure accuracy."""
    scenes, labels = draw_scenes(image_size, DRAWN_PER_CLASS, seed=1)  # (n, H, W, 3), (n,)
    pixels = torch.from_numpy(np.ascontiguousarray(scenes.transpose(0, 3, 1, 2)))  # (n, 3, H, W)
    mean, std = description.get("mean") or (0.0, 0.0, 0.0), description.get("std") or (1.0, 1.0, 1.0)
    images = ImageSet(
        "synthetic", "synthetic", pixels, torch.from_numpy(labels), (), (), "", tuple(mean), tuple(std), None
    )
    none = torch.arange(0)
    return CheckImages(
        images, Split(none, none, torch.arange(len(pixels)), ""), f"{len(pixels)} drawn scenes: {why}", own=False
    )


# -- the check ----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Agreement:
    """How two networks compare on the same images.

    Attributes:
        images: number of images.
        same_top1: share of them with the same predicted class.
        largest_difference: between logits, absolute.
        largest_logit: of the first network, absolute.
    """

    images: int
    same_top1: float
    largest_difference: float
    largest_logit: float

    @property
    def exact(self) -> bool:
        """Whether the two are one function to float rounding: the same class everywhere, logits to `TOLERANCE`."""
        return self.same_top1 == 1.0 and self.largest_difference <= TOLERANCE * max(1.0, self.largest_logit)


def compare(logits: Tensor, others: Tensor) -> Agreement:
    """Compare two networks by their logits, (n, classes) each, on the same images."""
    return Agreement(
        images=len(logits),
        same_top1=float((logits.argmax(1) == others.argmax(1)).double().mean()),
        largest_difference=float((logits - others).abs().max()),
        largest_logit=float(logits.abs().max()),
    )


def as_callable(content: bytes) -> Callable[[Tensor], Tensor]:
    """An ONNX file's content as a function from normalised images (B, 3, H, W) to logits (B, classes)."""
    session = open_session(content, Path("the exported network"))
    return lambda images: torch.from_numpy(session.run(None, {"images": images.contiguous().numpy()})[0])


# -- the export ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Exported:
    """What an export wrote and found.

    Attributes:
        files: what was written, in the order: ONNX, 8-bit ONNX where asked for, weights and description where they
            went to another folder, report.
        report: content of the report: what it was checked on, and what came out.
        removed: files of an earlier export that were removed, since they are of another network.
    """

    files: tuple[Path, ...]
    report: dict[str, Any]
    removed: tuple[Path, ...] = ()


def export(shipped: Shipped, *, out: Path | None = None, int8: bool = False, data: str = "auto") -> Exported:
    """Write a shipped network as ONNX, checked against the PyTorch network, and as 8-bit ONNX where asked for.

    Everything is computed and checked before the first file is written. Where no 8-bit network is asked for, one that
    an earlier export left in the folder goes in the same step: nothing would say that it is of another network.

    Args:
        shipped: the network and its run's record file.
        out: folder to write into, made where missing; None for the folder of the weights.
        int8: write the 8-bit network too, calibrated on images of the run's training part.
        data: where real images are looked for: ``auto``, or a data root.

    Returns:
        The files and the report.

    Raises:
        ModelFileError: the network cannot be read, or nobody could classify with what its description says.
        RecordError: the record cannot be used.
        ValueError: it has partners or masked channels, or there are no images to calibrate 8 bits on.
        NotTheSameError: ONNX computes something else.
        OSError: a file could not be written; none is left then.
    """
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise ExportError(f"exporting needs {', '.join(missing)}: pip install -e '.[export]' in the repository")
    description = read_description(shipped.weights)
    if not isinstance(description.get("arch"), dict):
        raise ModelFileError(
            f"{shipped.weights} names no network of build_model: export it from Python, bpl.export_onnx"
        )
    image_size = read_image_size(description, shipped.weights)
    given = read_use(description, shipped.weights, whole=False)
    folder = shipped.weights.parent if out is None else out
    if folder.resolve() == DEMO_FOLDER.resolve():
        raise ExportError("the demo network lies in the installed library: name another folder to write to with --out")
    network = load_model(shipped.weights).float()
    check_finished(network)
    record = None if shipped.record is None else load_record(shipped.record)
    images = images_for(record, description, image_size, data)
    if int8 and not images.own:
        raise ExportError(
            f"8 bits are calibrated on images of the run's training part, but there are only {images.what}"
        )

    logits = predict(network, images.set, images.split.test)
    check_logits(logits, given.classes, shipped.weights)
    content = onnx_bytes(network, image_size, describe_use(network, given.classes, given.mean, given.std))
    onnx_logits = predict(as_callable(content), images.set, images.split.test)
    agreement = compare(logits, onnx_logits)
    if not agreement.exact:
        raise NotTheSameError(
            f"the ONNX network is not the PyTorch one: on {images.what} {100 * agreement.same_top1:.2f} % of the "
            f"classes are the same, and logits differ by up to {agreement.largest_difference:.1e}"
        )
    onnx_name, int8_name, report_name = (file.name for file in exports_of(shipped.weights))
    files = {onnx_name: content}
    report: dict[str, Any] = {
        "network": shipped.weights.parent.name if record is None else record.name,
        "checked_on": images.what,
        "onnx": dataclasses.asdict(agreement) | {"bytes": len(content)},
    }
    if images.own:
        labels = images.set.labels[images.split.test]
        report["accuracy"] = {"record": record.accuracy["test"], "onnx": top1(onnx_logits, labels)}
    if int8:
        part = calibration_part(images.split.train)
        pixels = normalise(images.set.images[part], images.set.mean, images.set.std)
        files[int8_name] = quantised = quantise_onnx(content, pixels)
        int8_logits = predict(as_callable(quantised), images.set, images.split.test)
        report["int8"] = dataclasses.asdict(compare(logits, int8_logits)) | {
            "bytes": len(quantised),
            "calibrated_on": f"{len(part)} training images of {images.set.name} ({images.set.source})",
        }
        report["accuracy"]["int8"] = top1(int8_logits, labels)
    if folder.resolve() != shipped.weights.parent.resolve():
        for file in (shipped.weights, shipped.weights.with_suffix(".json")):
            files[file.name] = file.read_bytes()
    files[report_name] = json.dumps(report, indent=1).encode()
    stale = () if int8 else (folder / int8_name,)
    removed = tuple(file for file in stale if file.exists())
    return Exported(_write(folder, files, stale), report, removed)


def _write(folder: Path, files: dict[str, bytes], stale: tuple[Path, ...]) -> tuple[Path, ...]:
    """Write files into a folder and remove stale ones, all or none; folders that were made for them go with them."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]  # the innermost first
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_together({folder / name: content for name, content in files.items()}, gone=stale)
    except BaseException:
        for place in made:
            with contextlib.suppress(OSError):
                place.rmdir()
        raise
    return tuple(folder / name for name in files)
