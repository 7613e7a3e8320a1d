"""Make the demo network that comes with the library (`bpl predict demo IMAGE...`) from a recorded run.

    python workflow/demo.py                                    # seed 0 of BPL on UC Merced at 74 % fewer MACs
    python workflow/demo.py bpl-resnet18-r0.78-s0-1a2b3c4d     # a run of this name

The run is not chosen by its accuracy: it is seed 0. Its weights are stored in half precision, which halves the file;
what that and 8 bits do to the predicted classes is measured on the run's own test images, which must be at hand, and
written on the card. A run that is not recorded yet is made first, which takes minutes.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from pathlib import Path

import bpl
from bpl.config import RunConfig
from bpl.data import CARDS
from bpl.deployment.deploy import export, images_for
from bpl.deployment.shipped import DEMO_FOLDER, Shipped, find_shipped
from bpl.export import read_description, save_model
from bpl.machine.atomic import write_together
from bpl.records import load_record
from bpl.train import predict

ROW = RunConfig(dataset="ucm", method="bpl", ratio=0.78, seed=0)  # 74 % fewer MACs, as the paper's headline
LARGEST_CHANGE = 0.01  # share of test images that half precision may give another class


def make_demo(name: str, folder: Path = DEMO_FOLDER) -> dict:
    """Write the demo network of a run.

    Args:
        name: the run, in any form that `bpl export` takes.
        folder: where to.

    Returns:
        The card.

    Raises:
        ValueError: no record or no images of the run at hand, drawn scenes, or classes that half precision changes.
    """
    shipped = find_shipped(name)
    description = read_description(shipped.weights)
    record = None if shipped.record is None else load_record(shipped.record)
    images = images_for(record, description, description["arch"]["image_size"])
    if not images.own or images.set.source != "real":
        raise ValueError(f"the demo network is checked on its run's real test images, but there are only {images.what}")
    network, labels = bpl.load_model(shipped.weights), images.set.labels[images.split.test]
    logits = predict(network.float(), images.set, images.split.test)
    network.half()
    rounded = predict(copy.deepcopy(network).float(), images.set, images.split.test)
    changed = int((logits.argmax(1) != rounded.argmax(1)).sum())
    if changed > LARGEST_CHANGE * len(labels):
        raise ValueError(f"half precision changes the class of {changed} of {len(labels)} test images")
    with tempfile.TemporaryDirectory() as place:
        use = {key: description[key] for key in ("classes", "mean", "std")}
        weights = save_model(network, Path(place) / "model", **use)
        exported = export(Shipped(weights, shipped.record), int8=True).report
        files = {folder / file.name: file.read_bytes() for file in (weights, weights.with_suffix(".json"))}
    data = CARDS[images.set.name]
    card = {
        "run": record.name,
        "command": RunConfig.from_dict(record.config).command(),
        "accuracy": record.accuracy["test"],
        "accuracy_of": f"the run's record: top-1 in percent on its {len(labels)} test images, last epoch's weights",
        "classes_changed_by_half_precision": changed,
        "bytes": len(files[folder / "model.safetensors"]),
        "exported": exported,
        "trained_on": f"{data.title}, {len(images.split.train)} images: {data.citation}",
        "licence": f"the weights as the library (MIT); the images they were trained on: {data.licence}",
        "made_by": "workflow/demo.py",
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_together(files | {folder / "card.json": json.dumps(card, indent=1).encode() + b"\n"})
    return card


def main() -> None:
    """Read the command line and make the demo network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", help="a run's name; the run of the row above if none is named")
    arguments = parser.parse_args()
    try:
        card = make_demo(arguments.run or bpl.run(ROW).name)
    except ValueError as error:
        parser.exit(2, f"{error}\n")
    print(f"{DEMO_FOLDER}: {card['run']}, top-1 {card['accuracy']:.2f} %")


if __name__ == "__main__":
    main()
