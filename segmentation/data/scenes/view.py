"""One camera, one sun, one picture: shapes in metres are painted on it.

A shape labels the pixels whose centres lie inside it. It colours a share of each pixel at its edge,
from the centre's distance in pixels. So edges are smooth in the image, hard in the mask, and at the
same place.

Colours are linear light. Its square root stands for a display's gamma, which is close and cheaper.
"""

from collections.abc import Callable
from math import pi

import numpy as np
from numpy import ndarray
from numpy.random import Generator
from PIL import Image, ImageFilter

from ..labels import red_green_blue
from .shapes import Points, distance, hull, offset, rectangle, turn

Colour = ndarray  # linear light, float32: red, green, blue
Window = tuple[slice, slice]  # rows and columns
Pattern = Callable[[Window], ndarray]  # a window of the picture -> its colours, h x w x 3
Texture = Colour | Pattern


def rgb(code: int) -> Colour:
    """The linear light of a display colour 0xRRGGBB."""
    display = np.array(red_green_blue(code), np.float32)
    return (display / 255) ** 2


class View:
    """Camera, sun and picture. The image's centre is the point below the camera.

    rng: what everything random in the scene is drawn from, in one order.
    """

    def __init__(self, rng: Generator, size: tuple[int, int]):
        height, width = size
        self.rng = rng
        self.extent = rng.uniform(19, 31)  # metres along the longer side
        self.altitude = 1.15 * self.extent  # metres
        self.pixel = self.extent / max(size)  # metres
        shadow = rng.uniform(0.35, 1.3)
        self.sun = offset(shadow, 0, rng.uniform(0, 2 * pi))  # the shadow of a height of 1
        self.yaw = turn(rng.uniform(0, 2 * pi))

        v, u = np.mgrid[:height, :width].astype(np.float32) + 0.5
        u = (u - width / 2) * self.pixel
        v = (v - height / 2) * self.pixel
        (cos, sin), _ = self.yaw.tolist()
        self.x = cos * u - sin * v  # each pixel's place on the plot, H x W, in metres
        self.y = sin * u + cos * v

        self.albedo = np.zeros((height, width, 3), np.float32)
        self.light = np.ones(size, np.float32)  # fraction of the direct sun
        self.mask = np.zeros(size, np.uint8)
        self.coarse = self._draw_noise(6.0) + self._draw_noise(1.5)
        self.fine = self._draw_noise(0.5) + self._draw_noise(0.2)
        self.places = rng.uniform(-0.42, 0.42, (80, 2)) * self.extent  # for small things
        self.free = np.full(80, np.inf)  # metres from each place to the nearest reserved shape

    def _draw_noise(self, cell: float) -> ndarray:
        """Smooth noise about zero, H x W, that varies over `cell` metres.

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
        """One of the display colours 0xRRGGBB, a little lighter or darker, a little off its hue."""
        lightness = self.rng.normal(1, 0.12)
        hue = self.rng.normal(1, 0.04, 3)
        change = np.clip(lightness * hue, 0.6, 1.4)
        code = self.rng.choice(codes)
        return (rgb(int(code)) * change).astype(np.float32)

    def grain(
        self,
        colour: Colour,
        coarse: float = 0.1,
        fine: float = 0.15,
    ) -> Pattern:
        """The colour, modulated by noise over metres (coarse) and over decimetres (fine)."""

        def pattern(window: Window) -> ndarray:
            clouds = coarse * self.coarse[window]
            grains = fine * self.fine[window]
            brightness = 1 + clouds + grains
            return brightness[..., None] * colour

        return pattern

    def striped(self, texture: Pattern, angle: float, pitch: float) -> Pattern:
        """The texture with a dark joint every `pitch` metres along an angle.

        Joints fade where a pixel is too large to show them.
        """
        cos, sin = offset(1, 0, angle).tolist()
        visible = np.clip(pitch / self.pixel / 2 - 0.5, 0, 1)

        def pattern(window: Window) -> ndarray:
            along = cos * self.x[window] + sin * self.y[window]
            joint = along / pitch % 1 < 0.2
            brightness = 1 - 0.35 * visible * joint
            return texture(window) * brightness[..., None]

        return pattern

    def reserve(self, shape: Points) -> None:
        """Keep the places that `spot` chooses away from a shape."""
        x, y = self.places.T
        self.free = np.minimum(self.free, distance(shape, x, y))

    def spot(self, room: float) -> ndarray:
        """Choose a place, (x, y), with `room` metres of free ground around it, and reserve them.

        If no place has as many, it is the one that has most.
        """
        best = np.argmax(np.minimum(self.free, room))
        place = self.places[best]
        self.reserve(rectangle(place, 2 * room, 2 * room))
        return place

    def lift(self, points: ndarray, height: float) -> ndarray:
        """Where points, n x 2, at that height appear on the ground: farther from the centre."""
        return points * (self.altitude / (self.altitude - height))

    def _distance(self, shape: Points, margin: float) -> tuple[Window, ndarray]:
        """The rows and columns that a shape can touch, and its distance from their pixels.

        margin: metres around the shape that it touches too.
        """
        centre = np.array(self.mask.shape[::-1]) / 2
        points = shape @ self.yaw.T / self.pixel + centre
        reach = margin / self.pixel + 1
        first = points.min(axis=0) - reach
        last = points.max(axis=0) + reach
        left, top = first.astype(int).clip(0)
        right, bottom = last.astype(int).clip(-1) + 1
        window = slice(top, bottom), slice(left, right)
        return window, distance(shape, self.x[window], self.y[window])

    def paint(
        self,
        shape: Points,
        label: int,
        texture: Texture,
        light: float = 1.0,
    ) -> None:
        """Cover what lies below the shape. light: of the direct sun on it; flat ground has 1."""
        window, away = self._distance(shape, 0)
        self.mask[window][away < 0] = label
        cover = np.clip(0.5 - away / self.pixel, 0, 1)
        colour = texture(window) if callable(texture) else texture
        self.albedo[window] += cover[..., None] * (colour - self.albedo[window])
        self.light[window] += cover * (np.float32(light) - self.light[window])

    def shade(self, shape: Points, softness: float = 0.15) -> None:
        """Take the direct sun away; a second shadow makes it no darker, and no label changes.

        softness: width of the shadow's edge, metres.
        """
        window, away = self._distance(shape, softness)
        inside = np.clip(0.5 - away / (self.pixel + softness), 0, 1)
        self.light[window] = np.minimum(self.light[window], 1 - inside)

    def box(
        self,
        base: Points,
        top: float,
        label: int,
        texture: Texture,
        side: Colour,
    ) -> None:
        """Paint a body with a base on the ground and the same shape at its top, in metres.

        First its shadow, then the sides that perspective shows, then the top.
        """
        shadow = base + self.sun * top
        raised = self.lift(base, top)
        self.shade(hull(base, shadow))
        self.paint(hull(base, raised), label, side, 0.45)
        self.paint(raised, label, texture)

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
        linear = exposure * self.albedo * light + haze
        display = np.sqrt(linear.clip(0, 1)) * 255
        sharp = Image.fromarray(display.astype(np.uint8))
        blurred = np.asarray(sharp.filter(ImageFilter.GaussianBlur(blur)))
        speckle = noise * rng.standard_normal(linear.shape, np.float32)
        return (blurred + speckle).clip(0, 255).astype(np.uint8)
