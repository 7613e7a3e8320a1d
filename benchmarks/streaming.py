"""How fast images come from the disk, beside from memory: batches alone, and whole epochs of training.

    python benchmarks/streaming.py [--images 4000] [--image-size 64] [--batch 32] [--rounds 5] [--folder FOLDER]
    python benchmarks/streaming.py --out data/streaming.json        # what the page "From a laptop to a cluster" shows

A tree of JPEGs of noise, 256 x 256 each, is made in a folder that goes again. The same batches, in the same order,
are then read three ways, in turns, so that a drift of the machine's speed hits all alike:

    memory   all pixels as one tensor, as for any set that fits
    rows     worker processes read decoded pixels from one file (`bpl.data.streamed.DecodedRows`)
    files    worker processes decode the JPEGs, where the disk has no room for decoded pixels (`ImageFiles`)

Reading from a file that was just written measures the system's cache of files as much as its disk: a set much larger
than memory reads at the speed of the disk.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from steps import as_file

import bpl
from bpl.data import augment, batches, load_images, normalise
from bpl.data.folders import list_images
from bpl.data.streamed import ImageFiles, StreamedImages, workers
from bpl.machine.this_machine import machine
from bpl.measure import in_turns, quartiles

CLASSES = 20
STORED = 256  # height and width of a JPEG, in pixels


def make_tree(folder: Path, images: int) -> Path:
    """A tree of `images` JPEGs, smooth noise, which takes as long to decode as a photograph."""
    chance = np.random.default_rng(0)
    for label in range(CLASSES):
        place = folder / f"class_{label:02d}"
        place.mkdir()
        for index in range(images // CLASSES):
            coarse = Image.fromarray(chance.integers(0, 255, (32, 32, 3), np.uint8))
            coarse.resize((STORED, STORED), Image.Resampling.BICUBIC).save(place / f"{index:05d}.jpg", quality=90)
    return folder


def load(tree: Path, image_size: int, limit: str) -> tuple[bpl.data.ImageSet, float]:
    """The images within a memory limit, and how many seconds the first look at them took."""
    os.environ["BPL_MEMORY"] = limit
    begun = time.perf_counter()
    return load_images(str(tree), image_size, progress=False), time.perf_counter() - begun


def compare(folder: Path, images: int, image_size: int, batch: int, rounds: int) -> dict:
    """What was measured, and under which conditions."""
    os.environ["BPL_CACHE"] = str(folder / "cache")
    (folder / "tree").mkdir()
    tree = make_tree(folder / "tree", images)
    rows, first_rows = load(tree, image_size, "0")
    memory, first_memory = load(tree, image_size, "1TB")
    files = ImageFiles(list_images(tree), image_size)
    sources = {
        "memory": memory.images,
        "rows": rows.images,
        "files": StreamedImages(files, tuple(memory.images.shape)),
    }
    model = bpl.build_model("resnet18", CLASSES, image_size=image_size, width=32).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, fused=True)

    def read(pixels: object) -> Callable[[], None]:
        def once() -> None:
            for _ in batches(pixels, memory.labels, torch.arange(len(memory.labels)), batch, 0):
                pass

        return once

    part = torch.arange(len(memory.labels))[:: max(1, len(memory.labels) // 1000)]  # an epoch of some 1,000 images

    def train(pixels: object) -> Callable[[], None]:
        def once() -> None:
            chance = torch.Generator().manual_seed(0)
            for x, y in batches(pixels, memory.labels, part, batch, 0):
                x = normalise(augment(x, "nadir", image_size, chance), memory.mean, memory.std)
                with torch.autocast("cpu", torch.bfloat16):
                    loss = torch.nn.functional.cross_entropy(model(x.contiguous(memory_format=torch.channels_last)), y)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()

        return once

    tasks = {
        "batches alone": (len(memory.labels), {name: read(pixels) for name, pixels in sources.items()}),
        "training, ResNet-18 width 32": (len(part), {name: train(pixels) for name, pixels in sources.items()}),
    }
    measured: dict[str, dict] = {}
    for what, (seen, runs) in tasks.items():
        times = in_turns(runs, rounds)
        measured[what] = {
            name: {
                "images_a_second": 1e3 * seen / quartiles(values)[1],
                "times_memory": quartiles([a / b for a, b in zip(values, times["memory"], strict=True)]),
            }
            for name, values in times.items()
        }
    return {
        "images": len(memory.labels),
        "image_size": image_size,
        "batch": batch,
        "machine": machine() | {"date": time.strftime("%Y-%m-%d")},
        "workers": workers(),
        "rounds": rounds,
        "first_look_s": {"memory": first_memory, "rows": first_rows},
        "measured": measured,
    }


def report(result: dict) -> str:
    """The same as text."""
    first, size, threads = result["first_look_s"], result["image_size"], result["machine"]["threads"]
    lines = [
        f"{result['images']} images at {size} x {size}, batch {result['batch']}, {threads} threads,"
        f" {result['workers']} workers, {result['rounds']} rounds; first look: memory {first['memory']:.1f} s,"
        f" rows {first['rows']:.1f} s"
    ]
    for what, ways in result["measured"].items():
        lines.append(f"{what}:")
        for name, seen in ways.items():
            low, middle, high = seen["times_memory"]
            lines.append(
                f"  {name:7} {seen['images_a_second']:9.0f} images/s, {middle:.2f} [{low:.2f}, {high:.2f}]"
                " of the time from memory"
            )
    return "\n".join(lines)


WORDS = {
    "memory": "In memory",
    "rows": "On the disk, decoded once into a file",
    "files": "On the disk, decoded anew in every epoch",
}


def rows(result: dict) -> str:
    """The same as the table of the book, without its head."""
    alone, training = result["measured"].values()
    lines = []
    for name, words in WORDS.items():
        low, middle, high = training[name]["times_memory"]
        times = "1" if name == "memory" else f"{middle:.2f} [{low:.2f}, {high:.2f}]"
        speeds = (f"{ways[name]['images_a_second']:,.0f}" for ways in (alone, training))
        lines.append(f"| {words} | {' | '.join(speeds)} | {times} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=None, help="JSON file for what was measured")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bpl-streaming-", dir=options.folder) as folder:
        result = compare(Path(folder), options.images, options.image_size, options.batch, options.rounds)
    print(report(result))
    if options.out is not None:
        as_file(result, options.out)
        print(rows(result))


if __name__ == "__main__":
    main()
