"""One camera, one sun, one picture: shapes in metres are painted on it.

A negative distance at a pixel's centre sets the mask. The distance in pixels is the coverage that
blends the colour. So edges are smooth in the image, hard in the mask, and at the same place.

Colours are linear light. Its square root is what a display shows: close to its gamma, and cheap.
"""

from collections.abc import Callable
from math import cos, pi, sin

import numpy as np
from numpy import ndarray
from numpy.random import Generator
from PIL import Image, ImageFilter

from ..labels import red_green_blue
from .shapes import Point, Points, Shape, direction, disc, polygon, turn

Colour = ndarray  # linear light, float32: red, green, blue
Window = tuple[slice, slice]
Pattern = Callable[[Window], ndarray]
Texture = Colour | Pattern
Area = Shape | Points  # points stand for their convex hull

FINE = (0, 0.1, 0.1, 0.2)


def rgb(code: int) -> Colour:
    """The linear light of a display colour 0xRRGGBB."""
    return (np.array(red_green_blue(code), np.float32) / 255) ** 2


class View:
    """Camera, sun and picture. The image's centre is the point below the camera.

    rng: what everything random in the scene is drawn from, in one order.
    """

    def __init__(self, rng: Generator, size: tuple[int, int]):
        height, width = size
        self.rng = rng
        self.extent = rng.uniform(19, 31)  # metres along the longer side
        self.altitude = 1.15 * self.extent
        self.pixel = self.extent / max(size)
        # metres of shadow for a metre of height
        self.sun = direction(rng.uniform(0, 2 * pi))
        self.sun *= rng.uniform(0.35, 1.3)
        self.yaw = turn(rng.uniform(0, 2 * pi))

        v, u = np.mgrid[:height, :width].astype(np.float32) + 0.5
        u = (u - width / 2) * self.pixel
        v = (v - height / 2) * self.pixel
        (c, s), _ = self.yaw.tolist()
        self.x = c * u - s * v
        self.y = s * u + c * v

        self.albedo = np.zeros((height, width, 3), np.float32)
        self.light = np.ones(size, np.float32)  # fraction of the direct sun
        self.mask = np.zeros(size, np.uint8)
        self.noise = [self._draw_noise(cell) for cell in (6.0, 1.5, 0.5, 0.2)]
        self.taken: list[Shape] = []

    def _draw_noise(self, cell: float) -> ndarray:
        """Smooth noise about zero, H x W.

        Its grid covers the widest view, so every size draws the same numbers.
        """
        cells = round(32 / cell) + 2
        grid = self.rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
        size = self.mask.shape[::-1]
        middle = cells / 2
        reach = np.array(size) * self.pixel / cell / 2
        box = (*(middle - reach), *(middle + reach))
        seen = Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC, box)
        return np.asarray(seen)

    def draw_colour(self, *codes: int) -> Colour:
        """One of the display colours, a little lighter or darker and a little off its hue."""
        lightness = self.rng.normal(1, 0.12)
        hue = self.rng.normal(1, 0.04, 3)
        change = np.clip(lightness * hue, 0.6, 1.4)
        code = codes[self.rng.integers(len(codes))]
        return (rgb(code) * change).astype(np.float32)

    def grain(self, colour: Colour, *weights: float) -> Pattern:
        """The colour, modulated by noise of 6, 1.5, 0.5 and 0.2 metres in these strengths.

        Without weights the grain is fine.
        """

        def pattern(window: Window) -> ndarray:
            layers = zip(weights or FINE, self.noise, strict=False)
            brightness = 1 + sum(weight * noise[window] for weight, noise in layers)
            return np.asarray(brightness)[..., None] * colour

        return pattern

    def jointed(
        self,
        texture: Pattern,
        angle: float,
        *pitches: float,
        joint: float = 0.12,
    ) -> Pattern:
        """The texture with dark joints.

        pitches: metres from joint to joint, along the angle and then across it. Joints too fine
        for the picture fade.
        joint: fraction of the pitch that is dark.
        """

        def pattern(window: Window) -> ndarray:
            colour = texture(window)
            for k, pitch in enumerate(pitches):
                towards = angle + k * pi / 2
                c = cos(towards) / pitch
                s = sin(towards) / pitch
                position = (c * self.x[window] + s * self.y[window]) % 1
                pixels = pitch / self.pixel
                depth = 0.35 * min(1.0, max(0.0, pixels / 2 - 0.5))
                colour = colour * (1 - depth * (position < joint))[..., None]
            return colour

        return pattern

    def spot(self, room: float, spread: float = 0.46) -> Point:
        """Pick the freest of 40 random places, and reserve it.

        room: metres of free ground around a place beyond which more makes it no better.
        """
        places = self.rng.uniform(-spread, spread, (40, 2)) * self.extent
        free = np.min([shape.distance(*places.T) for shape in self.taken], axis=0)
        place = places[np.argmax(np.minimum(free, room))]
        self.taken.append(disc(place, room))
        return place

    def lift(self, points: Points, height: float) -> Points:
        """Where points at that height appear: farther from the centre."""
        return points * (self.altitude / (self.altitude - height))

    def _distance(self, area: Area, margin: float = 0.0) -> tuple[Window, ndarray]:
        """The rows and columns that the area can touch, and its distance from their pixels."""
        shape = area if isinstance(area, Shape) else polygon(area)
        centre = np.array(self.mask.shape[::-1]) / 2
        points = shape.points @ self.yaw.T / self.pixel + centre
        reach = (shape.margin + margin) / self.pixel + 1
        first = (points.min(axis=0) - reach).astype(int)
        last = (points.max(axis=0) + reach).astype(int)
        left, top = first.clip(0)
        right, bottom = (last + 1).clip(0)
        window = slice(top, bottom), slice(left, right)
        return window, shape.distance(self.x[window], self.y[window])

    def paint(
        self,
        area: Area,
        label: int,
        texture: Texture,
        light: float = 1.0,
    ) -> None:
        """Cover what lies below with the area."""
        window, distance = self._distance(area)
        self.mask[window][distance < 0] = label
        cover = np.clip(0.5 - distance / self.pixel, 0, 1)
        colour = texture(window) if callable(texture) else texture
        self.albedo[window] += cover[..., None] * (colour - self.albedo[window])
        self.light[window] += cover * (np.float32(light) - self.light[window])

    def shade(
        self,
        area: Area,
        softness: float = 0.15,
        depth: float = 1.0,
    ) -> None:
        """Take the direct sun away. Two shadows are no darker than one, and no label changes."""
        window, distance = self._distance(area, softness)
        inside = np.clip(0.5 - distance / (self.pixel + softness), 0, 1)
        sunlit = 1 - np.float32(depth) * inside
        self.light[window] = np.minimum(self.light[window], sunlit)

    def box(
        self,
        base: Points,
        top: float,
        label: int,
        texture: Texture,
        side: Texture,
        foot: float = 0.0,
    ) -> None:
        """A convex base raised from foot to top.

        It paints the shadow, the sides that perspective shows, and the top, in this order.
        """
        self.shade(polygon(base + self.sun * foot, base + self.sun * top))
        lower = self.lift(base, foot)
        upper = self.lift(base, top)
        self.paint(polygon(lower, upper), label, side, 0.45)
        self.paint(upper, label, texture)

    def photograph(self) -> ndarray:
        """The picture so far as a camera sees it: uint8 H x W x 3.

        In sunlight and skylight, with haze, exposure, blur and sensor noise.
        """
        rng = self.rng
        warmth = rng.normal(0, 0.07)
        sun = np.array([1.06 + warmth, 1.0, 0.9 - warmth], np.float32)
        sun *= rng.uniform(0.45, 1.0)
        sky = np.array([0.88, 1.0, 1.2], np.float32)
        sky *= rng.uniform(0.28, 0.45)
        haze = rng.uniform(0, 0.05)
        exposure = rng.uniform(0.8, 1.25)
        blur = rng.uniform(0.2, 0.7)
        noise = rng.uniform(1, 5)

        light = self.light[..., None] * sun + sky
        linear = self.albedo * light * (exposure * (1 - haze)) + haze
        display = np.sqrt(linear.clip(0, 1)) * 255
        sharp = Image.fromarray(display.astype(np.uint8))
        blurred = np.asarray(sharp.filter(ImageFilter.GaussianBlur(blur)))
        speckle = noise * rng.standard_normal(linear.shape, np.float32)
        return (blurred + speckle).clip(0, 255).astype(np.uint8)
