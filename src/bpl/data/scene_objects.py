"""What stands on the ground in many drawn scenes: trees, cars, roads, houses, flat roofs, boats, aeroplanes, pools.

The painters share these on purpose: a car, a tree or a house says little about the class, as in real aerial images, so
that neither a colour nor a single pixel gives the class away. Lengths are in ground units (one unit is some 38 m).
"""

from collections.abc import Callable, Sequence

from bpl.data.scene_canvas import EDGE, Canvas, Colour, blob, corners, mix, shade

WHITE: Colour = (236, 236, 230)
ASPHALT: tuple[Colour, ...] = ((92, 92, 94), (116, 114, 112), (138, 134, 130), (104, 106, 112))
CONCRETE: tuple[Colour, ...] = ((186, 182, 172), (168, 166, 162), (200, 194, 182))
SOIL: tuple[Colour, ...] = ((176, 142, 104), (196, 168, 128), (158, 122, 90), (186, 156, 124))
WATER: tuple[Colour, ...] = ((38, 74, 92), (48, 88, 84), (58, 82, 78), (34, 60, 84), (66, 98, 108))
PITCHED: tuple[Colour, ...] = ((164, 96, 74), (146, 118, 96), (126, 124, 126), (184, 160, 136), (104, 90, 84))
FLAT: tuple[Colour, ...] = ((206, 204, 198), (172, 170, 168), (144, 132, 122), (222, 220, 214), (128, 134, 142))
PAINT: tuple[Colour, ...] = (
    (230, 230, 230), (196, 200, 204), (52, 54, 60), (158, 38, 36), (44, 74, 132), (112, 116, 120), (206, 192, 158)
)  # fmt: skip


def grass(canvas: Canvas, gain: float = 1.0) -> Colour:
    """The colour of grass in this scene's season."""
    return shade(mix((92, 134, 66), (182, 166, 114), canvas.dryness), gain)


def meadow(canvas: Canvas) -> None:
    """Cover the ground with grass."""
    canvas.ground(grass(canvas, 0.8), grass(canvas, 1.15))


def tree(canvas: Canvas, at: complex, radius: float) -> None:
    """A crown, its shadow, and the side that the sun lights."""
    leaf = mix((40, 82, 42), (98, 100, 56), canvas.dryness * canvas.between(0.3, 1))
    leaf = shade(leaf, canvas.between(0.75, 1.25))
    light = -canvas.sun / abs(canvas.sun)
    canvas.disc(at + canvas.sun * radius * 0.9, radius * 0.95, (8, 14, 20), 110)
    canvas.disc(at, radius, leaf)
    canvas.disc(at + light * radius * 0.3, radius * 0.62, shade(leaf, 1.22))
    canvas.disc(at + light * 1.3j * radius * 0.35, radius * 0.3, shade(leaf, 1.4))


def trees(
    canvas: Canvas,
    number: int,
    size: tuple[float, float] = (0.06, 0.14),
    where: Callable[[complex], bool] = lambda at: True,
) -> None:
    """Scatter trees over the ground, keeping those whose place ``where`` allows."""
    for _ in range(number):
        at = canvas.somewhere(1.6)
        if where(at):
            tree(canvas, at, canvas.between(*size))


def car(canvas: Canvas, at: complex, along: complex, colours: Sequence[Colour] = PAINT) -> None:
    """A car with a windscreen and a shadow, or now and then a van."""
    length, width = canvas.between(0.105, 0.13), canvas.between(0.048, 0.056)
    if canvas.chance(0.06):
        length *= 1.6
    body = corners(at, along, length, width)
    canvas.shadow(body, 0.03, 130)
    colour = canvas.pick(colours)
    canvas.polygon(body, colour)
    canvas.block(at + along * length * 0.16, along, length * 0.16, width * 0.8, (36, 42, 50))
    canvas.block(at - along * length * 0.3, along, length * 0.12, width * 0.8, (36, 42, 50))


def traffic(canvas: Canvas, start: complex, stop: complex, number: int) -> None:
    """Cars here and there in one lane from ``start`` to ``stop``, driving that way."""
    along = (stop - start) / abs(stop - start)
    for _ in range(number):
        car(canvas, start + (stop - start) * canvas.rng.random(), along)


def road(canvas: Canvas, path: Sequence[complex], width: float, colour: Colour | None = None) -> Colour:
    """A road with kerbs; returns its surface, so that another may join it."""
    surface = colour or canvas.pick(ASPHALT)
    canvas.line(path, width * 1.22, mix(surface, WHITE, 0.45))
    canvas.line(path, width, surface)
    return surface


def straight(offset: float, along: complex = 1) -> tuple[complex, complex]:
    """The two ends of a straight line across the whole ground, ``offset`` to the side of the origin."""
    return along * (-EDGE + 1j * offset), along * (EDGE + 1j * offset)


def house(canvas: Canvas, at: complex, along: complex, length: float, width: float) -> None:
    """A gabled or hipped roof whose sunny slope is lighter, with its shadow."""
    outline = corners(at, along, length, width)
    canvas.shadow(outline, 0.11)
    roof = canvas.pick(PITCHED, 0.15)
    lit = (along * 1j * canvas.sun.conjugate()).real < 0  # the slope on the +1j side faces the sun
    inset = along * canvas.between(0, 0.3) * length  # no inset: a gable; some: a hip
    ahead, behind = at + along * length / 2 - inset, at - along * length / 2 + inset
    a, b, c, d = outline  # a and d lie on the +1j side
    canvas.polygon((a, b, c, d), roof)
    canvas.polygon((a, ahead, behind, d), shade(roof, 1.2 if lit else 0.78))
    canvas.polygon((b, ahead, behind, c), shade(roof, 0.78 if lit else 1.2))
    canvas.line((ahead, behind), 0.012, shade(roof, 1.35))


def farmhouse(canvas: Canvas, at: complex) -> None:
    """A house that stands alone, turned anyhow: what makes a suburb elsewhere is a bystander here."""
    house(canvas, at, canvas.heading(), canvas.between(0.36, 0.5), canvas.between(0.24, 0.32))


def flat_roof(canvas: Canvas, at: complex, along: complex, length: float, width: float, height: float) -> None:
    """A large building: a long shadow, a parapet, and machines on the roof."""
    outline = corners(at, along, length, width)
    canvas.shadow(outline, height, 150)
    roof = canvas.pick(FLAT)
    canvas.polygon(outline, shade(roof, 0.7))
    canvas.block(at, along, length - 0.04, width - 0.04, roof)
    for _ in range(canvas.count(2, 7)):
        place = at + along * complex(canvas.between(-0.38, 0.38) * length, canvas.between(-0.36, 0.36) * width)
        unit = corners(place, along, canvas.between(0.04, 0.11), canvas.between(0.04, 0.08))
        canvas.shadow(unit, 0.04)
        canvas.polygon(unit, shade(roof, canvas.between(0.6, 1.25)))


def boat(canvas: Canvas, at: complex, along: complex, length: float) -> None:
    """A pointed hull with a deck and a cabin or a cockpit."""
    beam = length * canvas.between(0.24, 0.32)
    hull = [at + along * complex(x * length, y * beam) for x, y in _HULL]
    canvas.shadow(hull, 0.03)
    canvas.polygon(hull, canvas.pick(((240, 240, 238), (222, 222, 220), (226, 214, 190)), 0.06))
    deck = canvas.pick(((70, 96, 150), (120, 92, 66), (170, 176, 182), (52, 60, 74)))
    canvas.block(at - along * length * 0.12, along, length * 0.42, beam * 0.55, deck)


_HULL = ((-0.5, -0.42), (-0.5, 0.42), (0.1, 0.5), (0.35, 0.3), (0.5, 0.0), (0.35, -0.3), (0.1, -0.5))


def aeroplane(canvas: Canvas, at: complex, along: complex, length: float) -> None:
    """A swept-wing airliner: silhouette, shadow, engines, cockpit and a painted tail."""
    outline = [along * length * complex(x, side * y) for side in (1, -1) for x, y in _AEROPLANE[::side]]
    canvas.polygon([at + point + canvas.sun * 0.1 for point in outline], (8, 12, 28), 120)
    for side in (1, -1):
        engine = at + along * length * complex(0.1, side * 0.16)
        canvas.block(engine, along, length * 0.12, length * 0.05, (120, 124, 130))
    skin = canvas.pick(((240, 240, 238), (214, 218, 222), (228, 224, 214)), 0.05)
    canvas.polygon([at + point for point in outline], skin)
    canvas.block(at, along, length * 0.8, length * 0.03, shade(skin, 1.1))
    livery = canvas.pick(((170, 40, 40), (40, 70, 140), (40, 100, 80), (200, 130, 40), (90, 94, 100)))
    canvas.block(at - along * length * 0.44, along, length * 0.13, length * 0.035, livery)
    canvas.block(at + along * length * 0.45, along, length * 0.03, length * 0.05, (40, 46, 56))


# The right half of an airliner seen from above, nose to tail, in lengths of the fuselage.
_AEROPLANE = (
    (0.5, 0.0), (0.46, 0.035), (0.38, 0.05), (0.14, 0.05), (-0.12, 0.46), (-0.18, 0.47), (-0.05, 0.05),
    (-0.34, 0.04), (-0.44, 0.17), (-0.5, 0.17), (-0.46, 0.02),
)  # fmt: skip


def pool(canvas: Canvas, at: complex) -> None:
    """A swimming pool on its terrace."""
    canvas.disc(at, 0.1, canvas.pick(CONCRETE))
    canvas.polygon(blob(canvas, at, 0.065, 0.25, 1.2), canvas.pick(((78, 178, 196), (92, 196, 208))))
