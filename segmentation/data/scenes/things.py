"""What stands or moves on a plot: furniture, a shed, people, dogs, bicycles and cars."""

import numpy as np

from .ids import AR_MARKER, BICYCLE, CAR, DOG, OBSTACLE, PERSON
from .shapes import direction, disc, offset, oval, polygon, rectangle, strokes, turn
from .view import View, rgb


def paint_table(view: View, place: np.ndarray) -> None:
    """A table between two benches."""
    angle = view.rng.uniform(0, np.pi)
    wood = view.draw_colour(0x96704C, 0xB09678, 0x705440, 0x808082)
    planks = view.jointed(view.grain(wood, 0, 0.1, 0.1, 0.2), angle + np.pi / 2, 0.35)
    for across, width, height in (
        (-1.0, 0.5, 0.45),
        (1.0, 0.5, 0.45),
        (0.0, 1.1, 0.8),
    ):
        middle = place + offset(0, across, angle)
        base = rectangle(middle, 2.4, width, angle)
        view.box(base, height, OBSTACLE, planks, wood)


def paint_shed(view: View, place: np.ndarray) -> None:
    """A low hut or a container: nothing to land on."""
    rng = view.rng
    angle = rng.choice([0, np.pi / 2])
    length, width = rng.uniform(2.8, 4.2), rng.uniform(2.0, 2.6)
    metal = view.draw_colour(0x78543E, 0x5C7480, 0x96543E, 0x7E827E, 0x4C5C4A)
    sheet = view.grain(metal, 0, 0.15, 0.15, 0.2)
    ribs = view.jointed(sheet, angle, 0.5, joint=0.4)
    base = rectangle(place, length, width, angle)
    view.box(base, 2.3, OBSTACLE, ribs, metal)


def paint_parasol(view: View, place: np.ndarray) -> None:
    """Eight gores of cloth, lit by how they face the sun."""
    cloth = view.draw_colour(0xD6CEBE, 0xB03C30, 0x34383C, 0x466896, 0x3C6E50)
    rim = np.array([view.rng.uniform(1.3, 1.8), 0])
    view.shade(disc(place + view.sun * 2.2, rim[0]))
    middle = view.lift(place, 2.2)
    for angle in np.arange(8) * np.pi / 4:
        facing = direction(angle + np.pi / 8) @ view.sun
        light = float(np.clip(0.95 - 0.3 * facing, 0, 1.3))
        first, last = rim @ turn(angle), rim @ turn(angle + np.pi / 4)
        gore = np.stack([middle, middle + first, middle + last])
        view.paint(polygon(gore), OBSTACLE, cloth, light)


def paint_marker(view: View, place: np.ndarray) -> None:
    """A calibration target with two black squares."""
    yaw = turn(view.rng.uniform(0, np.pi))
    for x, y, width, colour in (
        (0, 0, 1.2, 0xECECEC),
        (-0.25, -0.25, 0.45, 0x141414),
        (0.25, 0.25, 0.45, 0x141414),
    ):
        square = rectangle(np.array([x, y]), width, width)
        view.paint(polygon(square @ yaw + place), AR_MARKER, rgb(colour))


def paint_person(view: View, place: np.ndarray) -> None:
    height = view.rng.uniform(1.5, 1.9)
    angle = view.rng.uniform(0, np.pi)
    shirt = view.draw_colour(0xB4322E, 0x324E8C, 0xE0DCD2, 0x28282E, 0xD2AA3C, 0x5A785A)
    trousers = view.draw_colour(0x343A54, 0x46403A)
    hair = view.draw_colour(0x422E22, 0x966E46, 0x1E1A18)
    shadow = np.array([[place, place + view.sun * height]])
    shoulders = view.lift(place, height - 0.3)
    body = np.array([[place, shoulders]])
    view.shade(strokes(shadow, 0.42), 0.1)
    view.paint(strokes(body, 0.36), PERSON, trousers, 0.6)
    view.paint(polygon(oval(shoulders, 0.74, 0.44, angle)), PERSON, shirt)
    view.paint(disc(view.lift(place, height), 0.14), PERSON, hair)


def paint_dog(view: View, place: np.ndarray) -> None:
    angle = view.rng.uniform(0, 2 * np.pi)
    coat = view.draw_colour(0x5C402C, 0xC8B08C, 0x2C2826)
    shadow = oval(place + view.sun * 0.5, 1.0, 0.4, angle)
    body = oval(place, 1.0, 0.36, angle)
    head = disc(place + offset(0.5, 0, angle), 0.18)
    view.shade(polygon(shadow))
    view.paint(polygon(body), DOG, coat)
    view.paint(head, DOG, coat * 0.8)


def paint_bicycle(view: View, place: np.ndarray) -> None:
    """Two wheels, a frame and a bar, as they look on a stand."""
    yaw = turn(view.rng.uniform(0, np.pi))
    colour = view.draw_colour(0xBE322C, 0x3C6EAA, 0xD2D2CE, 0x5AA05A)
    rear, front = [[-0.95, 0.0], [-0.3, 0.14]], [[0.3, 0.0], [0.95, 0.14]]
    tube, bar = [[-0.85, 0], [0.85, 0]], [[0.5, -0.32], [0.5, 0.32]]
    wheels = np.array([rear, front]) @ yaw + place
    frame = np.array([tube, bar]) @ yaw + place
    view.shade(strokes(wheels + view.sun * 0.5, 0.3), 0.2, 0.8)
    view.paint(strokes(wheels, 0.26), BICYCLE, rgb(0x2C2C2E))
    view.paint(strokes(frame, 0.2), BICYCLE, colour)


def paint_car(view: View, place: np.ndarray, angle: float) -> None:
    """Body, glass and roof, one above the other, and two lamps."""
    rng = view.rng
    length, width = rng.uniform(3.9, 4.9), rng.uniform(1.75, 1.95)
    top = rng.uniform(1.35, 1.7)
    paints = 0xC43C32, 0x365482, 0x968C6E, 0xA0543C
    greys = 0xDADAD8, 0x3A3E46, 0x787E84, 0x242426
    paint = view.draw_colour(*paints, *greys)
    glass = rgb(0x3A4450)
    angle += rng.choice([0, np.pi])
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
