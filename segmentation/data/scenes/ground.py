"""What lies flat: lawn, the drive, a path, the street, pool and pond. Lengths are in metres."""

import numpy as np

from .ids import DIRT, GRASS, GRAVEL, PAVED, POOL, WATER
from .shapes import Points, blob, hull, oval, rectangle
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
    far = 3 * view.extent
    everywhere = rectangle((0, 0), far, far)
    meadow = view.grain(lawn, 0.25, 0.25)
    view.paint(everywhere, GRASS, meadow)
    for _ in range(rng.integers(1, 5)):
        earth = view.draw_colour(0x8C7050, 0x7A6248, 0x9C8664)
        place = rng.uniform(-0.5, 0.5, 2) * view.extent
        radius = rng.uniform(0.8, 2.6)
        soil = view.grain(earth, 0.15, 0.25)
        view.paint(blob(rng, place, radius), DIRT, soil)


def paint_paths(
    view: View,
    house: Points,
    drive: Points,
    street: float,
) -> None:
    """The drive, paved or of gravel, and a gravel path from the house to the street.

    house, drive: corners (4 x 2); street: its y.
    """
    rng = view.rng
    chips = view.draw_colour(0xA8A298, 0xB8AE9E, 0x969088)
    clay = view.draw_colour(0x9E7662, 0xAAA49A, 0x8C8886)
    gravel = view.grain(chips, 0.1, 0.5)
    bricks = view.striped(view.grain(clay), 0, 0.8)
    surface = (GRAVEL, gravel) if rng.random() < 0.4 else (PAVED, bricks)
    view.paint(drive, *surface)

    width = rng.uniform(1.3, 2.2)
    gate = rng.uniform(-0.5, 0.5) * view.extent
    start = oval(house.mean(axis=0), width, width)
    end = oval((gate, street), width, width)
    view.paint(hull(start, end), GRAVEL, gravel)


def paint_street(view: View, street: float, width: float) -> None:
    """Pavements on both sides of a carriageway with a broken line.

    street: y of its middle; width: of the carriageway.
    """
    slab = view.draw_colour(0xACA8A0, 0x9C948C, 0xB8AA96)
    tar = view.draw_colour(
        0x5C5C60,  # blue grey
        0x706E6C,  # worn
        0x4C4E52,  # fresh
        0x86827C,  # bleached
    )
    slabs = view.striped(view.grain(slab), 0, 1.0)
    asphalt = view.grain(tar)
    far = view.extent
    pavement = rectangle((0, street), 3 * far, width + 2.4)
    carriageway = rectangle((0, street), 3 * far, width)
    view.paint(pavement, PAVED, slabs)
    view.paint(carriageway, PAVED, asphalt)
    first = view.rng.uniform(0, 3) - far
    for x in np.arange(first, far, 3.0):
        dash = rectangle((x, street), 1.5, 0.14)
        view.paint(dash, PAVED, rgb(0xDEDED6))


def paint_water(view: View) -> None:
    """A pool, a pond with a bank of earth, or both."""
    kinds = view.rng.choice(["pool", "pond", "both"])
    if kinds != "pond":
        paint_pool(view)
    if kinds != "pool":
        paint_pond(view)


def paint_pool(view: View) -> None:
    """An ellipse to a rectangle of water in a paved rim."""
    rng = view.rng
    place = view.spot(3.4)
    power = rng.choice([2.0, 4.0, 12.0])
    sides = rng.uniform((5.5, 3.2), (8.5, 4.5))
    length, width = rng.permutation(sides)
    stone = view.draw_colour(0xC8C0B0, 0xB0ACA6)
    blue = view.draw_colour(0x54ACC0, 0x3C8EB2, 0x70B8B4)
    slabs = view.striped(view.grain(stone), 0, 0.8)
    water = view.grain(blue)
    rim = rectangle(place, length + 1.6, width + 1.6)
    basin = oval(place, length, width, power=power)
    view.paint(rim, PAVED, slabs)
    view.paint(basin, POOL, water)


def paint_pond(view: View) -> None:
    """Water within a bank of earth."""
    rng = view.rng
    place = view.spot(3.2)
    earth = view.draw_colour(0x786C50, 0x686454)
    green = view.draw_colour(
        0x3E544E,  # green
        0x4A5860,  # blue grey
        0x586048,  # olive
        0x384A5C,  # deep blue
    )
    radius = rng.uniform(2.9, 4.3)
    bank = blob(rng, place, radius)
    shore = place + 0.87 * (bank - place)
    mud = view.grain(earth, 0.15, 0.25)
    water = view.grain(green, 0.3, 0.05)
    view.paint(bank, DIRT, mud)
    view.paint(shore, WATER, water)
