"""What stands, grows or moves on a plot: house, walls, sheds, people, cars, bushes, trees.

Lengths and heights are in metres.
"""

from math import pi

import numpy as np

from .ids import CAR, FENCE, OBSTACLE, PERSON, ROOF, TREE, VEGETATION, WALL
from .shapes import Point, Points, blob, hull, offset, oval, rectangle
from .view import View, rgb


def paint_borders(view: View, borders: list[Points]) -> None:
    """Walls or fences around the plot, all of a kind. borders: corners (4 x 2) of each."""
    brick = view.draw_colour(
        0x96604C,  # red brick
        0xB0A89C,  # concrete
        0xC4B8A0,  # sandstone
        0x847E78,  # grey stone
    )
    timber = view.draw_colour(
        0x866242,  # larch
        0x604A3A,  # dark stain
        0xBEBAB2,  # white paint
    )
    kinds = [(WALL, brick), (FENCE, timber)]
    label, colour = kinds[view.rng.integers(2)]
    for base in borders:
        view.box(base, 1.6, label, view.grain(colour), colour)


def paint_house(view: View, base: Points) -> None:
    """Walls, and a hipped roof of four faces, each lit by how it faces the sun.

    base: its corners (4 x 2), counter-clockwise from the lower left. eave, ridge: heights of the
    walls and of the roof's top; slope: the roof's rise per metre.
    """
    rng = view.rng
    middle = base.mean(axis=0)
    length, width = np.ptp(base, axis=0)
    eave = rng.uniform(2.8, 4.5)
    slope = rng.uniform(0.35, 0.65)
    ridge = eave + slope * (width / 2 + 0.3)
    eaves = rectangle(middle, length + 0.6, width + 0.6)
    ends = rectangle(middle, length - width, 0)  # of the ridge, each twice
    plaster = view.draw_colour(
        0xD8CEBA,  # cream
        0xC4B296,  # sand
        0xDEDCD6,  # white
        0xA86E58,  # terracotta
    )
    tile = view.draw_colour(
        0x9E523E,  # red clay
        0x84463A,  # dark red
        0x54545A,  # slate
        0x6E5C4E,  # brown
        0xAC6E50,  # orange
    )

    view.box(base, eave, WALL, plaster, plaster)
    view.shade(hull(eaves + view.sun * eave, ends + view.sun * ridge))
    lower = view.lift(eaves, eave)
    upper = view.lift(ends, ridge)
    view.paint(hull(lower, upper), ROOF, tile * 0.7)  # fills the seams between the faces
    for k in range(4):
        corners = [k, (k + 1) % 4]
        angle = k * pi / 2
        outward = offset(0, -1, angle)
        cosine = (1 - slope * outward @ view.sun) / np.hypot(1, slope)
        light = min(cosine, 1.3)
        tiles = view.striped(view.grain(tile), angle + pi / 2, 0.4)
        face = hull(lower[corners], upper[corners])
        view.paint(face, ROOF, tiles, light)


def paint_obstacle(view: View) -> None:
    """A garden table or a shed."""
    rng = view.rng
    kinds = [
        (2.4, 1.8, 0.8),  # a table
        (3.6, 2.4, 2.3),  # a shed
    ]
    sizes = rng.choice(kinds) * rng.uniform(0.85, 1.15, 3)
    length, width, height = sizes.tolist()
    place = view.spot(2.0)
    angle = rng.uniform(0, pi)
    colour = view.draw_colour(
        0x96704C,  # oak
        0x705440,  # walnut
        0x5C7480,  # grey blue
        0x96543E,  # rust
        0x808082,  # zinc
        0x4C5C4A,  # dark green
    )
    planks = view.striped(view.grain(colour), angle, 0.45)
    base = rectangle(place, length, width, angle)
    view.box(base, height, OBSTACLE, planks, colour)


def paint_person(view: View) -> None:
    place = view.spot(0.5)
    height = view.rng.uniform(1.5, 1.9)
    angle = view.rng.uniform(0, pi)
    shirt = view.draw_colour(
        0xB4322E,  # red
        0x324E8C,  # blue
        0xE0DCD2,  # white
        0x28282E,  # black
        0xD2AA3C,  # yellow
        0x5A785A,  # green
    )
    trousers = view.draw_colour(0x343A54, 0x46403A)
    hair = view.draw_colour(0x422E22, 0x966E46, 0x1E1A18)
    shoulders = oval(place, 0.74, 0.44, angle)
    head = oval(place, 0.28, 0.28)
    view.box(shoulders, height - 0.3, PERSON, shirt, trousers)
    view.paint(view.lift(head, height), PERSON, hair)


def paint_car(view: View, place: Point, angle: float) -> None:
    """A body, on it a cabin of glass, and on this the roof."""
    rng = view.rng
    length = rng.uniform(3.9, 4.9)
    width = rng.uniform(1.75, 1.95)
    top = rng.uniform(1.35, 1.7)
    paint = view.draw_colour(
        0xC43C32,  # red
        0x365482,  # blue
        0x968C6E,  # beige
        0xA0543C,  # rust
        0xDADAD8,  # white
        0x3A3E46,  # anthracite
        0x787E84,  # silver
        0x242426,  # black
    )
    glass = rgb(0x3A4450)
    backwards = rng.choice([-0.07, 0.07]) * length
    behind = place + offset(backwards, 0, angle)
    body = oval(place, length, width, angle, 6)
    cabin = oval(behind, 0.58 * length, 0.88 * width, angle, 6)
    roof = oval(behind, 0.36 * length, 0.8 * width, angle, 6)
    view.box(body, 0.75, CAR, paint, paint * 0.6)
    view.box(cabin, top, CAR, glass, glass)
    view.paint(view.lift(roof, top), CAR, paint)


def paint_bush(view: View) -> None:
    radius = view.rng.uniform(0.4, 1.0)
    paint_crown(view, radius, 0.7 * radius, VEGETATION)


def paint_tree(view: View) -> None:
    radius = view.rng.uniform(1.3, 2.7)
    paint_crown(view, radius, 1.5 * radius, TREE)


def paint_crown(
    view: View,
    radius: float,
    top: float,
    label: int,
) -> None:
    """A shadow, a dark crown, and on it clumps of leaves, brighter towards the sun.

    top: height of the crown; label: TREE or VEGETATION.
    """
    rng = view.rng
    place = view.spot(0.8 * radius)
    leaf = view.draw_colour(
        0x4E6A30,  # fresh green
        0x3E5C34,  # dark green
        0x687438,  # olive
        0x34502E,  # fir
        0x826E32,  # autumn
    )
    crown = blob(rng, place, radius)
    view.shade(crown + view.sun * top, 0.4)
    shaded = view.grain(leaf * 0.55, 0.15, 0.5)
    view.paint(view.lift(crown, top), label, shaded, 0.55)
    to_sun = -view.sun / np.hypot(*view.sun)
    for angle in rng.uniform(0, 2 * pi, 8):
        outwards = offset(rng.uniform(0.1, 0.8), 0, angle)
        clump = blob(rng, place + outwards * radius, 0.35 * radius)
        leaves = view.grain(leaf * rng.uniform(0.8, 1.1), 0.1, 0.5)
        light = 0.7 + 0.5 * outwards @ to_sun
        view.paint(view.lift(clump, top), label, leaves, light)
