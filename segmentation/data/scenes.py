"""Built-in data set: drawn views of houses and gardens from a drone, with exact masks.

Scenes need no download, so a first run cannot fail at one. Their masks hold ids of the TU Graz
semantic drone data set, which are grouped into five or two classes as that set's are.

A scene is a plot in metres, seen from straight above: a street with cars, a house, water, paths,
and between them people, plants, tables and sheds. Two tables say what there is and where. Colours
of the classes overlap on purpose (red roof and red car, pond and shaded asphalt): shape and
surroundings have to be learnt. Shadows change no label.
"""

from collections.abc import Iterator
from itertools import groupby
from math import pi
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from numpy import ndarray
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter
from PIL.Image import Resampling

IMAGES_PER_SPLIT = {"train": 240, "val": 40, "test": 40}

# Things from low to high, each in layers from low to high; lengths are in metres. y: from the
# middle of the thing. n: copies, each moved by up to `spread`. height: above what lies below, for
# the shadow. round: 0 is a rectangle, 1 an oval. shade: factor of the colour, which is one of those
# that follow, or that of the layer below.
THINGS_TABLE = """
thing  id    y  n spread length width height round shade
lawn    3    0  1      0     99    99      0     0     1  68843E 7C8A4E 58783C 8C8A58 9A9068
earth   2    0  1      0    3.2   2.6      0     1     1  8C7050 7A6248 9C8664
wall   10    0  1      0     60   0.5    1.6     0     1  96604C B0A89C C4B8A0 847E78
fence  13    0  1      0    0.5    60    1.6     0     1  866242 604A3A BEBAB2
bricks  1    0  1      0    3.2    15      0     0     1  9E7662 AAA49A 8C8886
gravel  4    0  1      0      2    15      0     0     1  A8A298 B8AE9E 969088 8A8468
street  1    0  1      0     99     8      0     0     1  ACA8A0 9C948C B8AA96
street  1    0  1      0     99   5.6      0     0     1  5C5C60 706E6C 4C4E52 86827C
street  1    0  1      0     99  0.15      0     0     1  DEDED6
pool    1    0  1      0    8.2   5.2      0     0     1  C8C0B0 B0ACA6 8C8A88
pool    7    0  1      0    6.6   3.6      0   0.2     1  54ACC0 3C8EB2 70B8B4 6C8C88
basin   1    0  1      0    6.8   6.2      0     0     1  C8C0B0 B0ACA6 8C8A88
basin   7    0  1      0    5.4   4.8      0     1     1  54ACC0 3C8EB2 70B8B4 6C8C88
pond    2    0  1      0    6.6     6      0     1     1  8C7050 7A6248 9C8664
pond    5    0  1      0    5.6     5      0     1     1  3E544E 565C5E 586048 384A5C
person 15    0  1      0   0.74  0.44    1.5     1     1  B4322E 324E8C E0DCD2 28282E D2AA3C
person 15    0  1      0   0.28  0.28    0.2     1     1  422E22 966E46 1E1A18
car    17    0  1      0    4.4   1.9   0.75   0.3     1  C43C32 365482 DADAD8 3A3E46 787E84 A0543C
car    17    0  1      0    2.5   1.6    0.7   0.3   0.5
car    17    0  1      0    1.6   1.5      0   0.3     1
bush    8    0  1      0    1.4   1.4    0.5     1  0.75  4E6A30 3E5C34 687438 34502E 826E32
bush    8    0  4    0.4    0.6   0.6    0.2     1     1
table  22    0  1      0    2.4   1.8    0.8     0     1  96704C 5C7480 96543E 8C8A88 54A0B4 5A6848
table  22    0  4    1.4    0.6   0.6    0.5   0.3     1
shed   22    0  1      0    3.8   2.6    2.3     0     1  96704C 5C7480 96543E 8C8A88 705440 5A6848
shed   22  0.6  1      0    3.8   1.3      0     0     1
shed   22 -0.6  1      0    3.8   1.3      0     0     1
house   9    0  1      0   10.5   7.6      4     0     1  9E523E 84463A 54545A 6E5C4E AC6E50 5E6862
house   9  1.9  1      0   10.5   3.8      0     0     1
house   9 -1.9  1      0   10.5   3.8      0     0     1
tree   19    0  1      0    3.9   3.9      3     1  0.75  4E6A30 3E5C34 687438 34502E 826E32
tree   19    0  9    1.2    1.4   1.4    0.4     1     1
"""

# One of the things, how often at least and at most, and where: x, y and their deviation in metres,
# and the angle in degrees. Without these it takes a free place. The street runs along y = 0.
PLOT_TABLE = """
things          least most    x    y deviation angle
house               1    1    0 13.5         1     0
street              1    1    0    0         0     0
wall                1    1    0  5.2         0     0
fence               1    1  -11   35         1     0
gravel              1    1    0    7         1     8
bricks/gravel       1    1  7.5    7         0     0
car                 1    1  7.5    9       0.4    88
car                 0    1   -9  1.4       0.2     1
car                 1    1   -3 -1.4       0.2     0
car                 1    1    3  1.4       0.2    -1
car                 0    1    9 -1.4       0.2     1
pool/basin/pond     1    2
person              3    6
bush                2    5
table               1    3
shed                2    4
tree                2    5
earth               1    4    0   10         6     0
lawn                1    1    0    0         0     0
"""

COARSE = [2, 3, 4, 8, 19]  # soil, grass, gravel and plants have the stronger texture
FINER = 3  # canvas pixels along one of the image; odd, so that one of them lies at its centre


class Layer(NamedTuple):
    """A line of THINGS_TABLE. Its numbers are all read as floats."""

    colours: list[str]
    id: float
    y: float
    copies: float
    spread: float
    length: float
    width: float
    height: float
    roundness: float
    shade: float


Plot = dict[str, list[tuple[ndarray, float]]]  # name -> place (x, y) and angle (degrees) of each


def render(
    seed: int,
    split: str,
    index: int,
    size: tuple[int, int],
) -> tuple[ndarray, ndarray]:
    """Draw a scene: the image, uint8 H x W x 3, and the mask, uint8 H x W of TU Graz ids.

    seed, split and index choose the scene; size (H, W) changes its resolution only.
    """
    number = list(IMAGES_PER_SPLIT).index(split)
    rng = np.random.default_rng([seed, number, index])
    extent = rng.uniform(19, 31)
    camera = rng.normal((0, extent / 3), 1.5)
    plot = lay_out(rng, camera, extent)
    canvas = (FINER * size[1], FINER * size[0])
    colours, light, ids = draw(rng, plot, camera, extent, canvas)
    mask = np.array(ids.resize(size[::-1], Resampling.NEAREST))
    return photograph(rng, colours, light, mask, extent), mask


def _words(table: str) -> list[list[str]]:
    """The words of each line but the first."""
    lines = table.strip().splitlines()
    return [line.split() for line in lines[1:]]


THINGS = {
    name: [Layer(words[10:], *map(float, words[1:10])) for words in lines]
    for name, lines in groupby(_words(THINGS_TABLE), itemgetter(0))
}


def lay_out(rng: Generator, camera: ndarray, extent: float) -> Plot:
    """Choose where things lie.

    camera: the place (x, y) below it; extent: metres along the longer side of its view.
    """
    plot: Plot = {name: [] for name in THINGS}
    places = camera + extent * rng.uniform(-0.4, 0.4, (200, 2))
    free = np.full(200, extent)  # metres from each place to the nearest thing
    for names, least, most, *where in _words(PLOT_TABLE):
        for _ in range(rng.integers(int(least), int(most) + 1)):
            name = rng.choice(names.split("/"))
            base = THINGS[name][0]
            if where:
                x, y, deviation, degrees = map(float, where)
                place = rng.normal((x, y), deviation)
            else:
                room = free.clip(max=base.length / 2)
                place = places[np.argmax(room)]  # one with enough, or else with most
                degrees = rng.uniform(0, 360)
            plot[name].append((place, degrees))
            half = np.array([base.length, base.width]) / 2
            away = abs(places - place) - half
            free = np.minimum(free, away.max(axis=1))
    return plot


def draw(
    rng: Generator,
    plot: Plot,
    camera: ndarray,
    extent: float,
    canvas: tuple[int, int],
) -> list[Image.Image]:
    """Paint things from low to high: colours, sunlight (255; in shadows 0) and ids.

    canvas: width and height of the three images. What is painted later covers what is there, and
    shades it.
    """
    images = [Image.new(mode, canvas) for mode in ("RGB", "L", "L")]
    colours, light, ids = map(ImageDraw.Draw, images)
    scale = max(canvas) / extent
    view = turn(rng.uniform(0, 360)) * rng.choice([-scale, scale], 2)  # metres to pixels
    sun = (0, rng.uniform(0.35, 1.3)) @ turn(rng.uniform(0, 360))  # the shadow of a metre
    for name, spots in plot.items():
        for place, degrees in spots:
            for layer, colour, outline in shapes(rng, name):
                turned = outline @ turn(degrees)
                facing = 1 - 0.12 * turned.mean(axis=0) @ sun  # the sun's side is brighter
                lit = (facing * colour).clip(0, 255)
                pixels = (turned + place - camera) @ view + np.array(canvas) / 2
                for height in np.arange(0, layer.height, 0.15):
                    shadow = pixels + height * sun @ view
                    light.polygon(shadow.ravel().tolist(), 0)
                corners = pixels.ravel().tolist()
                light.polygon(corners, 255)
                ids.polygon(corners, int(layer.id))
                colours.polygon(corners, tuple(lit.astype(int)))
    return images


def turn(degrees: float) -> ndarray:
    """The matrix that turns points, n x 2: points @ turn(degrees)."""
    angle = np.radians(degrees)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, sin], [-sin, cos]])


def shapes(rng: Generator, name: str) -> Iterator[tuple[Layer, ndarray, ndarray]]:
    """Each layer of a thing with a colour (red, green, blue) and an outline, 24 x 2 in metres."""
    around = np.arange(24) * pi / 12 + 0.1
    circle = np.column_stack([np.cos(around), np.sin(around)])
    stretch = rng.uniform(0.85, 1.15, 2)
    for layer in THINGS[name]:
        if layer.colours:
            code = bytes.fromhex(rng.choice(layer.colours))
            colour = np.array(list(code)) * rng.normal(1, 0.06) * rng.normal(1, 0.02, 3)
        for _ in range(int(layer.copies)):
            unit = np.sign(circle) * abs(circle) ** layer.roundness / 2
            wave = np.sin(3 * around + rng.uniform(0, 6))
            swell = 1 + 0.08 * layer.roundness * wave
            shift = rng.uniform(-1, 1, 2) * layer.spread + (0, layer.y)
            outline = swell[:, None] * unit * (layer.length, layer.width) + shift
            yield layer, layer.shade * colour, stretch * outline


def photograph(
    rng: Generator,
    colours: Image.Image,
    light: Image.Image,
    mask: ndarray,
    extent: float,
) -> ndarray:
    """What a camera sees in sunlight and skylight: uint8 H x W x 3."""
    sun = rng.uniform(0.35, 1.2) * rng.normal((1.06, 1, 0.9), 0.06)
    sky = rng.uniform(0.25, 0.5) * np.array([0.88, 1, 1.2])
    haze = rng.uniform(0, 0.05)
    contrast = np.where(np.isin(mask, COARSE), 0.25, 0.12)
    texture = np.ones(mask.shape)
    for cell in (6, 1.5, 0.5, 0.2):  # metres
        cells = np.array(mask.shape) / max(mask.shape) * extent / cell
        grid = rng.uniform(-1, 1, cells.astype(int) + 1)
        noise = Image.fromarray(grid.astype(np.float32))
        texture += contrast * noise.resize(mask.shape[::-1], Resampling.BICUBIC)
    direct = np.asarray(light.reduce(FINER))[..., None] / 255
    albedo = (np.asarray(colours.reduce(FINER)) / 255) ** 2  # gamma; the root below undoes it
    linear = texture[..., None] * albedo * (direct * sun + sky) + haze
    display = np.sqrt(linear.clip(0, 1)) * 255
    sharp = Image.fromarray(display.astype(np.uint8))
    blurred = sharp.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.7)))
    noisy = rng.normal(np.asarray(blurred), rng.uniform(1, 5))
    return noisy.clip(0, 255).astype(np.uint8)
