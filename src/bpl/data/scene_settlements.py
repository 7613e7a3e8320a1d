"""Painters of places where people live and work: houses of four densities, large buildings, storage tanks.

Each covers the whole canvas and is named after its UC Merced class. The main object lies along the real axis, near the
origin; the canvas turns, shifts and scales it.
"""

import cmath

from bpl.data.scene_canvas import EDGE, Canvas, Colour, blob, corners, meander, mix, shade
from bpl.data.scene_objects import (
    ASPHALT,
    CONCRETE,
    SOIL,
    WHITE,
    car,
    flat_roof,
    grass,
    house,
    meadow,
    pool,
    road,
    straight,
    traffic,
    tree,
    trees,
)

METAL: tuple[Colour, ...] = ((232, 232, 228), (206, 208, 206), (188, 194, 190), (222, 212, 192))


def buildings(canvas: Canvas) -> None:
    """A few large flat roofs with long shadows, streets and parked cars around them."""
    pavement = canvas.pick(CONCRETE + ASPHALT)
    canvas.ground(shade(pavement, 0.9), shade(pavement, 1.05))
    if canvas.chance(0.6):
        road(canvas, straight(canvas.between(0.95, 1.1)), 0.3)
        traffic(canvas, *straight(1.0), canvas.count(2, 7))
    trees(canvas, canvas.count(5, 30), (0.05, 0.1))
    for _ in range(canvas.count(3, 14)):
        car(canvas, canvas.somewhere(), canvas.rng.choice((1, 1j)))
    columns = canvas.count(1, 3)
    for k in range(columns):
        pitch = 2.4 / columns
        for row in range(canvas.count(1, 2)):
            at = complex((k - (columns - 1) / 2) * pitch, -0.45 + row * 0.95 + canvas.between(-0.1, 0.1))
            length, width = pitch * canvas.between(0.6, 0.85), canvas.between(0.5, 0.8)
            height = canvas.between(0.15, 0.5)
            flat_roof(canvas, at, 1, length, width, height)
            if canvas.chance(0.3):
                flat_roof(canvas, at + canvas.somewhere(0.15), 1, length * 0.45, width * 0.5, height * 0.5)


def denseresidential(canvas: Canvas) -> None:
    """Houses wall to wall along narrow streets."""
    pitch = canvas.between(0.36, 0.5)
    _suburb(canvas, pitch, pitch * 0.84, pitch * 0.78, canvas.count(5, 55), 0.35)


def mediumresidential(canvas: Canvas) -> None:
    """Detached houses with gardens and trees."""
    pitch = canvas.between(0.48, 0.66)
    _suburb(canvas, pitch, pitch * 0.72, pitch * 0.52, canvas.count(25, 100), 0.4)


def sparseresidential(canvas: Canvas) -> None:
    """One or two houses in wide grounds, a drive, and many trees."""
    meadow(canvas)
    homes = [canvas.somewhere(0.35)]
    if canvas.chance(0.35):
        homes.append(homes[0] + canvas.between(0.9, 1.1) * canvas.heading())
    lane = canvas.between(0.85, 1.15)
    tone = road(canvas, meander(canvas, 0.1, lane), 0.16, canvas.pick(ASPHALT + SOIL))
    trees(canvas, canvas.count(40, 150), (0.06, 0.15), where=lambda at: abs(at.imag - lane) > 0.25)
    for at in homes:
        canvas.polygon(blob(canvas, at, 0.42, 0.25), grass(canvas, 1.12))
        canvas.line((at, complex(at.real + canvas.between(-0.3, 0.3), lane)), 0.08, mix(tone, WHITE, 0.3))
        along = canvas.heading()
        length, width = canvas.between(0.36, 0.54), canvas.between(0.24, 0.32)
        house(canvas, at, along, length, width)
        if canvas.chance(0.5):
            house(canvas, at + along * (length * 0.3 + 0.2j), 1j * along, width, width * 0.8)
        if canvas.chance(0.3):
            pool(canvas, at - along * 0.38j)
        if canvas.chance(0.6):
            car(canvas, at + 0.34j, canvas.heading())


def _suburb(canvas: Canvas, pitch: float, length: float, width: float, yards: int, cars: float) -> None:
    """Streets lined with houses: the three residential densities differ in these numbers only."""
    meadow(canvas)
    depth = width + pitch * 0.5  # from the street's middle to the middle of a row of houses
    street, block = 0.2, 2 * depth + width + pitch * 0.25
    start = canvas.between(-block, 0) - block
    rows = [start + k * block for k in range(int(2 * EDGE / block) + 2)]
    tone = canvas.pick(ASPHALT)
    for y in rows:
        road(canvas, straight(y), street, tone)
    if canvas.chance(0.5):
        road(canvas, straight(canvas.between(-0.8, 0.8), 1j), street, tone)
    for y in rows:
        for side in (1, -1):
            for k in range(int(2 * 1.8 / pitch)):
                at = complex(-1.8 + (k + canvas.between(-0.08, 0.08)) * pitch, y + side * depth)
                if max(abs(at.real), abs(at.imag)) > 1.75:
                    continue
                canvas.line((at, complex(at.real + length * 0.3, y)), 0.07, mix(tone, WHITE, 0.4))  # the drive
                if canvas.chance(cars):
                    car(canvas, complex(at.real + length * 0.3, y + side * 0.17), 1j)
                along = cmath.exp(1j * canvas.between(-0.06, 0.06)) * (1 if canvas.chance(0.6) else 1j)
                long, wide = (length, width) if along.real > 0.5 else (width * 1.15, length * 0.9)
                house(canvas, at, along, long * canvas.between(0.88, 1.1), wide * canvas.between(0.88, 1.1))
                if canvas.chance(0.06):
                    pool(canvas, at + side * 1j * (width * 0.5 + 0.12))
        traffic(canvas, *straight(y + 0.05), canvas.count(0, 3))
    trees(canvas, yards, (0.05, 0.13), where=lambda at: min(abs(at.imag - y) for y in rows) > 0.15)


def mobilehomepark(canvas: Canvas) -> None:
    """Rows of long, narrow, pale homes set aslant to their lanes."""
    ground = mix(canvas.pick(ASPHALT), grass(canvas), canvas.between(0.2, 0.8))
    canvas.ground(shade(ground, 0.9), shade(ground, 1.08))
    lean = cmath.exp(1j * canvas.between(0.9, 1.57))
    length, pitch = canvas.between(0.42, 0.56), canvas.between(0.23, 0.29)
    spacing, tone = length + canvas.between(0.2, 0.28), canvas.pick(ASPHALT)
    for row in range(-4, 5):
        y = row * spacing
        road(canvas, straight(y + spacing / 2), 0.13, tone)
        for k in range(int(3.8 / pitch)):
            at = complex(-1.9 + k * pitch, y)
            if canvas.chance(0.05) or abs(y) > 1.8:
                continue
            outline = corners(at, lean, length * canvas.between(0.85, 1), pitch * canvas.between(0.5, 0.62))
            canvas.shadow(outline, 0.07)
            roof = canvas.pick(((226, 224, 218), (204, 198, 188), (182, 176, 168), (214, 206, 190)), 0.07)
            canvas.polygon(outline, roof)
            canvas.line(((outline[0] + outline[1]) / 2, (outline[2] + outline[3]) / 2), 0.012, shade(roof, 0.82))
            if canvas.chance(0.4):
                car(canvas, at + pitch * 0.48, lean)
            if canvas.chance(0.2):
                tree(canvas, at + lean * length * 0.5, canvas.between(0.04, 0.08))


def storagetanks(canvas: Canvas) -> None:
    """Round tanks in rows, their shadows, and the pipes between them."""
    soil = canvas.pick(CONCRETE + SOIL)
    soil = mix(soil, grass(canvas), canvas.between(0, 0.6))
    canvas.ground(shade(soil, 0.85), shade(soil, 1.08))
    pitch = canvas.between(0.5, 1.15)
    along = cmath.exp(1j * canvas.between(-0.2, 0.2))
    trees(canvas, canvas.count(0, 15))
    road(canvas, straight(pitch / 2, along), 0.12)
    canvas.line(straight(-pitch / 2, along), 0.03, canvas.pick(METAL))
    reach = int(1.8 / pitch) + 1
    for row in range(-reach, reach + 1):
        size = canvas.between(0.28, 0.42) * pitch
        for k in range(-reach, reach + 1):
            if canvas.chance(0.85):
                _tank(canvas, along * complex(k, row) * pitch, size)


def _tank(canvas: Canvas, at: complex, radius: float) -> None:
    """A cylinder seen from above: bund, shadow, lit wall, roof and stairs."""
    skin = canvas.pick(METAL, 0.08)
    canvas.disc(at, radius * 1.15, canvas.pick(SOIL), 110)
    for k in range(1, 4):
        canvas.disc(at + canvas.sun * 0.1 * k, radius, (8, 12, 28), 70)
    canvas.disc(at, radius, shade(skin, 0.78))
    canvas.disc(at, radius * 0.92, skin)
    canvas.disc(at - canvas.sun * radius * 0.15, radius * 0.55, shade(skin, 1.05))
    canvas.disc(at, radius * 0.08, shade(skin, 0.6))
    canvas.line((at, at + radius * canvas.heading()), 0.015, shade(skin, 0.65))
