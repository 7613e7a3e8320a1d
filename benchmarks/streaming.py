"""How fast images come from the disk, beside from memory: batches alone, and whole epochs of training.

    python benchmarks/streaming.py [--images 4000] [--image-size 64] [--batch 32] [--rounds 5] [--folder FOLDER]

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

import bpl
from bpl.data import augment, batches, load_images, normalise
from bpl.data.folders import list_images
from bpl.data.streamed import ImageFiles, StreamedImages, workers
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


def compare(folder: Path, images: int, image_size: int, batch: int, rounds: int) -> str:
    """The report, as text."""
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

    lines = [
        f"{len(memory.labels)} images at {image_size} x {image_size}, batch {batch}, {torch.get_num_threads()} threads,"
        f" {workers()} workers, {rounds} rounds; first look: memory {first_memory:.1f} s, rows {first_rows:.1f} s"
    ]
    tasks = {
        "batches alone": (len(memory.labels), {name: read(pixels) for name, pixels in sources.items()}),
        "training, ResNet-18 width 32": (len(part), {name: train(pixels) for name, pixels in sources.items()}),
    }
    for what, (seen, runs) in tasks.items():
        times = in_turns(runs, rounds)
        lines.append(f"{what}:")
        for name, values in times.items():
            low, middle, high = quartiles([a / b for a, b in zip(values, times["memory"], strict=True)])
            lines.append(
                f"  {name:7} {1e3 * seen / quartiles(values)[1]:9.0f} images/s, {middle:.2f} [{low:.2f}, {high:.2f}]"
                " of the time from memory"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bpl-streaming-", dir=options.folder) as folder:
        print(compare(Path(folder), options.images, options.image_size, options.batch, options.rounds))


if __name__ == "__main__":
    main()
