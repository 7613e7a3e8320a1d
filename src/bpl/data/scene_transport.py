"""Painters of what carries traffic: roads, bridges, parking lots, aprons, runways and harbours.

Each covers the whole canvas and is named after its UC Merced class. The main object lies along the real axis, near the
origin; the canvas turns, shifts and scales it.
"""

import cmath

from bpl.data.scene_canvas import EDGE, Canvas, Colour, corners, mix, shade
from bpl.data.scene_objects import (
    ASPHALT,
    CONCRETE,
    SOIL,
    WATER,
    WHITE,
    aeroplane,
    boat,
    car,
    farmhouse,
    flat_roof,
    grass,
    house,
    meadow,
    road,
    straight,
    traffic,
    tree,
    trees,
)


def airplane(canvas: Canvas) -> None:
    """One to three airliners on an apron."""
    slab = canvas.pick(CONCRETE + ASPHALT)
    canvas.ground(shade(slab, 0.92), shade(slab, 1.06))
    for k in range(-5, 6):
        for along in (1, 1j):
            canvas.line(straight(k * 0.42, along), 0.012, shade(slab, 0.8))
    if canvas.chance(0.5):
        canvas.wash(corners(1.6j, 1, 2 * EDGE, canvas.between(0.6, 1.4)), grass(canvas, 0.85), grass(canvas, 1.1))
    canvas.line(straight(canvas.between(-0.3, 0.3)), 0.025, (214, 180, 70))
    number = canvas.count(1, 3)
    for k in range(number):
        length = canvas.between(0.9, 1.5) if number == 1 else canvas.between(0.6, 0.95)
        at = complex((k - (number - 1) / 2) * 0.95, canvas.between(-0.15, 0.15))
        aeroplane(canvas, at, 1j * cmath.exp(1j * canvas.between(-0.3, 0.3)), length)
    for _ in range(canvas.count(0, 6)):
        car(canvas, canvas.somewhere(), canvas.heading())


def freeway(canvas: Canvas) -> None:
    """Two carriageways of several lanes, a median, and traffic in both directions."""
    meadow(canvas)
    trees(canvas, canvas.count(0, 60), where=lambda at: abs(at.imag) > 0.75)
    if canvas.chance(0.35):
        road(canvas, straight(canvas.between(1.05, 1.25)), 0.2)
    if canvas.chance(0.3):
        farmhouse(canvas, complex(canvas.between(-0.7, 0.7), -1))
    _carriageways(canvas, canvas.pick(ASPHALT + CONCRETE), canvas.count(2, 4), canvas.between(0.06, 0.3))


def overpass(canvas: Canvas) -> None:
    """A motorway and the bridge that carries another road over it."""
    meadow(canvas)
    trees(canvas, canvas.count(0, 50), where=lambda at: abs(at.imag) > 0.8 and abs(at.real) > 0.5)
    surface = canvas.pick(ASPHALT + CONCRETE)
    if canvas.chance(0.4):
        ramp = [complex(x, 0.5 + 0.09 * x * x) for x in (-EDGE, -1.5, -0.7, 0, 0.7, 1.5, EDGE)]
        road(canvas, ramp, 0.16, surface)
    _carriageways(canvas, surface, canvas.count(2, 3), canvas.between(0.06, 0.2))
    across = 1j * cmath.exp(1j * canvas.between(-0.5, 0.5))
    width = canvas.between(0.3, 0.62)
    deck = canvas.pick(CONCRETE + ASPHALT)
    canvas.shadow(corners(0, across, 2 * EDGE, width), 0.22, 150)
    canvas.line(straight(0, across), width, shade(deck, 1.25))
    canvas.line(straight(0, across), width - 0.05, deck)
    canvas.line(straight(0, across), 0.018, (214, 180, 70))
    for side in (1, -1):
        traffic(canvas, *straight(side * width / 4, across)[::side], canvas.count(1, 5))


def _carriageways(canvas: Canvas, surface: Colour, lanes: int, median: float) -> None:
    """Both halves of a motorway along the real axis."""
    lane = 0.125
    for side in (1, -1):
        middle = side * (median / 2 + lanes * lane / 2 + 0.03)
        canvas.line(straight(middle), lanes * lane + 0.1, surface)
        for edge in (-1, 1):
            canvas.line(straight(middle + edge * lanes * lane / 2), 0.016, WHITE, 200)
        for k in range(lanes):
            y = middle + (k + 0.5 - lanes / 2) * lane
            if k:
                canvas.dashes(*straight(y - lane / 2), 0.014, WHITE, 0.1, 0.16)
            traffic(canvas, *straight(y)[::side], canvas.count(0, 4))
    if median < 0.12:
        canvas.line(straight(0), 0.03, mix(surface, WHITE, 0.5))


def harbor(canvas: Canvas) -> None:
    """Boats moored side by side along piers."""
    water = canvas.pick(WATER)
    canvas.ground(shade(water, 0.9), shade(water, 1.12))
    length = canvas.between(0.26, 0.46)
    pitch = length * canvas.between(0.38, 0.5)
    plank = canvas.pick(CONCRETE + SOIL)
    spacing = 2 * length + canvas.between(0.25, 0.5)
    for row in range(-3, 4):
        y = row * spacing + canvas.between(-0.03, 0.03)
        canvas.shadow(corners(y * 1j, 1, 2 * EDGE, 0.08), 0.05)
        canvas.line(straight(y), 0.08, plank)
        for side in (1, -1):
            for k in range(int(3.4 / pitch)):
                if canvas.chance(0.18):
                    continue  # an empty berth
                x = -1.7 + k * pitch
                boat(canvas, complex(x, y + side * (length * 0.55 + 0.05)), side * 1j, length * canvas.between(0.8, 1))
    if canvas.chance(0.4):
        quay = canvas.between(0.8, 1.1)
        canvas.polygon((quay - EDGE * 1j, quay + EDGE * 1j, EDGE * (1 + 1j), EDGE * (1 - 1j)), canvas.pick(CONCRETE))
        for k in range(canvas.count(2, 14)):
            car(canvas, complex(quay + 0.14, -1.2 + 0.16 * k), 1)


def intersection(canvas: Canvas) -> None:
    """Two streets that cross, zebra crossings, and whatever stands at the four corners."""
    meadow(canvas)
    tone, width = canvas.pick(ASPHALT), canvas.between(0.34, 0.56)
    cross = 1j * cmath.exp(1j * canvas.between(-0.25, 0.25))
    for corner in (1 + 1j, 1 - 1j, -1 + 1j, -1 - 1j):
        _street_corner(canvas, corner * (width / 2 + 0.5))
    for along in (1, cross):
        road(canvas, straight(0, along), width, tone)
    canvas.line(straight(0), width, tone)  # over the kerbs of the other street
    for along in (1, cross, -1, -cross):
        for k in range(-3, 4):
            stripe = along * complex(width / 2 + 0.1, k * width / 7.5)
            canvas.block(stripe, along, 0.1, 0.03, WHITE)
        canvas.line((along * (width / 2 + 0.22), along * EDGE), 0.018, (214, 180, 70))
        lane = along * -1j * width / 4
        traffic(canvas, lane + along * EDGE, lane + along * (width / 2 + 0.25), canvas.count(1, 4))


def _street_corner(canvas: Canvas, at: complex) -> None:
    """A shop, a house, trees or cars on the plot around ``at``."""
    what = canvas.rng.random()
    if what < 0.35:
        canvas.block(at, 1, 0.85, 0.85, canvas.pick(CONCRETE))
        flat_roof(canvas, at, 1, canvas.between(0.45, 0.75), canvas.between(0.4, 0.6), 0.18)
    elif what < 0.65:
        house(canvas, at, 1, canvas.between(0.35, 0.5), canvas.between(0.28, 0.34))
    elif what < 0.8:
        canvas.block(at, 1, 0.85, 0.85, canvas.pick(ASPHALT))
        for k in range(canvas.count(2, 6)):
            car(canvas, at + complex(-0.3 + 0.1 * k, canvas.between(-0.02, 0.02)), 1j)
    for _ in range(canvas.count(1, 5)):
        tree(canvas, at + canvas.somewhere(0.45), canvas.between(0.06, 0.11))


def parkinglot(canvas: Canvas) -> None:
    """Row upon row of parked cars between painted lines."""
    tone = canvas.pick(ASPHALT)
    canvas.ground(shade(tone, 0.92), shade(tone, 1.05))
    stall, aisle = canvas.between(0.075, 0.09), canvas.between(0.14, 0.24)
    spacing, full = 0.3 + aisle, canvas.between(0.5, 0.97)
    for row in range(-4, 5):
        y = row * spacing
        if abs(y) > 1.75:
            continue
        for k in range(int(3.4 / stall)):
            x = -1.7 + k * stall
            canvas.line((complex(x - stall / 2, y - 0.15), complex(x - stall / 2, y + 0.15)), 0.01, WHITE, 170)
            for side in (1, -1):
                if canvas.chance(full):
                    car(canvas, complex(x, y + side * 0.075), 1j if canvas.chance(0.7) else -1j)
    if canvas.chance(0.5):
        for k in range(-3, 4):
            tree(canvas, complex(k * 0.5, spacing * canvas.count(-1, 1)), canvas.between(0.06, 0.1))
    if canvas.chance(0.3):
        flat_roof(canvas, canvas.between(1.1, 1.4), 1j, 1.6, 0.7, 0.2)


def runway(canvas: Canvas) -> None:
    """One broad strip with a dashed centre line, a threshold's stripes or the bars of a touch-down zone."""
    meadow(canvas)
    width, surface = canvas.between(0.7, 1.1), canvas.pick(ASPHALT + CONCRETE)
    canvas.line(straight(0), width * 1.25, mix(surface, grass(canvas), 0.4))
    canvas.line(straight(0), width, surface)
    if canvas.chance(0.35):
        road(canvas, (0.4 + 0j, complex(canvas.between(0.6, 1.2), EDGE)), 0.24, surface)
    for side in (1, -1):
        canvas.line(straight(side * width * 0.46), 0.02, WHITE)
    canvas.dashes(*straight(0), 0.03, WHITE, 0.34, 0.26)
    for _ in range(canvas.count(3, 9)):  # the rubber that landing wheels leave
        x, y = canvas.between(-1.6, 1), canvas.between(-0.1, 0.1) * width
        canvas.line((complex(x, y), complex(x + canvas.between(0.3, 0.9), y)), 0.02, (30, 30, 32), 90)
    start = canvas.between(-0.9, 0.2)
    if canvas.chance(0.6):
        canvas.block(start, 1, 0.5, width * 0.9, surface)
        for k in range(-4, 5):
            if k:
                canvas.block(complex(start, k * width / 10), 1, 0.42, width * 0.05, WHITE)
    else:
        for side in (1, -1):
            canvas.block(complex(start, side * width * 0.22), 1, 0.4, 0.09, WHITE)
