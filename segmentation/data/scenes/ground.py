"""What lies flat: lawn, paths, the street, pool and pond. Rocks, as they lie about a pond."""

from itertools import pairwise
from math import pi

import numpy as np

from .ids import DIRT, GRASS, GRAVEL, PAVED, POOL, ROCKS, WATER
from .shapes import Point, Points, blob, disc, draw_waves, offset, oval, rectangle, strokes
from .view import View, rgb


def paint_ground(view: View) -> None:
    """Lawn or dry meadow, with bare earth in places."""
    rng = view.rng
    lawn = view.draw_colour(
        0x68843E,  # green
        0x7C8A4E,  # yellow green
        0x58783C,  # dark green
        0x8C8A58,  # dry
    )
    everywhere = disc(offset(0, 0), view.extent)
    meadow = view.grain(lawn, 0.25, 0.25, 0.15, 0.3)
    view.paint(everywhere, GRASS, meadow)
    for _ in range(rng.integers(1, 5)):
        earth = view.draw_colour(0x8C7050, 0x7A6248, 0x9C8664)
        place = rng.uniform(-0.5, 0.5, 2) * view.extent
        radius = rng.uniform(0.8, 2.6)
        waves = draw_waves(rng, 0.15)
        soil = view.grain(earth, 0.1, 0.2, 0.2, 0.3)
        view.paint(blob(place, radius, waves), DIRT, soil)


def paint_paths(
    view: View,
    house: Points,
    drive: Points,
    street: float,
) -> None:
    """The drive, a terrace, and a gravel path that swings through the garden to the street.

    house, drive: corners (4 x 2); street: its y.
    """
    rng = view.rng
    chips = view.draw_colour(0xA8A298, 0xB8AE9E, 0x969088)
    clay = view.draw_colour(0x9E7662, 0xAAA49A, 0x8C8886)
    pitches = (0.8, 0.8) if rng.random() < 0.5 else (0.5, 1.0)
    stones = view.grain(chips, 0.05, 0.1, 0.15, 0.6)
    bricks = view.grain(clay, 0.05, 0.1, 0.15, 0.25)
    bricks = view.jointed(bricks, 0, *pitches)
    surface = (GRAVEL, stones) if rng.random() < 0.4 else (PAVED, bricks)
    view.paint(drive, *surface)

    middle = house.mean(axis=0)
    end = offset(rng.uniform(-0.5, 0.5) * view.extent, street)
    aside = rng.uniform(-1.5, 1.5)
    behind = rng.choice([-1, 1]) * (np.ptp(house[:, 1]) / 2 + 1)
    terrace = middle + offset(aside, behind)
    length = rng.uniform(4, 7)
    width = rng.uniform(3, 4.5)
    base = rectangle(terrace, length, width)
    view.paint(base, PAVED, bricks)

    t = np.linspace(0, 1, 9)[:, None]
    swing = np.sin(t * pi) * rng.normal(0, 2.5, 2)
    path = middle + t * (end - middle) + swing
    pieces = list(pairwise(path))
    across = rng.uniform(1.3, 2.2)
    view.paint(strokes(pieces, across), GRAVEL, stones)


def paint_street(view: View, street: float, width: float) -> None:
    """Pavements on both sides of a carriageway with a broken line, and at times a crossing.

    street: y of its middle.
    """
    rng = view.rng
    slab = view.draw_colour(0xACA8A0, 0x9C948C, 0xB8AA96)
    tar = view.draw_colour(
        0x5C5C60,  # blue grey
        0x706E6C,  # worn
        0x4C4E52,  # fresh
        0x86827C,  # bleached
    )
    slabs = view.grain(slab, 0.05, 0.1, 0.1, 0.2)
    pavement = view.jointed(slabs, 0, 1.0, 0.6)
    asphalt = view.grain(tar, 0.1, 0.15, 0.1, 0.2)
    white = view.grain(rgb(0xDEDED6))
    for across, texture in (
        (width + 2.4, pavement),
        (width + 0.3, rgb(0xC4C2BC)),
        (width, asphalt),
    ):
        strip = rectangle(offset(0, street), 3 * view.extent, across)
        view.paint(strip, PAVED, texture)

    side = 0.8 * view.extent
    for x in np.arange(-side, side, 3.0) + rng.uniform(0, 3):
        dash = rectangle(offset(x, street), 1.5, 0.14)
        view.paint(dash, PAVED, white)

    if rng.random() < 0.4:
        x = rng.uniform(-0.4, 0.4) * view.extent
        for y in np.arange(0.6 - width / 2, width / 2 - 0.2, 1.0):
            bar = rectangle(offset(x, street + y), 2.6, 0.5)
            view.paint(bar, PAVED, white)


def paint_water(view: View) -> None:
    """A tiled pool, a pond with a stony bank, or both."""
    kinds = view.rng.choice(["pool", "pond", "both"], p=[0.4, 0.3, 0.3])
    if kinds != "pond":
        paint_pool(view)
    if kinds != "pool":
        paint_pond(view)


def paint_pool(view: View) -> None:
    rng = view.rng
    place = view.spot(3.4, 0.38)
    angle = rng.normal(0, 0.1)
    power = rng.choice([2.0, 4.0, 12.0])
    length, width = rng.permutation(rng.uniform((5.5, 3.2), (8.5, 4.5)))
    stone = view.draw_colour(0xC8C0B0, 0xB0ACA6)
    blue = view.draw_colour(0x54ACC0, 0x3C8EB2, 0x70B8B4)
    tiles = view.jointed(view.grain(stone), angle, 0.8, 0.8)
    water = view.grain(blue, 0.1, 0.15, 0.25, 0.1)
    rim = rectangle(place, length + 1.6, width + 1.6, angle)
    edge = oval(place, length + 0.3, width + 0.3, angle, power)
    basin = oval(place, length, width, angle, power)
    view.paint(rim, PAVED, tiles)
    view.shade(edge, 0.1, 0.3)
    view.paint(basin, POOL, water, 0.9)


def paint_pond(view: View) -> None:
    rng = view.rng
    place = view.spot(3.2, 0.38)
    radius = rng.uniform(2.4, 3.8)
    earth = view.draw_colour(0x786C50, 0x686454)
    green = view.draw_colour(
        0x3E544E,  # green
        0x4A5860,  # blue grey
        0x586048,  # olive
        0x384A5C,  # deep blue
    )
    waves = draw_waves(rng)
    bank = blob(place, radius + 0.5, waves)
    shore = blob(place, radius, waves)
    mud = view.grain(earth, 0.1, 0.2, 0.2, 0.3)
    water = view.grain(green, 0.35, 0.25, 0.05)
    view.paint(bank, DIRT, mud)
    view.paint(shore, WATER, water, 0.8)
    for angle in rng.uniform(0, 2 * pi, 8):
        paint_rock(view, place + offset(radius + 0.4, 0, angle))


def paint_heap(view: View) -> None:
    """Rocks about a place."""
    rng = view.rng
    heap = view.spot(1.5)
    count = rng.integers(4, 10)
    for place in heap + rng.normal(0, 1.0, (count, 2)):
        paint_rock(view, place)


def paint_rock(view: View, place: Point) -> None:
    size = view.rng.uniform(0.4, 1.0)
    stone = view.draw_colour(0x928E88, 0x78726C, 0xA49888)
    corners = view.rng.normal(0, size / 2, (7, 2))
    base = place + corners.clip(-size, size)
    rough = view.grain(stone, 0, 0.1, 0.2, 0.3)
    view.box(base, size * 0.6, ROCKS, rough, stone)
