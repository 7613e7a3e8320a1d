"""Drawn scenes: the data set that needs no files, 21 classes of aerial images modelled on UC Merced's.

Each image is painted by its class's painter (``scene_land``, ``scene_settlements``, ``scene_transport``: a small
illustrated dictionary, one short function a word) on a supersampled canvas, reduced, and then photographed: light
falloff, a cloud's shadow, haze, a colour cast, exposure and sensor noise. Its random numbers come from
``(seed, class, index)`` alone, so that it is the same image whatever else is drawn beside it.
"""

import math
from operator import index

import numpy as np

from bpl.data.scene_canvas import Canvas
from bpl.data.scene_land import (
    agricultural,
    baseballdiamond,
    beach,
    chaparral,
    forest,
    golfcourse,
    river,
    tenniscourt,
)
from bpl.data.scene_settlements import (
    buildings,
    denseresidential,
    mediumresidential,
    mobilehomepark,
    sparseresidential,
    storagetanks,
)
from bpl.data.scene_transport import (
    airplane,
    freeway,
    harbor,
    intersection,
    overpass,
    parkinglot,
    runway,
)

_PAINTERS = (
    agricultural, airplane, baseballdiamond, beach, buildings, chaparral, denseresidential, forest, freeway, golfcourse,
    harbor, intersection, mediumresidential, mobilehomepark, overpass, parkinglot, river, runway, sparseresidential,
    storagetanks, tenniscourt,
)  # fmt: skip

CLASSES: tuple[str, ...] = tuple(painter.__name__ for painter in _PAINTERS)
"""UC Merced's 21 classes, in alphabetical order; a label is a position in this tuple."""


def draw_scenes(image_size: int, images_per_class: int = 100, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw the synthetic data set.

    Args:
        image_size: Pixels a side.
        images_per_class: Images drawn for each of the 21 classes. A smaller set is a subset of a larger one.
        seed: Another seed gives another set of the same kind.

    Returns:
        The images, ``uint8`` of shape ``(21 * images_per_class, image_size, image_size, 3)``, RGB, sorted by class, and
        their labels, ``int64`` of shape ``(21 * images_per_class,)``.

    Raises:
        ValueError: If an argument is not an integer in its range.
    """
    image_size = _whole("image_size", image_size, 1)
    images_per_class = _whole("images_per_class", images_per_class, 1)
    seed = _whole("seed", seed, 0)
    labels = np.repeat(np.arange(len(CLASSES), dtype=np.int64), images_per_class)
    images = np.empty((len(labels), image_size, image_size, 3), np.uint8)
    for row, label in enumerate(labels):
        images[row] = _draw(image_size, int(label), row % images_per_class, seed)
    return images, labels


def _whole(name: str, value: int, least: int) -> int:
    try:
        number = index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    return number


def _draw(image_size: int, label: int, number: int, seed: int) -> np.ndarray:
    """One image, ``uint8`` of shape ``(image_size, image_size, 3)``."""
    rng = np.random.default_rng((seed, label, number))
    supersampling = 3 if image_size < 128 else 2  # small pictures need the finer strokes, large ones the time
    canvas = Canvas(image_size * supersampling, rng)
    _PAINTERS[label](canvas)
    return _photograph(np.asarray(canvas.image.reduce(supersampling), np.float32) / 255, rng)


def _photograph(scene: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a camera above the air makes of a scene: ``float32`` in [0, 1] to ``uint8``, both ``(H, W, 3)``."""
    size = len(scene)
    x, y = np.meshgrid(np.linspace(-1, 1, size, dtype=np.float32), np.linspace(-1, 1, size, dtype=np.float32))
    angle = rng.uniform(0, math.tau)
    light = 1 + rng.uniform(0, 0.12) * (math.cos(angle) * x + math.sin(angle) * y)
    at_x, at_y = rng.uniform(-1.5, 1.5, 2)
    if rng.random() < 0.15:  # a cloud's soft shadow
        light *= 1 - 0.4 / (1 + np.exp(8 * (np.hypot(x - at_x, y - at_y) - rng.uniform(0.5, 1))))
    warmth, tint = rng.normal(0, 0.05), rng.normal(0, 0.02)  # the hour and the film: blue to yellow, green to magenta
    cast = np.float32((1 + warmth, 1 + tint, 1 - warmth))
    scene = scene * light[..., None] * cast * np.float32(rng.uniform(0.7, 1.2))
    haze = np.float32(rng.uniform(0, 0.3))
    scene = scene * (1 - haze) + haze * np.float32((0.72, 0.76, 0.82))
    scene += np.float32(rng.uniform(0.005, 0.04)) * rng.standard_normal(scene.shape, np.float32)
    return (scene.clip(0, 1) * 255).astype(np.uint8)
