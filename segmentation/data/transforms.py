"""Joint augmentation: one map from output to source, by which image and mask are sampled once.

Positions are continuous (x, y) in pixels: pixel i covers [i, i + 1), its centre is i + 0.5. Flips,
rotation, central crop, resizing back and the random window compose into one affine map. So a pixel
is interpolated once, and only the part of the source that the window shows is read: sources may be
memory maps of frames too large to decode.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy import ndarray
from numpy.random import Generator
from PIL import Image
from torch import Tensor

from .labels import IGNORED

Size = tuple[int, int]  # (height, width)


@dataclass(frozen=True)
class Light:
    """What happens to the colours of one image, in this order; the defaults leave them."""

    gamma: float = 1.0  # power of each value as a share of 255
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)  # factor on each channel
    saturation: float = 1.0  # factor on each pixel's distance from its grey
    contrast: float = 1.0  # factor on each pixel's distance from the view's mean
    brightness: float = 1.0  # factor on that mean


@dataclass(frozen=True)
class Augmentation:
    """What happens to one pair, in this order; the defaults leave it as it is."""

    flip_horizontal: bool = False
    flip_vertical: bool = False
    degrees: float = 0.0  # of rotation about the centre, counter-clockwise as seen
    central_crop: float = 1.0  # fraction of each side that is shown, resized to the full size
    position: tuple[float, float] = (0.5, 0.5)  # of the window: vertical, horizontal, in [0, 1)
    scale: float = 1.0  # the view's sides over the source's
    light: Light | None = None


def draw_window(generator: Generator) -> Augmentation:
    """A random window of the untouched pair."""
    return Augmentation(position=tuple(generator.random(2)))


def draw_deck(generator: Generator) -> Augmentation:
    """The deck's, for views from above: flips with p = 0.5, rotation, then the central 0.7.

    The rotation is uniform in [-30, 30] degrees; the crop leaves few empty corners.
    """
    horizontal, vertical = generator.random(2) < 0.5
    return Augmentation(
        flip_horizontal=horizontal,
        flip_vertical=vertical,
        degrees=generator.uniform(-30.0, 30.0),
        central_crop=0.7,
        position=tuple(generator.random(2)),
    )


def draw_fast(
    generator: Generator, scale_range: tuple[float, float], recoloured: float
) -> Augmentation:
    """The fast recipe's: a horizontal flip with p = 0.5, a scale, and changed light.

    The scale is log-uniform in scale_range; saturation, contrast and brightness are uniform in
    [0.7, 1.3]. The share `recoloured` of the samples has them in [0.6, 1.4], and a gamma and a tint
    of each channel, log-uniform in [1 / 1.6, 1.6] and [1 / 1.3, 1.3].
    """
    strong = generator.random() < recoloured
    reach = 0.4 if strong else 0.3
    return Augmentation(
        flip_horizontal=generator.random() < 0.5,
        position=tuple(generator.random(2)),
        scale=np.exp(generator.uniform(*np.log(scale_range))),
        light=Light(
            1.6 ** (strong * generator.uniform(-1, 1)),
            tuple(1.3 ** (strong * generator.uniform(-1, 1, 3))),
            *generator.uniform(1 - reach, 1 + reach, 3),
        ),
    )


def view_size(augmentation: Augmentation, size: Size) -> Size:
    """(height, width) of the view, the whole source at its new scale; at least one pixel."""
    height, width = (max(1, round(side * augmentation.scale)) for side in size)
    return height, width


def window_corner(
    augmentation: Augmentation,
    size: Size,
    crop: Size,
) -> tuple[int, int]:
    """(top, left) of a crop of a view of `size`.

    Negative where the view is smaller than the crop and lies somewhere inside it.
    """
    room = np.subtract(size, crop)
    steps = np.floor(np.multiply(augmentation.position, np.abs(room) + 1)).astype(int)
    return tuple(np.sign(room) * steps)


def source_map(augmentation: Augmentation, size: Size, crop: Size) -> ndarray:
    """2 x 3 matrix from (x, y, 1) in the output to (x, y) in a source of `size`.

    Every step of the augmentation is undone, the last one first.
    """
    view = view_size(augmentation, size)
    centre = np.array(size[::-1]) / 2
    view_centre = np.array(view[::-1]) / 2
    angle = np.deg2rad(augmentation.degrees)
    cos, sin = np.cos(angle), np.sin(angle)
    rotation = np.array([[cos, -sin], [sin, cos]])
    mirrored = np.array([augmentation.flip_horizontal, augmentation.flip_vertical])
    flips = np.diag(1 - 2 * mirrored)
    linear = flips @ rotation * augmentation.central_crop
    linear *= centre / view_centre
    corner = window_corner(augmentation, view, crop)
    from_centre = corner[::-1] - view_centre
    return np.column_stack([linear, centre + linear @ from_centre])


def transform_pair(
    image: ndarray,
    mask: ndarray,
    augmentation: Augmentation,
    crop: Size | None = None,
) -> tuple[Tensor, Tensor]:
    """Apply one augmentation to image and mask.

    Args:
        image: uint8 H x W x 3, sampled bilinear.
        mask: uint8 labels of the same field of view, of any size, sampled nearest.
        crop: (h, w) of the output; None: of the view.

    Returns:
        uint8 3 x h x w and uint8 h x w. Outside the source the mask is 255, and the image repeats
        its edge: a border of one colour would be a pattern that no whole image has.
    """
    size = image.shape[:2]
    crop = crop or view_size(augmentation, size)
    only_shifts = replace(augmentation, position=(0.5, 0.5)) == Augmentation()
    if only_shifts:
        corner = window_corner(augmentation, size, crop)
        pixels, _ = _copy_window(image, size, corner, crop)
        classes, outside = _copy_window(mask, size, corner, crop)
        classes[outside] = IGNORED
        view = torch.from_numpy(pixels).permute(2, 0, 1)
        return view.contiguous(), torch.from_numpy(classes)

    matrix = source_map(augmentation, size, crop)
    window, grid = _window_and_grid(size, matrix, crop)
    view = _sample_image(np.array(image[window]), grid, matrix)
    if augmentation.light:
        view = change_light(augmentation.light, view)
    if mask.shape != size:
        ratio = np.divide(mask.shape, size)
        matrix = matrix * ratio[::-1, None]
        window, grid = _window_and_grid(mask.shape, matrix, crop)
    labels = _sample_mask(np.array(mask[window]), grid)
    return view.add_(0.5).to(torch.uint8), labels


def change_light(light: Light, view: Tensor) -> Tensor:
    """float 3 x h x w in [0, 255] -> the same."""
    if light.gamma != 1:  # a power takes ten times as long as the rest
        view = (view / 255).pow_(light.gamma).mul_(255)
    view = view * view.new_tensor(light.tint)[:, None, None]
    grey = view.mean(0, keepdim=True)
    mean = view.mean()
    view = torch.lerp(grey, view, light.saturation)
    view.sub_(mean).mul_(light.contrast)
    return view.add_(mean * light.brightness).clamp_(0, 255)


def _copy_window(
    source: ndarray,
    size: Size,
    corner: tuple[int, int],
    crop: Size,
) -> tuple[ndarray, ndarray]:
    """A copy of a window of a view of `size`, and where it lies outside the view, bool h x w.

    Sampled nearest where the source has another size.
    """
    # Two axes, though an image has a third: map ends with the shortest.
    (rows, above_or_below), (columns, beside) = map(_nearest, corner, crop, size, source.shape)
    top, left = rows[0], columns[0]
    block = source[top : rows[-1] + 1, left : columns[-1] + 1]
    copied = block.take(rows - top, axis=0).take(columns - left, axis=1)
    return copied, above_or_below[:, None] | beside


def _nearest(
    first: int,
    count: int,
    side: int,
    own: int,
) -> tuple[ndarray, ndarray]:
    """The indices of a window along one axis, and which of them lie outside the view.

    side: of the view, in pixels; own: of the source, which the indices are for. Places outside get
    the index of the edge.
    """
    places = first + np.arange(count)
    inside = places.clip(0, side - 1)
    indices = (2 * inside + 1) * own // (2 * side)  # floor((place + 1/2) * own / side)
    return indices, places != inside


def _window_and_grid(
    size: Size,
    matrix: ndarray,
    crop: Size,
) -> tuple[tuple[slice, slice], Tensor]:
    """The window of a source of `size` that a crop can touch, and the positions of its pixels.

    The positions are those that grid_sample takes within the window, 1 x h x w x 2.
    """
    height, width = crop
    limit = np.array(size[::-1])
    corners = matrix @ [[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1]]
    low = np.floor(corners.min(axis=1)).astype(int) - 1
    high = np.ceil(corners.max(axis=1)).astype(int) + 1
    low = low.clip(0, limit - 1)
    high = high.clip(low + 1, limit)
    # -1 and 1 are the window's outer edges. Positions are made relative to the window before they
    # are float32, so that large sources lose no precision.
    scale = 2 / (high - low)
    per_column, per_row, origin = matrix.T
    across = np.outer(np.arange(width) + 0.5, per_column) * scale
    down = np.outer(np.arange(height) + 0.5, per_row) + origin - low
    columns = torch.from_numpy(across).float()
    rows = torch.from_numpy(down * scale - 1).float()
    (left, top), (right, bottom) = low, high
    window = slice(top, bottom), slice(left, right)
    return window, (rows[:, None] + columns)[None]


def _sample_image(block: ndarray, grid: Tensor, matrix: ndarray) -> Tensor:
    """uint8 h' x w' x 3 at the positions of the grid -> float 3 x h x w, bilinear.

    Bilinear sampling looks at two pixels a side. Where a step from position to position is longer,
    it samples means of fold x fold pixels, or a small view would alias.
    """
    longest = np.abs(matrix[:, :2]).sum(1).max()
    fold = 2 ** max(0, int(np.log2(longest + 1e-6)))
    if fold > 1:
        whole = Image.fromarray(block)
        reduced = whole.reduce(fold)  # avg_pool2d takes two to four times as long
        covered = fold * torch.tensor(reduced.size)
        grid = (grid + 1) * (torch.tensor(whole.size) / covered) - 1
        block = np.array(reduced)
    source = torch.from_numpy(block).permute(2, 0, 1).float()[None]
    return F.grid_sample(source, grid, padding_mode="border", align_corners=False)[0]


def _sample_mask(block: ndarray, grid: Tensor) -> Tensor:
    """uint8 h' x w' at the positions of the grid -> uint8 h x w, nearest, 255 outside.

    The only outside value that grid_sample knows is 0: labels are sampled as 255 - label.
    """
    inverted = (IGNORED - torch.from_numpy(block)).float()[None, None]
    view = F.grid_sample(inverted, grid, mode="nearest", align_corners=False)
    return (IGNORED - view[0, 0]).to(torch.uint8)
