"""What stands, grows or moves on a plot: furniture, a shed, people, cars, bushes, trees."""

from math import pi

import numpy as np

from .ids import AR_MARKER, BALD_TREE, BICYCLE, CAR, DOG, OBSTACLE, PERSON, TREE, VEGETATION
from .shapes import (
    Point,
    blob,
    direction,
    disc,
    draw_waves,
    offset,
    oval,
    rectangle,
    strokes,
    turn,
)
from .view import View, rgb


def paint_table(view: View) -> None:
    """A table between two benches."""
    place = view.spot(1.6)
    angle = view.rng.uniform(0, pi)
    wood = view.draw_colour(
        0x96704C,  # oak
        0xB09678,  # pine
        0x705440,  # walnut
        0x808082,  # weathered
    )
    planks = view.jointed(view.grain(wood), angle + pi / 2, 0.35)
    for across, width, height in (
        (-1.0, 0.5, 0.45),
        (1.0, 0.5, 0.45),
        (0.0, 1.1, 0.8),
    ):
        middle = place + offset(0, across, angle)
        base = rectangle(middle, 2.4, width, angle)
        view.box(base, height, OBSTACLE, planks, wood)


def paint_shed(view: View) -> None:
    """A low hut or a container: nothing to land on."""
    place = view.spot(2.0)
    rng = view.rng
    angle = rng.choice([0, pi / 2])
    length = rng.uniform(2.8, 4.2)
    width = rng.uniform(2.0, 2.6)
    metal = view.draw_colour(
        0x78543E,  # brown
        0x5C7480,  # grey blue
        0x96543E,  # rust
        0x7E827E,  # zinc
        0x4C5C4A,  # dark green
    )
    sheet = view.grain(metal, 0, 0.15, 0.15, 0.2)
    ribs = view.jointed(sheet, angle, 0.5, joint=0.4)
    base = rectangle(place, length, width, angle)
    view.box(base, 2.3, OBSTACLE, ribs, metal)


def paint_parasol(view: View) -> None:
    """Eight gores of cloth, lit by how they face the sun."""
    place = view.spot(1.7)
    cloth = view.draw_colour(
        0xD6CEBE,  # cream
        0xB03C30,  # red
        0x34383C,  # anthracite
        0x466896,  # blue
        0x3C6E50,  # green
    )
    radius = view.rng.uniform(1.3, 1.8)
    view.shade(disc(place + view.sun * 2.2, radius))
    middle = view.lift(place, 2.2)
    for angle in np.arange(8) * pi / 4:
        facing = direction(angle + pi / 8) @ view.sun
        light = min(0.95 - 0.3 * float(facing), 1.3)
        first = offset(radius, 0, angle)
        last = offset(radius, 0, angle + pi / 4)
        gore = np.stack([middle, middle + first, middle + last])
        view.paint(gore, OBSTACLE, cloth, light)


def paint_marker(view: View) -> None:
    """A calibration target with two black squares."""
    place = view.spot(0.8)
    yaw = turn(view.rng.uniform(0, pi))
    for x, width, colour in (
        (0, 1.2, 0xECECEC),
        (-0.25, 0.45, 0x141414),
        (0.25, 0.45, 0x141414),
    ):
        square = rectangle(offset(x, x), width, width)
        view.paint(square @ yaw + place, AR_MARKER, rgb(colour))


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
    shadow = place, place + view.sun * height
    shoulders = view.lift(place, height - 0.3)
    body = place, shoulders
    view.shade(strokes([shadow], 0.42), 0.1)
    view.paint(strokes([body], 0.36), PERSON, trousers, 0.6)
    view.paint(oval(shoulders, 0.74, 0.44, angle), PERSON, shirt)
    view.paint(disc(view.lift(place, height), 0.14), PERSON, hair)


def paint_dog(view: View) -> None:
    place = view.spot(0.6)
    angle = view.rng.uniform(0, 2 * pi)
    coat = view.draw_colour(0x5C402C, 0xC8B08C, 0x2C2826)
    view.shade(oval(place + view.sun * 0.5, 1.0, 0.4, angle))
    view.paint(oval(place, 1.0, 0.36, angle), DOG, coat)
    view.paint(disc(place + offset(0.5, 0, angle), 0.18), DOG, coat * 0.8)


def paint_bicycle(view: View) -> None:
    """Two wheels, a frame and a bar, as they look on a stand."""
    place = view.spot(1.0)
    yaw = turn(view.rng.uniform(0, pi))
    colour = view.draw_colour(
        0xBE322C,  # red
        0x3C6EAA,  # blue
        0xD2D2CE,  # silver
        0x5AA05A,  # green
    )
    rear = [-0.95, 0.0], [-0.3, 0.14]
    front = [0.3, 0.0], [0.95, 0.14]
    tube = [-0.85, 0], [0.85, 0]
    bar = [0.5, -0.32], [0.5, 0.32]
    wheels = np.array([rear, front]) @ yaw + place
    frame = np.array([tube, bar]) @ yaw + place
    view.shade(strokes(wheels + view.sun * 0.5, 0.3), 0.2, 0.8)
    view.paint(strokes(wheels, 0.26), BICYCLE, rgb(0x2C2C2E))
    view.paint(strokes(frame, 0.2), BICYCLE, colour)


def paint_car(view: View, place: Point, angle: float) -> None:
    """Body, glass and roof, one above the other, and two lamps."""
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
    angle += rng.choice([0, pi])
    cabin = place + offset(-0.07 * length, 0, angle)

    body = oval(place, length, width, angle, 6)
    windows = oval(cabin, 0.58 * length, 0.88 * width, angle, 6)
    roof = oval(cabin, 0.36 * length, 0.8 * width, angle, 6)
    view.box(body, 0.75, CAR, paint, paint * 0.6)
    view.box(windows, 0.95, CAR, glass, glass, foot=0.75)
    view.box(roof, top, CAR, paint, glass * 0.7, foot=0.95)
    for side in (-0.36, 0.36):
        front = place + offset(0.46 * length, side * width, angle)
        view.paint(disc(view.lift(front, 0.75), 0.12), CAR, rgb(0xECEADC))


def paint_bush(view: View) -> None:
    radius = view.rng.uniform(0.4, 1.0)
    paint_canopy(view, view.spot(0.8), radius, 0.7 * radius, VEGETATION)


def paint_tree(view: View) -> None:
    """A tree in leaf or, one in six, bare branches."""
    radius = view.rng.uniform(1.3, 2.7)
    place = view.spot(0.8 * radius)
    top = view.rng.uniform(1.2, 1.8) * radius
    if view.rng.random() < 5 / 6:
        paint_canopy(view, place, radius, top, TREE)
    else:
        paint_branches(view, place, radius, top)


def paint_canopy(
    view: View,
    place: Point,
    radius: float,
    top: float,
    label: int,
) -> None:
    """A shadow, a dark crown, and on it clumps of leaves, brighter toward the sun."""
    rng = view.rng
    leaf = view.draw_colour(
        0x4E6A30,  # fresh green
        0x3E5C34,  # dark green
        0x687438,  # olive
        0x34502E,  # fir
        0x826E32,  # autumn
    )
    middle = view.lift(place, top)
    to_sun = -view.sun / np.hypot(*view.sun)
    waves = draw_waves(rng)
    shadow = blob(place + view.sun * top, radius, waves)
    crown = blob(middle, radius, waves)
    view.shade(shadow, 0.4)
    shaded = view.grain(leaf * 0.55, 0.1, 0.2, 0.4, 0.5)
    view.paint(crown, label, shaded, 0.55)
    for angle, distance in rng.uniform((0, 0.1), (2 * pi, 0.66), (8, 2)):
        outwards = direction(angle) * distance
        leaves = view.grain(leaf * rng.uniform(0.8, 1.1), 0, 0.2, 0.4, 0.6)
        size = radius * rng.uniform(0.24, 0.36)
        waves = draw_waves(rng, 0.1)
        clump = blob(middle + outwards * radius, size, waves)
        light = 0.7 + 0.5 * outwards @ to_sun
        view.paint(clump, label, leaves, light)


def paint_branches(
    view: View,
    place: Point,
    radius: float,
    top: float,
) -> None:
    """Nine forks about the trunk."""
    rng = view.rng
    branches = []
    for angle in np.arange(9) * 0.7 + rng.normal(0, 0.2, 9):
        lengths = rng.uniform((0.4, 0.8), (0.6, 1.1))
        fork, tip = lengths[:, None] * direction(angle) * radius
        left = tip @ turn(0.35)
        right = 0.9 * tip @ turn(-0.35)
        branches += [
            (0 * fork, fork),
            (fork, tip),
            (fork, left),
            (fork, right),
        ]
    bark = view.draw_colour(0x78685C, 0x968A7E, 0x5C4E44)
    shadow = np.array(branches) + place + view.sun * top
    crown = np.array(branches) + view.lift(place, top)
    view.shade(strokes(shadow, 0.2), 0.15, 0.7)
    rough = view.grain(bark, 0, 0, 0.2, 0.3)
    view.paint(strokes(crown, 0.24), BALD_TREE, rough)
