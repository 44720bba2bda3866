"""Shapes in metres under one camera and one sun: what the built-in scenes are painted with.

Every shape is a signed distance to its outline. A negative distance at a pixel's centre sets the mask; the distance in
pixels is the coverage that blends the colour. So edges are smooth in the image, hard in the mask, at the same place in
both. Colours are linear light; its square root is what a display shows, which is close to its gamma and cheap.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

Window = tuple[slice, slice]
Pattern = Callable[[Window], np.ndarray]
Texture = np.ndarray | Pattern


class Shape(NamedTuple):
    """A signed distance in metres (negative inside), and points (n x 2) whose hull, with a margin, holds the shape."""

    distance: Callable[[np.ndarray, np.ndarray], np.ndarray]
    points: np.ndarray
    margin: float


def disc(centre: np.ndarray, radius: float) -> Shape:
    return Shape(
        lambda x, y: np.hypot(x - float(centre[0]), y - float(centre[1])) - radius,
        centre[None],
        radius,
    )


def blob(
    centre: np.ndarray, radius: float, rng: np.random.Generator, roughness: float = 0.08
) -> Shape:
    """A disc with random waves along its rim."""
    waves = [
        (k, float(rng.normal(0, roughness / k**0.5)), float(rng.uniform(0, 2 * np.pi)))
        for k in (2, 3, 5)
    ]

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        dx, dy = x - float(centre[0]), y - float(centre[1])
        angle = np.arctan2(dy, dx)
        return np.hypot(dx, dy) - radius * (
            1 + sum(size * np.cos(k * angle + phase) for k, size, phase in waves)
        )

    return Shape(distance, centre[None], radius * (1 + sum(abs(size) for _, size, _ in waves)))


def polygon(*parts: np.ndarray) -> Shape:
    """The convex hull of the points (arrays of n x 2), as the largest distance to the line through any of its sides."""
    points = np.concatenate(parts)
    ordered = sorted(map(tuple, points.tolist()))
    corners: list[tuple[float, float]] = []
    for chain in (ordered, ordered[::-1]):  # the lower half, then the upper one, by left turns only
        start = len(corners)
        for x, y in chain:
            while len(corners) - start >= 2:
                (ax, ay), (bx, by) = corners[-2:]
                if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 1e-9:
                    break
                corners.pop()
            corners.append((x, y))
        corners.pop()
    sides = []
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        length = math.hypot(bx - ax, by - ay)
        nx, ny = (by - ay) / length, (ax - bx) / length
        sides.append((nx, ny, nx * ax + ny * ay))

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        farthest = sides[0][0] * x + (sides[0][1] * y - sides[0][2])
        for nx, ny, offset in sides[1:]:
            farthest = np.maximum(farthest, nx * x + (ny * y - offset))
        return farthest

    return Shape(distance, points, 0.0)


def strokes(pairs: np.ndarray, width: float) -> Shape:
    """Strokes of a pen of that width between the two points of each pair (n x 2 x 2)."""

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        nearest = np.full_like(x, np.inf)
        for (ax, ay), (bx, by) in pairs.tolist():
            dx, dy = bx - ax, by - ay
            t = np.clip(((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy), 0, 1)
            nearest = np.minimum(nearest, np.hypot(x - ax - t * dx, y - ay - t * dy))
        return nearest - width / 2

    return Shape(distance, pairs.reshape(-1, 2), width / 2)


def turn(angle: float) -> np.ndarray:
    """The matrix that turns points by the angle when it stands to their right."""
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def rectangle(centre: np.ndarray, length: float, width: float, angle: float = 0.0) -> np.ndarray:
    """Its four corners, counter-clockwise from the lower left."""
    return (
        np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2 * (length, width) @ turn(angle) + centre
    )


def oval(
    centre: np.ndarray, length: float, width: float, angle: float = 0.0, power: float = 2.0
) -> np.ndarray:
    """Sixteen points of a superellipse: power 2 is an ellipse, 6 a rounded rectangle."""
    around = (np.arange(16) + 0.5) * np.pi / 8
    points = np.stack([np.cos(around), np.sin(around)], axis=1)
    return (
        np.sign(points) * np.abs(points) ** (2 / power) / 2 * (length, width) @ turn(angle) + centre
    )


def patch(quad: np.ndarray, left: float, right: float, low: float, high: float) -> np.ndarray:
    """A part of a quadrilateral (two corners below, then the two above), in shares of its sides."""
    (a, b), (d, c) = quad[:2], quad[:1:-1]
    return np.stack(
        [
            (a + t * (b - a)) * (1 - u) + (d + t * (c - d)) * u
            for t in (left, right)
            for u in (low, high)
        ]
    )


def rgb(*display: float) -> np.ndarray:
    """The linear light of a display colour in 0..255."""
    return (np.array(display, dtype=np.float32) / 255) ** 2


def choose(rng: np.random.Generator, *colours: tuple[int, int, int]) -> np.ndarray:
    """One of the display colours, a little lighter or darker and a little off its hue."""
    change = np.clip(rng.normal(1, 0.12) * rng.normal(1, 0.04, 3), 0.6, 1.4)
    return (rgb(*colours[rng.integers(len(colours))]) * change).astype(np.float32)


class View:
    """Camera, sun and picture: shapes go in, pixels come out. The image's centre is the point below the camera."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]):
        height, width = size
        self.extent = rng.uniform(19, 31)  # metres along the longer side
        self.altitude = 1.15 * self.extent
        self.pixel = self.extent / max(size)
        azimuth, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0.35, 1.3)
        self.sun = reach * np.array(
            [np.cos(azimuth), np.sin(azimuth)]
        )  # metres of shadow for a metre of height
        self.yaw = turn(rng.uniform(0, 2 * np.pi))
        (c, s), _ = self.yaw.tolist()
        v, u = np.mgrid[:height, :width].astype(np.float32) + np.float32(0.5)
        u, v = (u - width / 2) * self.pixel, (v - height / 2) * self.pixel
        self.x, self.y = c * u - s * v, s * u + c * v
        self.noise = [self._noise(rng, cell, size) for cell in (6.0, 1.5, 0.5, 0.2)]
        self.albedo = np.zeros((height, width, 3), np.float32)
        self.light = np.ones(size, np.float32)  # share of the direct sun
        self.mask = np.zeros(size, np.uint8)
        self.taken: list[Shape] = []

    def _noise(self, rng: np.random.Generator, cell: float, size: tuple[int, int]) -> np.ndarray:
        """Smooth noise about zero. Its grid covers the widest view, so that every size draws the same numbers."""
        cells = round(32 / cell) + 2
        grid = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
        tall, wide = (side * self.pixel / cell for side in size)
        box = ((cells - wide) / 2, (cells - tall) / 2, (cells + wide) / 2, (cells + tall) / 2)
        return np.asarray(grid.resize(size[::-1], Image.Resampling.BICUBIC, box=box))

    def grain(self, colour: np.ndarray, *weights: float) -> Pattern:
        """The colour, modulated by noise of 6, 1.5, 0.5 and 0.2 metres in these strengths."""
        layers = [
            (weight, noise) for weight, noise in zip(weights, self.noise, strict=False) if weight
        ]
        return lambda window: (
            np.asarray(1 + sum(w * noise[window] for w, noise in layers))[..., None] * colour
        )

    def jointed(
        self, texture: Pattern, angle: float, *pitches: float, joint: float = 0.12
    ) -> Pattern:
        """The texture with dark joints every so many metres along the angle, then across; too fine ones fade."""

        def lines(window: Window) -> np.ndarray:
            colour = texture(window)
            for k, pitch in enumerate(pitches):
                c, s = (
                    math.cos(angle + k * np.pi / 2) / pitch,
                    math.sin(angle + k * np.pi / 2) / pitch,
                )
                depth = 0.35 * min(1.0, max(0.0, pitch / self.pixel / 2 - 0.5))
                colour = (
                    colour
                    * (1 - depth * ((c * self.x[window] + s * self.y[window]) % 1 < joint))[
                        ..., None
                    ]
                )
            return colour

        return lines

    def spot(self, rng: np.random.Generator, room: float, spread: float = 0.46) -> np.ndarray:
        """A place with that much free ground around it, or the freest of those tried; taken from now on."""
        places = rng.uniform(-spread, spread, (40, 2)) * self.extent
        free = np.min([shape.distance(*places.T) for shape in self.taken], axis=0)
        place = places[np.argmax(np.minimum(free, room))]
        self.taken.append(disc(place, room))
        return place

    def lift(self, points: np.ndarray, height: float) -> np.ndarray:
        """Where points so high above the ground appear: farther from the centre."""
        return points * (self.altitude / (self.altitude - height))

    def _window(self, shape: Shape, margin: float = 0.0) -> Window:
        """The rows and columns of the picture that the shape can touch."""
        points = shape.points @ self.yaw.T / self.pixel + np.array(self.mask.shape[::-1]) / 2
        reach = (shape.margin + margin) / self.pixel + 1
        (left, top), (right, bottom) = (
            (points.min(axis=0) - reach).tolist(),
            (points.max(axis=0) + reach).tolist(),
        )
        rows, columns = (
            slice(max(0, int(low)), max(0, int(high) + 1))
            for low, high in ((top, bottom), (left, right))
        )
        return rows, columns

    def paint(self, shape: Shape, label: int, texture: Texture, light: float = 1.0) -> None:
        """Cover what lies below with the shape."""
        window = self._window(shape)
        distance = shape.distance(self.x[window], self.y[window])
        if not distance.size:
            return
        cover = np.clip(0.5 - distance / self.pixel, 0, 1)
        self.mask[window][distance < 0] = label
        colour = texture(window) if callable(texture) else texture
        self.albedo[window] += cover[..., None] * (colour - self.albedo[window])
        self.light[window] += cover * (np.float32(light) - self.light[window])

    def shade(self, shape: Shape, softness: float = 0.15, depth: float = 1.0) -> None:
        """Take the direct sun away. Two shadows are no darker than one, and no label changes."""
        window = self._window(shape, softness)
        distance = shape.distance(self.x[window], self.y[window])
        cover = np.float32(depth) * np.clip(0.5 - distance / (self.pixel + softness), 0, 1)
        self.light[window] = np.minimum(self.light[window], 1 - cover)

    def box(
        self,
        base: np.ndarray,
        top: float,
        label: int,
        texture: Texture,
        side: Texture,
        foot: float = 0.0,
    ) -> None:
        """A convex base raised from foot to top: its shadow, the sides that perspective shows, its top."""
        self.shade(polygon(base + self.sun * foot, base + self.sun * top))
        self.paint(polygon(self.lift(base, foot), self.lift(base, top)), label, side, 0.45)
        self.paint(polygon(self.lift(base, top)), label, texture)

    def photograph(self, rng: np.random.Generator) -> np.ndarray:
        """The picture so far in sunlight and skylight, with haze, exposure, blur and sensor noise: uint8 H x W x 3."""
        warmth = rng.normal(0, 0.07)
        sun = rng.uniform(0.45, 1.0) * np.array([1.06 + warmth, 1.0, 0.9 - warmth], np.float32)
        sky = rng.uniform(0.28, 0.45) * np.array([0.88, 1.0, 1.2], np.float32)
        haze, exposure = rng.uniform(0, 0.05), rng.uniform(0.8, 1.25)
        blur, grain = rng.uniform(0.2, 0.7), rng.uniform(1, 5)
        linear = self.albedo * (self.light[..., None] * sun + sky) * (exposure * (1 - haze)) + haze
        display = (np.sqrt(np.clip(linear, 0, 1)) * 255).astype(np.uint8)
        blurred = np.asarray(Image.fromarray(display).filter(ImageFilter.GaussianBlur(blur)))
        speckle = rng.standard_normal(linear.shape, dtype=np.float32) * np.float32(grain)
        return np.clip(blurred + speckle, 0, 255).astype(np.uint8)
