"""Built-in data set: rendered views of houses and gardens from a drone, with exact masks.

Scenes need no download, so a first run cannot fail at one. Their masks hold ids of the TU Graz
semantic drone data set, which are grouped into five or two classes as that set's are.

A scene is a plot in metres: a street with cars, a house, water, paths, and between them people,
plants, tables and sheds. The camera looks straight down. Height, yaw, sun, colour temperature,
exposure, haze, blur and sensor noise vary. By perspective what stands up leans away from the
centre. It casts a shadow away from the sun, which changes no label. Colours of the classes overlap
on purpose (red roof and red car, pond and shaded asphalt): shape and surroundings have to be
learnt.
"""

from collections.abc import Callable
from math import pi
from typing import NamedTuple

import numpy as np

from .ground import paint_ground, paint_paths, paint_street, paint_water
from .shapes import Points, rectangle
from .things import (
    paint_borders,
    paint_bush,
    paint_car,
    paint_house,
    paint_obstacle,
    paint_person,
    paint_tree,
)
from .view import View

IMAGES_PER_SPLIT = {"train": 240, "val": 40, "test": 40}


class Plot(NamedTuple):
    """Where the large things lie, in metres from the point below the camera."""

    street: float  # y of the middle of the carriageway
    width: float  # of the carriageway
    house: Points  # corners, 4 x 2
    drive: Points  # corners, 4 x 2
    borders: list[Points]  # corners: two along the street, and one across it


def render(
    seed: int,
    split: str,
    index: int,
    size: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene: the image, uint8 H x W x 3, and the mask, uint8 H x W of TU Graz ids.

    seed, split and index choose the scene; size (H, W) changes its resolution only.
    """
    number = list(IMAGES_PER_SPLIT).index(split)
    view = View(np.random.default_rng([seed, number, index]), size)
    plot = lay_out(view)

    # From low to high: what is painted later covers what is there, and casts its shadow on it.
    paint_ground(view)
    paint_paths(view, plot.house, plot.drive, plot.street)
    paint_street(view, plot.street, plot.width)
    paint_water(view)
    scatter(view, paint_person, 2, 6)
    paint_cars(view, plot)
    scatter(view, paint_bush, 2, 5)
    paint_borders(view, plot.borders)
    scatter(view, paint_obstacle, 3, 6)
    paint_house(view, plot.house)
    scatter(view, paint_tree, 2, 5)
    return view.photograph(), view.mask


def lay_out(view: View) -> Plot:
    """Choose where the large things lie, and keep small ones off street, flank, house and drive.

    The street runs along x and the house lies above it; the camera's yaw turns the whole plot. The
    drive joins the two, beside the house. Borders run along the front of the plot, with a gap (the
    gate) where the drive crosses it, and along one flank. All lengths are in metres.
    """
    rng = view.rng
    half = view.extent / 2
    street = -rng.uniform(0.5, 0.8) * half
    width = rng.uniform(4.8, 6.5)

    x = rng.uniform(-0.5, 0.5) * half
    y = rng.uniform(0.4, 0.75) * half
    length = rng.uniform(0.6, 0.85) * min(half, 14)
    depth = rng.uniform(0.44, 0.58) * min(half, 13)
    house = rectangle((x, y), length, depth)

    beside = length / 2 + 1.9
    gate = x + rng.choice([-beside, beside])
    halfway = (street + y) / 2
    drive = rectangle((gate, halfway), 3.2, y - street)

    front = street + width / 2 + 1.7
    flank = rng.choice([-1, 1]) * rng.uniform(0.76, 0.94) * half
    far = 1.5 * half
    borders = [
        rectangle((gate - 2 - far, front), 2 * far, 0.5),
        rectangle((gate + 2 + far, front), 2 * far, 0.5),
        rectangle((flank, front + far), 0.5, 2 * far),
    ]

    road = rectangle((0, street), 4 * half, width + 3.4)
    for shape in (road, borders[2], house, drive):
        view.reserve(shape)
    return Plot(street, width, house, drive, borders)


def scatter(
    view: View,
    paint: Callable[[View], None],
    least: int,
    most: int,
) -> None:
    """Paint `least` to `most` things of a kind, each at a free place that `paint` chooses."""
    for _ in range(view.rng.integers(least, most + 1)):
        paint(view)


def paint_cars(view: View, plot: Plot) -> None:
    """Two to four cars in the lanes of the street, and one in the drive."""
    rng = view.rng
    places = rng.permutation([-0.75, -0.2, 0.35, 0.85])
    for k, x in enumerate(places[: rng.integers(2, 5)]):
        along = x * view.extent / 2 + rng.normal(0, 0.5)
        lane = (-1) ** k * plot.width / 4
        angle = rng.normal(0, 0.03)
        paint_car(view, (along, plot.street + lane), angle)
    place = plot.drive.mean(axis=0)
    place += rng.normal(0, (0.1, 0.8))
    angle = rng.normal(pi / 2, 0.06)
    paint_car(view, place, angle)
