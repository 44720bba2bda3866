"""Joint augmentation: one draw of parameters per pair, one map from output to source, one sampling of image and mask.

Two kinds of draws: `draw_augmentation` is the deck's, for views from above; `draw_fast` is of the fast recipe: sizes,
and light.

Positions are continuous (x, y) in pixels: pixel i covers [i, i + 1) and its centre is i + 0.5. Flips, rotation,
centred crop, resizing back and the random window compose into one affine map, so a pixel is interpolated once, and only
the part of the source that the window shows is read (sources may be memory maps of frames too large to decode).
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

IGNORED = 255
SIZES = (0.76, 1.32)  # of the fast recipe: the range of a view's scale


@dataclass(frozen=True)
class Draw:
    """What happens to one pair, in this order; the defaults leave it as it is.

    degrees: rotation about the centre, counter-clockwise as seen; part: the centred part of each side that is shown,
    resized back to the full size; position: where a crop of the view lies, (vertical, horizontal) in [0, 1); scale: of
    the view's sides. saturation: factor on each pixel's distance from its grey; contrast: on all distances from
    the view's mean; brightness: on that mean.
    """

    flip_horizontal: bool = False
    flip_vertical: bool = False
    degrees: float = 0.0
    part: float = 1.0
    position: tuple[float, float] = (0.5, 0.5)
    scale: float = 1.0
    saturation: float = 1.0
    contrast: float = 1.0
    brightness: float = 1.0

    @property
    def only_shifts(self) -> bool:
        return replace(self, position=(0.5, 0.5)) == Draw()

    @property
    def changes_light(self) -> bool:
        return (self.saturation, self.contrast, self.brightness) != (1.0, 1.0, 1.0)


def draw_crop(generator: np.random.Generator) -> Draw:
    """A random window of the untouched pair."""
    return Draw(position=tuple(generator.random(2)))


def draw_augmentation(generator: np.random.Generator) -> Draw:
    """Flips with p = 0.5, rotation uniform in [-30, 30] degrees, then the central 0.7: few empty corners are left."""
    horizontal, vertical = generator.random(2) < 0.5
    degrees = generator.uniform(-30.0, 30.0)
    return Draw(bool(horizontal), bool(vertical), degrees, 0.7, tuple(generator.random(2)))


def draw_fast(generator: np.random.Generator, sizes: tuple[float, float] = SIZES) -> Draw:
    """A horizontal flip with p = 0.5, a scale in `sizes` (uniform in the logarithm), 0.7 to 1.3 of the light."""
    position = tuple(generator.random(2))
    saturation, contrast, brightness = generator.uniform(0.7, 1.3, 3)
    scale = float(np.exp(generator.uniform(*np.log(sizes))))
    flip = bool(generator.random() < 0.5)
    return Draw(
        flip,
        position=position,
        scale=scale,
        saturation=saturation,
        contrast=contrast,
        brightness=brightness,
    )


def window_corner(draw: Draw, size: tuple[int, int], crop: tuple[int, int]) -> tuple[int, int]:
    """(top, left) of a crop of a view; negative where the view is smaller and lies somewhere inside the crop."""
    room = np.subtract(size, crop)
    top, left = np.sign(room) * np.floor(np.multiply(draw.position, np.abs(room) + 1)).astype(int)
    return int(top), int(left)


def view_size(draw: Draw, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the whole view of a source of `size`."""
    return max(1, round(size[0] * draw.scale)), max(1, round(size[1] * draw.scale))


def source_map(draw: Draw, size: tuple[int, int], crop: tuple[int, int]) -> np.ndarray:
    """2 x 3 matrix from (x, y, 1) in the output to (x, y) in a source of `size`: every step undone, the last first."""
    view = view_size(draw, size)
    centre, view_centre = np.array([size[1], size[0]]) / 2, np.array([view[1], view[0]]) / 2
    cos, sin = np.cos(np.deg2rad(draw.degrees)), np.sin(np.deg2rad(draw.degrees))
    flips = np.diag([-1.0 if draw.flip_horizontal else 1.0, -1.0 if draw.flip_vertical else 1.0])
    linear = flips @ np.array([[cos, -sin], [sin, cos]]) * draw.part * (centre / view_centre)
    corner = np.array(window_corner(draw, view, crop)[::-1])
    return np.column_stack([linear, centre + linear @ (corner - view_centre)])


def transform_pair(
    image: np.ndarray, mask: np.ndarray, draw: Draw, crop: tuple[int, int] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply one draw to image and mask.

    image: uint8 H x W x 3; mask: uint8 labels of the same field of view, of any size. Returns uint8 3 x h x w and
    h x w, where (h, w) is `crop` or the view's size: the image bilinear, the mask nearest. Outside the source the
    image repeats its edge, which makes no border that a whole image would not have, and the mask is 255.
    """
    size = image.shape[:2]
    crop = crop or view_size(draw, size)
    if draw.only_shifts:
        corner = window_corner(draw, size, crop)
        pixels, _ = _copy_window(image, size, corner, crop)
        labels, outside = _copy_window(mask, size, corner, crop)
        labels[outside] = IGNORED
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), torch.from_numpy(labels)
    matrix = source_map(draw, size, crop)
    window, grid = _window_and_grid(size, matrix, crop)
    block = np.array(image[window])
    fold = 2 ** max(0, int(np.log2(np.abs(matrix[:, :2]).sum(1).max() + 1e-6)))
    folded = grid
    if (
        fold > 1
    ):  # bilinear sampling looks at two pixels a side: means of fold x fold, or a small view would alias
        sides = torch.tensor(block.shape[1::-1])
        block = np.array(
            Image.fromarray(block).reduce(fold)
        )  # avg_pool2d takes two to four times as long
        folded = (grid + 1) * (sides / (fold * torch.tensor(block.shape[1::-1]))) - 1
    source = torch.from_numpy(block).permute(2, 0, 1).float()[None]
    view = F.grid_sample(
        source, folded, mode="bilinear", padding_mode="border", align_corners=False
    )[0]
    if draw.changes_light:
        view = change_light(draw, view)
    if mask.shape != size:
        matrix = matrix * np.array([[mask.shape[1] / size[1]], [mask.shape[0] / size[0]]])
        window, grid = _window_and_grid(mask.shape, matrix, crop)
    # The only outside value grid_sample knows is 0: sampled as 255 - label, it comes back as 255.
    inverted = (IGNORED - torch.from_numpy(np.array(mask[window]))).float()[None, None]
    unlabelled = F.grid_sample(
        inverted, grid, mode="nearest", padding_mode="zeros", align_corners=False
    )[0, 0]
    return view.add_(0.5).to(torch.uint8), (IGNORED - unlabelled).to(torch.uint8)


def change_light(draw: Draw, view: torch.Tensor) -> torch.Tensor:
    """float 3 x h x w in [0, 255] -> the same."""
    grey = view.mean(0, keepdim=True)
    mean = view.mean()
    view = torch.lerp(grey, view, draw.saturation)
    return view.sub_(mean).mul_(draw.contrast).add_(mean * draw.brightness).clamp_(0, 255)


def _copy_window(
    source: np.ndarray, size: tuple[int, int], corner: tuple[int, int], crop: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """A window of a view of `size`, copied (nearest if the source has another size), and where it lies outside."""
    rows, columns = (first + np.arange(length) for first, length in zip(corner, crop, strict=True))
    outside = ((rows < 0) | (rows >= size[0]))[:, None] | (columns < 0) | (columns >= size[1])
    # The nearest index, floor((i + 1/2) * own / side), in integers.
    rows = (2 * rows.clip(0, size[0] - 1) + 1) * source.shape[0] // (2 * size[0])
    columns = (2 * columns.clip(0, size[1] - 1) + 1) * source.shape[1] // (2 * size[1])
    block = np.asarray(source[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    return block.take(rows - rows[0], axis=0).take(columns - columns[0], axis=1), outside


def _window_and_grid(
    size: tuple[int, int], matrix: np.ndarray, crop: tuple[int, int]
) -> tuple[tuple[slice, slice], torch.Tensor]:
    """The window of a source of `size` that a crop can touch, and grid_sample's positions in it, 1 x h x w x 2."""
    height, width = crop
    limit = np.array([size[1], size[0]])
    corners = matrix @ np.array([[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1]])
    low = np.clip(np.floor(corners.min(axis=1)).astype(int) - 1, 0, limit - 1)
    high = np.clip(np.ceil(corners.max(axis=1)).astype(int) + 1, low + 1, limit)
    # Relative to the window before float32, so that large sources lose no precision; -1 and 1 are its outer edges.
    scale = 2 / (high - low)
    columns = np.outer(np.arange(width) + 0.5, matrix[:, 0]) * scale
    rows = (np.outer(np.arange(height) + 0.5, matrix[:, 1]) + matrix[:, 2] - low) * scale - 1
    grid = (
        torch.from_numpy(rows.astype(np.float32))[:, None]
        + torch.from_numpy(columns.astype(np.float32))[None]
    )
    return (slice(low[1], high[1]), slice(low[0], high[0])), grid[None]
