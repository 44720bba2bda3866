"""Class probabilities of images of any size: at once, or by overlapping tiles and in strips of bounded memory."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..errors import BadInput

SMALLEST_SIDE = 32  # of an image that every model accepts
OVERLAP = 0.25  # of two neighbouring tiles, at least, as a share of the tile's side
LARGEST_WHOLE, LARGE_TILE = 2**22, 1024  # pixels of an image, and the side of its tiles beyond that
STRIP_VALUES = 2**22  # numbers in one strip: bounds its memory whatever the image's width
VIEWS = ((), (3,), (2,), (2, 3))  # the axes that are flipped: none, horizontal, vertical, both

Size = tuple[int, int]  # height, width
Flips = bool | Literal["horizontal"]
Strips = Iterator[tuple[int, Tensor]]  # first row, values
Tiles = list[tuple[int, Tensor]]  # along one axis: start, weights


def usual_tile(image: np.ndarray) -> int | None:
    """The tile where none is asked for: None, whole images, but for those that memory might not hold."""
    return LARGE_TILE if image.shape[0] * image.shape[1] > LARGEST_WHOLE else None


def predict(model: nn.Module, image: Tensor, tile: int | None = None, flips: Flips = False) -> Tensor:
    """Class probabilities of a batch of images: N x K x H x W float32, on the model's device.

    image: N x 3 x H x W, float in [0, 1], any H, W >= 1. tile and flips: see `predict_strips`.
    Raises BadInput when the image is not such a batch or the tile is smaller than 32 pixels.
    """
    if image.ndim != 4 or not image.is_floating_point():
        raise BadInput(f"predict takes float images of N x 3 x H x W in [0, 1], not {image.dtype} {tuple(image.shape)}")
    device = _device_of(model)

    def read(rows: slice, columns: slice) -> Tensor:
        return image[:, :, rows, columns].to(device)

    bands = _bands(model, read, _tiles(image.shape[2], tile), _tiles(image.shape[3], tile), flips)
    return torch.cat([band.to(device) for _, band in bands], dim=2)


def predict_strips(
    model: nn.Module,
    image: np.ndarray,
    *,
    output_size: Size | None = None,
    tile: int | None = None,
    flips: Flips = False,
    scale: float | tuple[float, float] = 1.0,
    device: torch.device | str | None = None,
) -> Strips:
    """Class probabilities of one image: (top, K x h x W float32) strips from top to bottom, each output row once.

    image: H x W x 3 uint8, possibly a memory map.
    output_size: (height, width) of the output, such as the mask's; by default the image's own.
    tile: side of square tiles in pixels the network sees; None shows it the whole image. Tiles overlap by a quarter or
        more and their probabilities are averaged with tapered weights. Floats are held for one row of tiles only.
    flips: average the probabilities over the four combinations of horizontal and vertical flips, or over the image and
        its mirror image alone ("horizontal").
    scale: pixels the network sees per pixel of the image, as in its training; a pair is (vertical, horizontal).
    device: where the model is and the strips will be; by default the device of the model's first parameter.

    Where the output is larger than what the network saw, log-probabilities are interpolated, then the softmax is taken.
    Without tiles and flips that is the same as with logits: they differ by a number that all classes of a pixel share.
    Raises BadInput when the image is not such an array, the tile is smaller than 32 pixels, or a scale is not positive.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise BadInput(f"predict_strips takes uint8 images of H x W x 3, not {image.dtype} {image.shape}: convert it")
    vertical, horizontal = scale if isinstance(scale, tuple) else (scale, scale)
    if min(vertical, horizontal) <= 0:
        raise BadInput(f"scale {scale} is not positive: give the pixels the network sees per pixel of the image")
    height, width = image.shape[:2]
    grid = max(1, round(height * vertical)), max(1, round(width * horizontal))
    if grid != (height, width):
        # Whole, but uint8: a float copy would grow with the image, and separate tiles would differ where they meet.
        image = np.asarray(Image.fromarray(image).resize(grid[::-1], Image.Resampling.BILINEAR))
    place = _device_of(model) if device is None else torch.device(device)

    def read(rows: slice, columns: slice) -> Tensor:
        window = torch.from_numpy(np.array(image[rows, columns]))  # a copy, because memory maps may be read-only
        return window.to(place).permute(2, 0, 1)[None].float() / 255  # 1 x 3 x h x w

    bands = _bands(model, read, _tiles(grid[0], tile), _tiles(grid[1], tile), flips)
    return _resize(bands, grid, output_size or (height, width), place)


def predict_labels(
    model: nn.Module, image: np.ndarray, size: Size, *, tile: int | None, flips: Flips, device: torch.device | str
) -> tuple[np.ndarray, np.ndarray]:
    """Class and confidence of each pixel: two uint8 arrays of `size`, the second 255 times the class's probability.

    image: uint8 H x W x 3. The strips are those that scores are taken from; of their floats one strip is held.
    """
    tile = tile or usual_tile(image)
    labels, confidence = np.empty(size, np.uint8), np.empty(size, np.uint8)
    for top, probability in predict_strips(model, image, output_size=size, tile=tile, flips=flips, device=device):
        rows = slice(top, top + probability.shape[1])
        labels[rows] = probability.argmax(0).cpu().numpy()  # max(0) could break ties in another way
        confidence[rows] = probability.amax(0).mul(255).round().cpu().numpy()
    return labels, confidence


def _tiles(size: int, tile: int | None) -> Tiles:
    """Tiles along one axis, with weights that are positive and sum to 1 at every position; so do products of two axes.

    The weights are a raised cosine, because the network has no context beyond a tile's border: there the middle of the
    next tile should decide. The last tile is shifted to end where the image does.
    """
    if tile is not None and tile < SMALLEST_SIDE:
        raise BadInput(f"tile {tile} is too small: models take {SMALLEST_SIDE} pixels or more, 512 is a good choice")
    tile = min(tile or size, size)
    starts = [*range(0, size - tile, max(1, math.floor(tile * (1 - OVERLAP)))), size - tile]
    taper = torch.sin(math.pi * (torch.arange(tile, dtype=torch.float64) + 0.5) / tile) ** 2
    total = torch.zeros(size, dtype=torch.float64)
    for start in starts:
        total[start : start + tile] += taper
    return [(start, (taper / total[start : start + tile]).float()) for start in starts]


def _bands(
    model: nn.Module, read: Callable[[slice, slice], Tensor], rows: Tiles, columns: Tiles, flips: Flips
) -> Strips:
    """Averaged probabilities of what `read` returns, one row of tiles at a time: (top, N x K x h x W)."""
    if len(rows) == len(columns) == 1:
        yield 0, _probabilities(model, read(slice(None), slice(None)), flips)
        return
    ends = [top for top, _ in rows[1:]] + [rows[-1][0] + len(rows[-1][1])]
    width = columns[-1][0] + len(columns[-1][1])
    band = torch.zeros(0)  # until the first tile tells the number of classes
    for (top, row_weights), end in zip(rows, ends, strict=True):
        for left, column_weights in columns:
            window = read(slice(top, top + len(row_weights)), slice(left, left + len(column_weights)))
            weights = row_weights[:, None] * column_weights
            part = _probabilities(model, window, flips).mul(weights.to(window.device)).cpu()
            if band.ndim == 1:  # in main memory, so that an accelerator holds one tile whatever the image's size
                band = torch.zeros(*part.shape[:3], width)
            band[..., left : left + part.shape[3]] += part
        yield top, band[:, :, : end - top]
        band = F.pad(band[:, :, end - top :], (0, 0, 0, end - top))  # a copy: the strip that was handed out stays


@torch.no_grad()  # not inference_mode: fully sharded models could not be trained on after it
def _probabilities(model: nn.Module, image: Tensor, flips: Flips) -> Tensor:
    """N x 3 x H x W to N x K x H x W, averaged over flips; small images have their last pixels repeated."""
    height, width = image.shape[2:]
    padding = (0, max(0, SMALLEST_SIDE - width), 0, max(0, SMALLEST_SIDE - height))
    if any(padding):
        image = F.pad(image, padding, mode="replicate")
    views = VIEWS[:2] if flips == "horizontal" else VIEWS if flips else VIEWS[:1]
    with _evaluating(model):
        total = sum(model(image.flip(dims)).float().softmax(dim=1).flip(dims) for dims in views)
    return total[:, :, :height, :width] / len(views)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, then each module's own mode again: a model in training may hold frozen layers in eval mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _resize(bands: Strips, size: Size, output: Size, device: torch.device) -> Strips:
    """Strips (top, K x h x w) of the bilinear interpolation of a 1 x K x H x W map that arrives in bands.

    They equal the rows of F.interpolate(log of the whole map, output, mode="bilinear").softmax(1).
    """
    # Positions are float32 because they are in F.interpolate, and their rounding shows in the result.
    position = ((torch.arange(output[0]) + 0.5) * torch.tensor(size[0] / output[0]) - 0.5).clamp(0, size[0] - 1)
    upper, lower = position.floor().long(), position.ceil().long()
    fraction = (position - upper)[:, None]
    held, first = None, 0  # the rows of the map, from `first` on, that the output rows from `start` on need
    start = 0
    for top, band in bands:
        held = band if held is None else torch.cat([held, band], dim=2)
        ready = int(torch.searchsorted(lower, top + band.shape[2]))  # output rows with both neighbours held
        step = max(1, STRIP_VALUES // (band.shape[1] * output[1]))
        while start < ready:
            stop = min(start + step, ready)
            begin, end = int(upper[start]), int(lower[stop - 1]) + 1
            strip = held[:, :, begin - first : end - first].to(device)
            if size != output:
                strip = strip.clamp(min=torch.finfo(torch.float32).tiny).log()  # the logarithm of 0 would give NaN
                strip = F.interpolate(strip, (end - begin, output[1]), mode="bilinear")
                above, below = (strip[:, :, (side[start:stop] - begin).to(device)] for side in (upper, lower))
                strip = torch.lerp(above, below, fraction[start:stop].to(device)).softmax(dim=1)
            yield start, strip[0]
            start = stop
        if start < output[0]:
            first, held = min(int(upper[start]), top + band.shape[2]), held[:, :, int(upper[start]) - first :]


def _device_of(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device
