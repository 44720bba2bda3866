"""Shapes on the ground, in metres. Each is the convex hull of its points, n x 2.

A direction is an angle counter-clockwise from the x axis, in radians.
"""

from functools import reduce
from math import pi

import numpy as np
from numpy import ndarray
from numpy.random import Generator

Point = ndarray | tuple[float, float]  # x, y
Points = ndarray  # n x 2


def hull(*parts: Points) -> Points:
    """The smallest convex shape around all of these."""
    return np.concatenate(parts)


def distance(points: Points, x: ndarray, y: ndarray) -> ndarray:
    """Signed distance of places from the hull of the points, in metres, negative inside.

    x, y: arrays of one shape -> that shape. It is the largest signed distance from the line through
    a side of the hull; beyond a corner the Euclidean distance is a little larger.
    """
    edges = points - points[:, None]  # n x n x 2, from every point to every other
    lengths = np.hypot(edges[..., 0], edges[..., 1])
    start, end = np.nonzero(lengths > 1e-6)
    unit = edges[start, end] / lengths[start, end, None]
    normals = unit @ turn(-pi / 2)  # to an edge's right, outside of the hull
    reach = np.sum(normals * points[start], axis=1)
    farthest = np.max(normals @ points.T, axis=1)
    outer = farthest < reach + 1e-6  # no point lies beyond such an edge: a side of the hull
    sides = np.column_stack([normals, reach])[outer].tolist()
    beyond = [nx * x + (ny * y - far) for nx, ny, far in sides]
    return reduce(np.maximum, beyond)


def turn(angle: float) -> ndarray:
    """The 2 x 2 matrix that turns points, n x 2, by the angle: points @ turn(angle)."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, sin], [-sin, cos]])


def offset(along: float, across: float, angle: float) -> ndarray:
    """The vector of so many metres along a direction and across it, to its left."""
    return np.array([along, across]) @ turn(angle)


def rectangle(
    centre: Point,
    length: float,
    width: float,
    angle: float = 0.0,
) -> Points:
    """Four corners, counter-clockwise from the lower left."""
    halves = [
        (-0.5, -0.5),
        (0.5, -0.5),
        (0.5, 0.5),
        (-0.5, 0.5),
    ]
    return np.array(halves) * (length, width) @ turn(angle) + centre


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


def blob(rng: Generator, centre: Point, radius: float) -> Points:
    """A disc whose radius varies by direction, from 0.85 to 1.1 of `radius`."""
    disc = oval((0, 0), 2 * radius, 2 * radius)
    return disc * rng.uniform(0.85, 1.1, (16, 1)) + centre
