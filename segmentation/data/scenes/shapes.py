"""Shapes on the ground, in metres: signed distances, and the points they are made of.

A direction is an angle counter-clockwise from the x axis, in radians.
"""

from collections.abc import Callable
from functools import reduce
from itertools import pairwise
from math import hypot, pi
from typing import NamedTuple

import numpy as np
from numpy import ndarray
from numpy.random import Generator
from numpy.typing import ArrayLike

Point = ndarray  # x, y
Points = ndarray  # n x 2
Side = tuple[tuple[float, float], tuple[float, float]]
Wave = tuple[int, float, float]  # waves a turn, amplitude, phase


class Shape(NamedTuple):
    """A signed distance in metres, negative inside.

    The convex hull of `points`, widened by `margin`, holds the shape.
    """

    distance: Callable[[ndarray, ndarray], ndarray]
    points: Points
    margin: float


def draw_waves(rng: Generator, roughness: float = 0.08) -> list[Wave]:
    """Random waves for the rim of a blob."""
    return [
        (count, rng.normal(0, roughness / count**0.5), rng.uniform(0, 2 * pi))
        for count in (2, 3, 5)
    ]


def blob(
    centre: Point,
    radius: float,
    waves: list[Wave],
) -> Shape:
    """A disc whose radius varies with the direction."""
    cx, cy = centre.tolist()

    def distance(x: ndarray, y: ndarray) -> ndarray:
        dx, dy = x - cx, y - cy
        angle = np.arctan2(dy, dx)
        swell = sum(amplitude * np.cos(count * angle + phase) for count, amplitude, phase in waves)
        return np.hypot(dx, dy) - radius * (1 + swell)

    widest = radius * (1 + sum(abs(amplitude) for _, amplitude, _ in waves))
    return Shape(distance, centre[None], widest)


def disc(centre: Point, radius: float) -> Shape:
    return blob(centre, radius, waves=[])


def polygon(*parts: Points) -> Shape:
    """The convex hull of points. Its distance is the largest one to the line through a side."""
    points = np.concatenate(parts)
    lines = []
    for (ax, ay), (bx, by) in hull_sides(points):
        dx, dy = bx - ax, by - ay
        length = hypot(dx, dy)
        nx, ny = dy / length, -dx / length
        lines.append((nx, ny, nx * ax + ny * ay))

    def distance(x: ndarray, y: ndarray) -> ndarray:
        return reduce(np.maximum, [nx * x + (ny * y - offset) for nx, ny, offset in lines])

    return Shape(distance, points, 0.0)


def hull_sides(points: Points) -> list[Side]:
    """The sides of the convex hull, counter-clockwise: Andrew's lower and upper chain."""
    ordered = sorted(map(tuple, points.tolist()))
    sides: list = []
    for path in (ordered, ordered[::-1]):
        chain: list = []  # turns left at each point
        for x, y in path:
            while len(chain) >= 2:
                (ax, ay), (bx, by) = chain[-2:]
                if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 1e-9:
                    break
                chain.pop()
            chain.append((x, y))
        sides += pairwise(chain)
    return sides


def strokes(pairs: ArrayLike, width: float) -> Shape:
    """Strokes of a pen of that width between the two points of each pair (n x 2 x 2)."""
    ends = np.array(pairs)

    def distance(x: ndarray, y: ndarray) -> ndarray:
        distances = []
        for (ax, ay), (bx, by) in ends.tolist():
            dx, dy = bx - ax, by - ay
            along = ((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy)
            t = np.clip(along, 0, 1)
            distances.append(np.hypot(x - ax - t * dx, y - ay - t * dy))
        return reduce(np.minimum, distances) - width / 2

    return Shape(distance, ends.reshape(-1, 2), width / 2)


def turn(angle: float) -> ndarray:
    """The 2 x 2 matrix that turns points by the angle when it stands to their right."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, sin], [-sin, cos]])


def direction(angle: float) -> Point:
    """The unit vector at an angle."""
    return turn(angle)[0]


def offset(along: float, across: float, angle: float = 0.0) -> Point:
    """The vector with these parts along and across (to the left of) a direction."""
    return np.array([along, across]) @ turn(angle)


def rectangle(
    centre: Point,
    length: float,
    width: float,
    angle: float = 0.0,
) -> Points:
    """Four corners, counter-clockwise from the lower left."""
    unit = np.array(
        [
            [-1, -1],
            [1, -1],
            [1, 1],
            [-1, 1],
        ]
    )
    return unit / 2 * (length, width) @ turn(angle) + centre


def oval(
    centre: Point,
    length: float,
    width: float,
    angle: float = 0.0,
    power: float = 2.0,
) -> Points:
    """Sixteen points of a superellipse: power 2 is an ellipse, 6 a rounded rectangle."""
    around = (np.arange(16) + 0.5) * pi / 8
    circle = np.array([np.cos(around), np.sin(around)]).T
    unit = np.sign(circle) * np.abs(circle) ** (2 / power) / 2
    return unit * (length, width) @ turn(angle) + centre


def patch(
    quad: Points,
    left: float,
    right: float,
    low: float,
    high: float,
) -> Points:
    """A part of a quadrilateral, in fractions of its sides.

    quad: lower left, lower right, upper right, upper left.
    """
    a, b, c, d = quad
    corners = []
    for t in (left, right):
        lower = a + t * (b - a)
        upper = d + t * (c - d)
        corners += [lower * (1 - u) + upper * u for u in (low, high)]
    return np.stack(corners)
