"""Painters of open land and water, and of the sports that are played on it.

Each covers the whole canvas and is named after its UC Merced class. The main object lies along the real axis, near the
origin; the canvas turns, shifts and scales it.
"""

import cmath
import math

from bpl.data.scene_canvas import EDGE, Canvas, Colour, band, blob, corners, meander, mix, shade
from bpl.data.scene_objects import (
    PAINT,
    SOIL,
    WATER,
    WHITE,
    car,
    farmhouse,
    grass,
    house,
    meadow,
    road,
    straight,
    traffic,
    tree,
    trees,
)

SAND: tuple[Colour, ...] = ((222, 202, 166), (208, 184, 148), (230, 214, 184))


def agricultural(canvas: Canvas) -> None:
    """Rows of a crop in one to three fields, with a farm track between two."""
    crops = ((96, 140, 60), (150, 160, 80), (196, 176, 108), (140, 104, 74), (72, 112, 58), (176, 148, 110))
    edges = [-EDGE, *sorted(canvas.between(-0.8, 0.8) for _ in range(canvas.count(0, 2))), EDGE]
    for low, high in zip(edges, edges[1:], strict=False):
        crop = canvas.pick(crops)
        canvas.wash((low - EDGE * 1j, high - EDGE * 1j, high + EDGE * 1j, low + EDGE * 1j), shade(crop, 0.85), crop)
        furrow, pitch = shade(crop, canvas.between(0.6, 0.85)), canvas.between(0.07, 0.16)
        across = canvas.chance(0.5)
        for k in range(int(((high - low) if across else 2 * EDGE) / pitch)):
            ends = (low + k * pitch - EDGE * 1j, low + k * pitch + EDGE * 1j)
            if not across:
                ends = (complex(low, k * pitch - EDGE), complex(high, k * pitch - EDGE))
            canvas.line(ends, pitch * 0.45, furrow, 190)
    for edge in edges[1:-1]:
        road(canvas, straight(-edge, 1j), canvas.between(0.03, 0.09), canvas.pick(SOIL))
        if canvas.chance(0.4):
            trees(canvas, 40, where=lambda at, edge=edge: abs(at.real - edge) < 0.15)
        if canvas.chance(0.2):
            farmhouse(canvas, complex(edge + 0.3, canvas.between(-0.7, 0.7)))


def baseballdiamond(canvas: Canvas) -> None:
    """A fan of clay around a square of grass, foul lines, bases, and a mound."""
    meadow(canvas)
    clay, lawn = canvas.pick(SOIL), grass(canvas, canvas.between(0.95, 1.2))
    size, home = canvas.between(0.55, 0.95), -0.5 + 0j
    reach = [home + size * 1.45 * cmath.exp(1j * math.pi * (k / 24 - 0.5) / 2) for k in range(25)]
    field = [home + (point - home) * canvas.between(1.45, 1.5) for point in reach]
    canvas.polygon([home - 0.12, *field], lawn)
    canvas.polygon([home - 0.1, *reach], clay)
    canvas.disc(home, 0.16 * size + 0.05, clay)
    square = corners(home + size * 0.62, cmath.exp(0.25j * math.pi), size * 0.68, size * 0.68)
    canvas.polygon(square, lawn)
    canvas.disc(home + size * 0.6, 0.08, clay)
    for side in (1, -1):
        canvas.line((home, home + size * 2.1 * cmath.exp(0.25j * math.pi * side)), 0.016, WHITE)
    for base in square:
        canvas.disc(base, 0.025, WHITE)
    trees(canvas, canvas.count(0, 40), where=lambda at: abs(at - home - size) > size * 1.25)
    if canvas.chance(0.4):
        for k in range(canvas.count(3, 12)):
            car(canvas, complex(-1.05, -0.6 + 0.09 * k), 1)


def beach(canvas: Canvas) -> None:
    """Sand, foam and a sea that deepens away from the shore."""
    sand = canvas.pick(SAND)
    canvas.ground(shade(sand, 0.92), shade(sand, 1.06))
    shore = meander(canvas, 0.16, canvas.between(-0.35, 0.35))
    sea = canvas.pick(((52, 118, 130), (44, 96, 124), (70, 132, 130), (60, 104, 112)))
    canvas.polygon(band([point - 0.06j for point in shore], 0.16), shade(sand, 0.8))  # wet sand
    canvas.wash([*shore, EDGE * (1 + 1j), EDGE * (-1 + 1j)], sea, shade(sea, 1.18))
    deep = canvas.between(0.4, 0.9)
    canvas.polygon([*(point + deep * 1j for point in shore), EDGE * (1 + 1j), EDGE * (-1 + 1j)], shade(sea, 0.7), 110)
    for k in range(canvas.count(2, 4)):
        out = k * canvas.between(0.12, 0.2)
        surf = [point + wave.imag * 1j + out * 1j for point, wave in zip(shore, meander(canvas, 0.04), strict=True)]
        canvas.line(surf, canvas.between(0.02, 0.08) / (1 + 0.4 * k), WHITE, 210 - 30 * k)
    for _ in range(canvas.count(0, 25)):
        canvas.disc(complex(canvas.between(-1.5, 1.5), canvas.between(-1.3, -0.5)), 0.022, canvas.pick(PAINT))
    if canvas.chance(0.45):
        edge = meander(canvas, 0.08, canvas.between(-1.2, -0.8))
        canvas.wash([*edge, EDGE * (1 - 1j), EDGE * (-1 - 1j)], grass(canvas, 0.7), grass(canvas, 1.0))
        trees(canvas, 25, where=lambda at: at.imag < -1.0)


def chaparral(canvas: Canvas) -> None:
    """Dark shrubs scattered over pale dry soil."""
    soil = canvas.pick(((206, 192, 160), (188, 170, 136), (170, 158, 120)))
    canvas.ground(shade(soil, 0.82), shade(soil, 1.08), 0.75)
    clearing, reach = canvas.somewhere(1.2), canvas.between(0, 0.6)
    trees(canvas, canvas.count(130, 320), (0.025, 0.075), where=lambda at: abs(at - clearing) > reach)
    if canvas.chance(0.25):
        canvas.line(meander(canvas, 0.3, canvas.between(-0.6, 0.6)), 0.07, shade(soil, 1.12))


def forest(canvas: Canvas) -> None:
    """Crown beside crown, and now and then a clearing or a path."""
    canvas.ground(shade(grass(canvas), 0.35), shade(grass(canvas), 0.65), 0.8)
    clearing, reach = canvas.somewhere(1.4), canvas.between(0, 0.4)
    largest = canvas.between(0.11, 0.19)
    trees(canvas, canvas.count(220, 380), (largest * 0.55, largest), where=lambda at: abs(at - clearing) > reach)


def golfcourse(canvas: Canvas) -> None:
    """A mown fairway and a green among bunkers, trees and rough."""
    canvas.dryness *= 0.7  # watered
    meadow(canvas)
    fairway = [point * 0.9 for point in meander(canvas, 0.3)]
    canvas.line(fairway, canvas.between(0.5, 0.8), grass(canvas, 1.15))
    for k in range(0, 48, 4):
        canvas.line(fairway[k : k + 3], 0.4, grass(canvas, 1.24), 120)
    hole = fairway[canvas.count(16, 32)] + canvas.somewhere(0.2)
    if canvas.chance(0.3):
        at = canvas.somewhere(1.1)
        canvas.wash(blob(canvas, at, canvas.between(0.25, 0.4), 0.3, 1.5), *(shade(WATER[0], g) for g in (0.9, 1.2)))
    canvas.polygon(blob(canvas, hole, canvas.between(0.28, 0.36), 0.2, 1.2), grass(canvas, 1.3))
    canvas.polygon(blob(canvas, hole, 0.22, 0.15, 1.2), mix(grass(canvas, 1.35), (150, 200, 110), 0.5))
    for _ in range(canvas.count(1, 4)):
        at = hole + canvas.between(0.36, 0.75) * canvas.heading()
        outline = blob(canvas, at, canvas.between(0.08, 0.17), 0.4, 1.5)
        canvas.polygon([point + 0.02 * canvas.sun for point in outline], grass(canvas, 0.6))
        canvas.polygon(outline, canvas.pick(SAND, 0.05))
    canvas.disc(hole, 0.015, WHITE)
    if canvas.chance(0.3):  # a neighbour's house
        farmhouse(canvas, hole + canvas.between(0.8, 1.1) * canvas.heading())
    trees(canvas, canvas.count(15, 80), where=lambda at: min(abs(at - point) for point in (*fairway[::4], hole)) > 0.4)


def river(canvas: Canvas) -> None:
    """A winding band of water between wooded banks."""
    meadow(canvas)
    course, width = meander(canvas, canvas.between(0.2, 0.5)), canvas.between(0.35, 0.8)
    water = canvas.pick((*WATER, (112, 108, 84), (96, 104, 80)))
    trees(canvas, canvas.count(60, 200), (0.06, 0.15))
    canvas.polygon(band(course, width + canvas.between(0.05, 0.18)), canvas.pick(SOIL))
    canvas.wash(band(course, width), shade(water, 0.9), shade(water, 1.15))
    if canvas.chance(0.35):
        farmhouse(canvas, complex(canvas.between(-0.8, 0.8), course[24].imag + width / 2 + 0.45))
    for side in (1, -1):
        for point in course[::2]:
            if canvas.chance(0.5):
                tree(canvas, point + side * 1j * (width * 0.5 + canvas.between(0.08, 0.2)), canvas.between(0.06, 0.12))


def tenniscourt(canvas: Canvas) -> None:
    """One to four lined courts in a row, in a fenced yard."""
    meadow(canvas)
    number, size = canvas.count(1, 4), canvas.between(0.8, 1.15)
    length, width = 0.62 * size, 0.29 * size
    yard = canvas.pick(((70, 116, 84), (146, 84, 68), (58, 96, 76), (120, 124, 120), (96, 136, 104)))
    play = canvas.pick(((58, 98, 150), (74, 132, 92), (168, 96, 76), (88, 148, 118), (70, 90, 130)))
    road(canvas, straight(canvas.between(0.75, 1.0)), 0.22)
    traffic(canvas, *straight(0.85), canvas.count(0, 4))
    trees(canvas, canvas.count(10, 50), where=lambda at: at.imag < -0.55)
    if canvas.chance(0.5):
        house(canvas, complex(canvas.between(-0.8, 0.8), -0.95), 1, 0.45, 0.3)
    pitch = width * 1.6
    canvas.block(0, 1, number * pitch + 0.1, length * 1.5, yard)
    for k in range(number):
        _court(canvas, complex((k - (number - 1) / 2) * pitch, 0), length, width, play)


def _court(canvas: Canvas, at: complex, length: float, width: float, play: Colour) -> None:
    """A court's surface, its lines and its net, the length along the imaginary axis."""
    canvas.block(at, 1j, length, width, play)
    x, y, thin = width / 2, length / 2, 0.014
    for side in (1, -1):
        for share in (1.0, 0.76):
            canvas.line((at + complex(side * share * x, -y), at + complex(side * share * x, y)), thin, WHITE)
        canvas.line((at + complex(-x, side * y), at + complex(x, side * y)), thin, WHITE)
        canvas.line((at + complex(-x * 0.76, side * y * 0.54), at + complex(x * 0.76, side * y * 0.54)), thin, WHITE)
    canvas.line((at - y * 0.54j, at + y * 0.54j), thin, WHITE)
    canvas.line((at - x * 1.15, at + x * 1.15), 0.02, (40, 44, 48))
