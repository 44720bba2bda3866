"""Bushes and trees."""

import numpy as np

from .ids import BALD_TREE, TREE, VEGETATION
from .shapes import blob, direction, draw_waves, strokes, turn
from .view import View


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
    place: np.ndarray,
    radius: float,
    top: float,
    label: int,
) -> None:
    """A shadow, a dark crown, and on it clumps of leaves, brighter toward the sun."""
    rng = view.rng
    leaf = view.draw_colour(0x4E6A30, 0x3E5C34, 0x687438, 0x34502E, 0x826E32)
    middle = view.lift(place, top)
    to_sun = -view.sun / np.hypot(*view.sun)
    waves = draw_waves(rng)
    shadow = blob(place + view.sun * top, radius, waves)
    crown = blob(middle, radius, waves)
    view.shade(shadow, 0.4)
    view.paint(crown, label, view.grain(leaf * 0.55, 0.1, 0.2, 0.4, 0.5), 0.55)
    for angle, distance in rng.uniform((0, 0.1), (2 * np.pi, 0.66), (8, 2)):
        outwards = direction(angle) * distance
        brightness = np.float32(rng.uniform(0.8, 1.1))
        leaves = view.grain(leaf * brightness, 0, 0.2, 0.4, 0.6)
        size = radius * rng.uniform(0.24, 0.36)
        clump = blob(middle + outwards * radius, size, draw_waves(rng, 0.1))
        view.paint(clump, label, leaves, float(0.7 + 0.5 * outwards @ to_sun))


def paint_branches(view: View, place: np.ndarray, radius: float, top: float) -> None:
    """Nine forks about the trunk."""
    rng = view.rng
    branches = []
    for angle in np.arange(9) * 0.7 + rng.normal(0, 0.2, 9):
        lengths = rng.uniform((0.4, 0.8), (0.6, 1.1))
        fork, tip = lengths[:, None] * direction(angle) * radius
        left, right = tip @ turn(0.35), 0.9 * tip @ turn(-0.35)
        branches += [(0 * fork, fork), (fork, tip), (fork, left), (fork, right)]
    bark = view.draw_colour(0x78685C, 0x968A7E, 0x5C4E44)
    shadow = np.array(branches) + place + view.sun * top
    crown = np.array(branches) + view.lift(place, top)
    view.shade(strokes(shadow, 0.2), 0.15, 0.7)
    view.paint(strokes(crown, 0.24), BALD_TREE, view.grain(bark, 0, 0, 0.2, 0.3))
