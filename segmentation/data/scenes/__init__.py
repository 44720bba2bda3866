"""Built-in data set: rendered views of houses and gardens from a drone, with exact masks.

A first run needs data, and a download is where first runs fail. Scenes need none, there is no end
of them, and their truth is known to the pixel. They carry the ids of the TU Graz semantic drone
data set, and take the same grouping to five or two classes.

A scene is a plot in metres: a street with cars, a house, water, paths, and what people leave
between them. The camera looks straight down. Height, yaw, sun, colour temperature, exposure, haze,
blur and sensor noise vary. What stands up leans away from the centre by perspective and casts its
shadow away from the sun; a shadow never changes a label. Colours of the classes overlap on purpose
(red roof and red car, pond and shaded asphalt): shape and surroundings have to be learnt.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .ground import paint_ground, paint_heap, paint_paths, paint_street, paint_water
from .house import paint_border, paint_house
from .shapes import Point, Points, polygon, rectangle
from .things import (
    paint_bicycle,
    paint_bush,
    paint_car,
    paint_dog,
    paint_marker,
    paint_parasol,
    paint_person,
    paint_shed,
    paint_table,
    paint_tree,
)
from .view import View

IMAGES_PER_SPLIT = {"train": 240, "val": 40, "test": 40}


class Plot(NamedTuple):
    """Where the large things lie, in metres from the point below the camera."""

    side: int  # of the street: -1 or 1
    street: Point  # a point in the middle of the carriageway
    width: float  # of the carriageway
    house: Points  # corners, 4 x 2
    gate: float  # x of the drive
    drive: Points  # corners, 4 x 2
    front: float  # y of the border along the street
    flank: float  # x of the border across it


def render(
    seed: int,
    split: str,
    index: int,
    size: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """A scene, which is the same at any size (H, W).

    Returns the image, uint8 H x W x 3, and the mask, uint8 H x W of TU Graz ids.
    """
    number = list(IMAGES_PER_SPLIT).index(split)
    view = View(np.random.default_rng([seed, number, index]), size)
    plot = lay_out(view)

    # From low to high: what is painted later covers, and shades, what is there.
    paint_ground(view)
    paint_paths(view, plot.house, plot.drive, plot.street[1])
    paint_street(view, plot.street, plot.width)
    paint_water(view)
    paint_heap(view)
    scatter(
        view,
        (paint_marker, 0.8, 0, 1),
        (paint_dog, 0.6, 0, 1),
        (paint_table, 1.6, 1, 3),
        (paint_person, 0.5, 2, 6),
        (paint_bicycle, 1.0, 1, 3),
    )
    paint_cars(view, plot)
    for _ in range(view.rng.integers(2, 6)):
        paint_bush(view)
    paint_borders(view, plot)
    scatter(view, (paint_parasol, 1.7, 1, 2), (paint_shed, 2.0, 0, 2))
    paint_house(view, plot.house)
    for _ in range(view.rng.integers(2, 6)):
        paint_tree(view)
    return view.photograph(), view.mask


def lay_out(view: View) -> Plot:
    """Draw the plot, and reserve its street, side border, house and drive."""
    rng = view.rng
    half = view.extent / 2
    side = rng.choice([-1, 1])
    street = np.array([0, side * rng.uniform(0.5, 0.8) * half])
    width = rng.uniform(4.8, 6.5)

    across = rng.uniform(-0.5, 0.5)
    away = rng.uniform(0.4, 0.75)
    middle = np.array([across, -side * away]) * half
    length = rng.uniform(0.55, 0.85) * min(half, 14)
    depth = rng.uniform(0.44, 0.58) * min(half, 13)
    house = rectangle(middle, length, depth)

    gate = middle[0] + rng.choice([-1, 1]) * (np.ptp(house[:, 0]) / 2 + 1.9)
    halfway = (street[1] + middle[1]) / 2
    drive = rectangle(np.array([gate, halfway]), 3.2, abs(street[1] - middle[1]))
    front = street[1] - side * (width / 2 + 1.7)
    flank = rng.choice([-1, 1]) * rng.uniform(0.76, 0.94) * half

    road = rectangle(street, 4 * half, width + 3.4)
    border = rectangle(np.array([flank, 0]), 0.8, 4 * half)
    view.taken += [polygon(claim) for claim in (road, border, house, drive)]
    return Plot(side, street, width, house, gate, drive, front, flank)


def scatter(view: View, *kinds: tuple[Callable[[View, Point], None], float, int, int]) -> None:
    """Paint some of each kind, each at its own free place.

    kinds: painter, metres of free ground around a place, how many at least and at most.
    """
    for paint, room, least, most in kinds:
        for _ in range(view.rng.integers(least, most + 1)):
            paint(view, view.spot(room))


def paint_cars(view: View, plot: Plot) -> None:
    """Two to four cars in the lanes of the street, and one in the drive."""
    rng = view.rng
    places = rng.permutation([-0.75, -0.2, 0.35, 0.85])
    for k, x in enumerate(places[: rng.integers(2, 5)]):
        along = x * view.extent / 2 + rng.normal(0, 0.5)
        lane = (-1) ** k * plot.width / 4
        place = plot.street + np.array([along, lane])
        paint_car(view, place, rng.normal(0, 0.03))
    place = plot.drive.mean(axis=0) + rng.normal(0, (0.1, 0.8))
    paint_car(view, place, np.pi / 2 + rng.normal(0, 0.06))


def paint_borders(view: View, plot: Plot) -> None:
    """Along the street with a gap for the drive, and from the street back along one side."""
    far = 0.75 * view.extent
    front, flank = plot.front, plot.flank
    along, aside = view.rng.choice(["wall", "fence", "hedge"], 2, p=[0.55, 0.35, 0.1])
    for start, end, kind in (
        ((-far, front), (plot.gate - 2, front), along),
        ((plot.gate + 2, front), (far, front), along),
        ((flank, front), (flank, -plot.side * far), aside),
    ):
        paint_border(view, np.array(start), np.array(end), kind)
