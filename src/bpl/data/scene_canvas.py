"""The paper that drawn aerial scenes are painted on: one square of ground, its pose, its light and its brushes.

A point on the ground is a complex number, so that turning it by an angle is one multiplication and a direction is a
number of modulus one. The picture shows about ``[-1, 1] x [-1, 1]`` around the origin (77 m a side in UC Merced, so one
unit is some 38 m); what must fill the picture whatever its pose reaches out to ``EDGE``. Everything random is drawn in
ground units, never in pixels: a scene is the same scene at 64 and at 256 pixels.
"""

import cmath
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]

EDGE = 2.3  # farther from the origin than any corner of the picture gets, whatever the zoom, turn and shift
_TEXTURE = 128  # cells a side of the ground texture


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """The colour that lies ``share`` of the way from ``first`` to ``second``."""
    return tuple(round(a + (b - a) * share) for a, b in zip(first, second, strict=True))


def shade(colour: Colour, gain: float) -> Colour:
    """The colour made ``gain`` times as bright, clipped to what a byte holds."""
    return tuple(min(255, round(channel * gain)) for channel in colour)


class Canvas:
    """A square of ground with a random pose, sun and season, and the brushes that paint on it.

    Args:
        side: Pixels a side, supersampling included.
        rng: The only source of randomness of this scene.
    """

    def __init__(self, side: int, rng: np.random.Generator) -> None:
        self.rng = rng
        self.image = Image.new("RGB", (side, side))
        self._pen = ImageDraw.Draw(self.image, "RGBA")  # RGBA: a fill with alpha < 255 is blended, as shadows need
        self._unit = rng.uniform(0.8, 1.4) * side / 2  # pixels to one unit of ground
        self._turn = self._unit * cmath.exp(1j * rng.uniform(0, math.tau))
        self._middle = side / 2 * (1 + 1j) + self._unit * complex(*rng.uniform(-0.35, 0.35, 2))
        self.sun = cmath.rect(rng.uniform(0.3, 1.0), rng.uniform(0, math.tau))  # shadow thrown by a height of one
        self.dryness = float(rng.beta(1.2, 1.6))  # 0: lush spring green, 1: late-summer straw

    # -- chance -------------------------------------------------------------------------------------------------------

    def between(self, low: float, high: float) -> float:
        """A uniform draw from ``[low, high)``."""
        return low + (high - low) * self.rng.random()

    def chance(self, probability: float) -> bool:
        """Whether something that happens with this probability happens."""
        return self.rng.random() < probability

    def count(self, low: int, high: int) -> int:
        """A uniform integer from ``low`` to ``high``, both included."""
        return int(self.rng.integers(low, high + 1))

    def pick(self, colours: Sequence[Colour], spread: float = 0.1) -> Colour:
        """One of the colours, its brightness jittered by up to ``spread``."""
        return shade(colours[int(self.rng.integers(len(colours)))], self.between(1 - spread, 1 + spread))

    def somewhere(self, reach: float = 1.5) -> complex:
        """A uniform point of the square of half side ``reach``."""
        return complex(self.between(-reach, reach), self.between(-reach, reach))

    def heading(self) -> complex:
        """A uniform direction."""
        return cmath.exp(1j * self.between(0, math.tau))

    # -- brushes ------------------------------------------------------------------------------------------------------

    def _pixels(self, points: Sequence[complex]) -> list[tuple[float, float]]:
        turned = [point * self._turn + self._middle for point in points]
        return [(point.real, point.imag) for point in turned]

    def polygon(self, points: Sequence[complex], colour: Colour, alpha: int = 255) -> None:
        """Fill a polygon, convex or not."""
        self._pen.polygon(self._pixels(points), (*colour, alpha))

    def disc(self, centre: complex, radius: float, colour: Colour, alpha: int = 255) -> None:
        """Fill a circle."""
        at = centre * self._turn + self._middle
        reach = radius * self._unit
        box = (at.real - reach, at.imag - reach, at.real + reach, at.imag + reach)
        self._pen.ellipse(box, (*colour, alpha))

    def line(self, path: Sequence[complex], width: float, colour: Colour, alpha: int = 255) -> None:
        """Draw a polyline of this width with round joints."""
        joint = "curve" if len(path) > 2 else None
        self._pen.line(self._pixels(path), (*colour, alpha), max(1, round(width * self._unit)), joint)

    def dashes(
        self, start: complex, stop: complex, width: float, colour: Colour, dash: float = 0.08, gap: float = 0.1
    ) -> None:
        """Draw a dashed straight line."""
        length = abs(stop - start)
        along = (stop - start) / length
        for k in range(int(length / (dash + gap))):
            first = start + along * k * (dash + gap)
            self.line((first, first + along * dash), width, colour)

    def block(self, centre: complex, along: complex, length: float, width: float, colour: Colour) -> None:
        """Fill a rectangle whose length runs in the direction ``along``."""
        self.polygon(corners(centre, along, length, width), colour)

    def shadow(self, points: Sequence[complex], height: float, alpha: int = 110) -> None:
        """Darken what a convex body of this outline and height hides from the sun."""
        self.polygon(_hull([*points, *(point + self.sun * height for point in points)]), (8, 12, 28), alpha)

    def texture(self, low: Colour, high: Colour, roughness: float = 0.6) -> Image.Image:
        """A picture of the canvas's size in which two colours are mixed by noise of several octaves.

        Args:
            low: The colour where the noise is lowest.
            high: The colour where it is highest.
            roughness: How much of each octave's strength the next finer one has.
        """
        noise = np.zeros((_TEXTURE, _TEXTURE), np.float32)
        for octave, cells in enumerate((4, 12, 40, _TEXTURE)):
            grid = Image.fromarray(self.rng.random((cells, cells), np.float32))
            noise += roughness**octave * np.asarray(grid.resize((_TEXTURE, _TEXTURE), Image.Resampling.BICUBIC))
        noise = (noise - noise.min()) / np.ptp(noise)
        colours = np.float32(low) + noise[..., None] * (np.float32(high) - np.float32(low))
        return Image.fromarray(colours.astype(np.uint8)).resize(self.image.size, Image.Resampling.BILINEAR)

    def ground(self, low: Colour, high: Colour, roughness: float = 0.6) -> None:
        """Cover everything with a texture."""
        self.image.paste(self.texture(low, high, roughness))

    def wash(self, points: Sequence[complex], low: Colour, high: Colour, roughness: float = 0.6) -> None:
        """Cover a polygon with a texture."""
        mask = Image.new("L", self.image.size)
        ImageDraw.Draw(mask).polygon(self._pixels(points), 255)
        self.image.paste(self.texture(low, high, roughness), mask=mask)


# -- outlines ---------------------------------------------------------------------------------------------------------


def corners(centre: complex, along: complex, length: float, width: float) -> list[complex]:
    """The four corners of a rectangle whose length runs in the direction ``along``."""
    ahead, aside = along * length / 2, along * 1j * width / 2
    return [centre + ahead + aside, centre + ahead - aside, centre - ahead - aside, centre - ahead + aside]


def blob(canvas: Canvas, centre: complex, radius: float, wobble: float = 0.2, stretch: float = 1.0) -> list[complex]:
    """The outline of a smooth, irregular, roundish patch, ``stretch`` times as long as wide."""
    waves = [(n, wobble / n * canvas.between(0.3, 1), canvas.between(0, math.tau)) for n in (2, 3, 4, 5)]
    along, outline = canvas.heading(), []
    for k in range(40):
        angle = math.tau * k / 40
        reach = radius * (1 + sum(size * math.cos(n * angle + phase) for n, size, phase in waves))
        outline.append(centre + along * complex(reach * stretch * math.cos(angle), reach * math.sin(angle)))
    return outline


def meander(canvas: Canvas, swing: float, offset: float = 0.0) -> list[complex]:
    """A smooth wavy path from one edge of the ground to the other, along the real axis."""
    waves = [(n, swing / n * canvas.between(0.4, 1), canvas.between(0, math.tau)) for n in (1.0, 1.8, 3.1)]
    stations = np.linspace(-EDGE, EDGE, 48)
    return [complex(x, offset + sum(size * math.sin(n * x + phase) for n, size, phase in waves)) for x in stations]


def band(path: Sequence[complex], width: float) -> list[complex]:
    """The outline of a strip around a path that runs along the real axis."""
    return [*(point + width * 0.5j for point in path), *(point - width * 0.5j for point in path[::-1])]


def _hull(points: Sequence[complex]) -> list[complex]:
    """The convex hull of some points (Andrew's monotone chain)."""
    ordered = sorted(points, key=lambda point: (point.real, point.imag))
    chains = []
    for run in (ordered, ordered[::-1]):
        chain: list[complex] = []
        for point in run:
            while len(chain) > 1 and ((chain[-1] - chain[-2]).conjugate() * (point - chain[-1])).imag <= 0:
                chain.pop()
            chain.append(point)
        chains.append(chain[:-1])
    return chains[0] + chains[1]
