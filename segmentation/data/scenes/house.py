"""What is built: the house, and the wall, fence or hedge around its plot."""

from collections.abc import Iterator
from math import pi

import numpy as np

from .ids import FENCE, FENCE_POLE, OBSTACLE, ROOF, VEGETATION, WALL, WINDOW
from .shapes import Point, Points, offset, patch, polygon, rectangle
from .view import Colour, View, rgb

Border = tuple[Point, Point]  # start, end

# Of the four sides of a house.
OUTWARDS = np.array(
    [
        [0, -1],
        [1, 0],
        [0, 1],
        [-1, 0],
    ]
)
THICKNESS = {"wall": 0.7, "fence": 0.25, "hedge": 1.1}


def paint_borders(view: View, borders: list[Border]) -> None:
    """Along the street with a gap for the drive, and from the street back along one side."""
    along, aside = view.rng.choice(["wall", "fence", "hedge"], 2, p=[0.55, 0.35, 0.1])
    for border, kind in zip(borders, (along, along, aside), strict=True):
        paint_border(view, *border, kind)


def paint_border(
    view: View,
    start: Point,
    end: Point,
    kind: str,
) -> None:
    """A wall, a fence with posts or a hedge, piece by piece so that each leans by itself."""
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
        0x6E706E,  # weathered
    )
    leaf = view.draw_colour(0x3E5C2C, 0x4A643A)
    dx, dy = end - start
    angle = np.arctan2(dy, dx)
    count = 5
    length = np.hypot(dx, dy) / count
    stones = view.grain(brick, 0, 0.1, 0.15, 0.2)
    bricks = view.jointed(stones, angle, 0.6)
    wood = view.grain(timber)
    slats = view.jointed(wood, angle, 0.3)
    leaves = view.grain(leaf, 0.1, 0.3, 0.5, 0.5)
    steps = np.arange(count)[:, None] + 0.5
    for middle in start + (end - start) * steps / count:
        piece = rectangle(middle, length, THICKNESS[kind], angle)
        if kind == "wall":
            view.box(piece, 1.6, WALL, bricks, brick)
        elif kind == "fence":
            view.box(piece, 1.7, FENCE, wood, slats)
            post = rectangle(piece[0], 0.4, 0.4, angle)
            view.box(post, 1.9, FENCE_POLE, wood, timber)
        else:
            view.box(piece, 1.5, VEGETATION, leaves, leaves)


def paint_house(view: View, base: Points) -> None:
    """Walls with windows, and a hipped roof of tiles; most have a chimney.

    base: its corners (4 x 2), counter-clockwise from the lower left.
    """
    rng = view.rng
    middle = base.mean(axis=0)
    length, width = np.ptp(base, axis=0)
    eave = rng.uniform(2.8, 4.5)
    slope = rng.uniform(0.35, 0.65)
    ridge = eave + slope * (width / 2 + 0.3)
    half = offset((length - width) / 2, 0)
    ends = np.stack([middle - half, middle + half])
    eaves = rectangle(middle, length + 0.6, width + 0.6)
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

    view.box(base, eave, WALL, plaster, view.grain(plaster, 0, 0.1, 0.1, 0.1))
    view.shade(polygon(eaves + view.sun * eave, ends + view.sun * ridge))
    paint_windows(view, base, eave)
    paint_roof(
        view,
        view.lift(eaves, eave),
        view.lift(ends, ridge),
        slope,
        tile,
    )
    if rng.random() < 0.8:
        paint_chimney(view, middle + rng.uniform(-0.8, 0.8) * half, ridge)


def faces(lower: Points, upper: Points) -> Iterator[tuple[Points, Point]]:
    """The four sides from the corners below to those above, and where each faces."""
    for k, outward in enumerate(OUTWARDS):
        left, right = k, (k + 1) % 4
        face = [lower[left], lower[right], upper[right], upper[left]]
        yield np.stack(face), outward


def paint_windows(view: View, base: Points, eave: float) -> None:
    """Four windows in each wall that the camera sees."""
    for wall, outward in faces(base, view.lift(base, eave)):
        if wall[0] @ outward >= 0:  # turned away from the camera
            continue
        for t in np.arange(0.1, 0.85, 0.2):
            window = patch(wall, t, t + 0.12, 0.3, 0.75)
            view.paint(window, WINDOW, rgb(0x465464), 0.6)


def paint_roof(
    view: View,
    corners: Points,
    ends: Points,
    slope: float,
    tile: Colour,
) -> None:
    """Four faces of tiles, each lit by how it faces the sun; two have skylights or solar panels.

    corners: of the eaves (4 x 2); ends: of the ridge (2 x 2), both as the camera sees them.
    """
    view.paint(polygon(corners, ends), ROOF, tile * 0.7)  # the ridge caps, seen between the faces
    tiles = view.grain(tile, 0.1, 0.12, 0.12, 0.25)
    for face, outward in faces(corners, ends[[0, 1, 1, 0]]):
        cosine = (1 - slope * view.sun @ outward) / np.hypot(1, slope)
        light = min(cosine, 1.3)
        along = pi / 2 if outward[1] else 0
        rows = view.jointed(tiles, along, 0.42, 0.3, joint=0.25)
        widened = face + 0.012 * (face.mean(axis=0) - face)
        view.paint(widened, ROOF, rows, light)
        if outward[1]:
            paint_panes(view, face, light)


def paint_panes(view: View, face: Points, light: float) -> None:
    """Solar panels or one or two skylights in the face of a roof."""
    rng = view.rng
    if rng.random() < 0.35:
        cells = view.grain(rgb(0x283454), 0.2, 0.1)
        panels = view.jointed(cells, 0, 1.0, 0.9, joint=0.08)
        field = patch(face, 0.22, 0.78, 0.2, 0.75)
        view.paint(field, OBSTACLE, panels, light)
        return
    glass = view.grain(rgb(0x5A6A7C), 0.2, 0.1)
    for left in rng.uniform(0.2, 0.7, rng.integers(1, 3)):
        pane = patch(face, left, left + 0.11, 0.35, 0.65)
        view.paint(pane, WINDOW, glass, light)


def paint_chimney(view: View, place: Point, ridge: float) -> None:
    brick = view.draw_colour(0x8C5040, 0xAAA6A0)
    top = ridge + 0.8
    base = rectangle(place, 1.1, 0.9)
    view.box(
        base,
        top,
        OBSTACLE,
        brick * 0.5,  # soot
        brick,
        foot=ridge - 0.3,
    )
    opening = rectangle(view.lift(place, top), 0.6, 0.4)
    view.paint(opening, OBSTACLE, rgb(0x181616))
