"""Class probabilities of images of any size: whole, or by tiles in strips of bounded memory."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import BadInput
from ..models.layers import SMALLEST_SIDE

OVERLAP = 0.25  # of two neighbouring tiles, at least, as a share of the tile's side
LARGEST_WHOLE = 2**22  # pixels, up to which a model is shown an image whole
LARGE_TILE = 1024  # side of the tiles of a larger image, in pixels
TINY = torch.finfo(torch.float32).tiny
STRIP_VALUES = 2**22  # numbers in one strip: bounds its memory whatever the image's width

Size = tuple[int, int]  # height, width
Flips = Literal["horizontal", "all"] | None
Strips = Iterator[tuple[int, Tensor]]  # the first row of each strip, its values
Tiles = list[tuple[int, Tensor]]  # along one axis: each tile's start, its weight at each position

# The views whose probabilities are averaged, each by the axes of N x C x H x W that are flipped.
VIEWS: dict[Flips, list[list[int]]] = {
    None: [[]],
    "horizontal": [[], [3]],
    "all": [[], [3], [2], [2, 3]],
}


@dataclass(frozen=True)
class Prediction:
    """How a model predicts, in validation, evaluation, weight search and pictures alike.

    tile: side of square tiles in pixels; they overlap by a quarter or more, and their probabilities
        are averaged with tapered weights. None: the whole image, or tiles of LARGE_TILE where it
        has more than LARGEST_WHOLE pixels.
    flips: a key of VIEWS, the flipped views to average over.
    amp: bfloat16 autocast.
    """

    tile: int | None = None
    flips: Flips = None
    amp: bool = False

    def tile_for(self, height: int, width: int) -> int | None:
        return self.tile or (LARGE_TILE if height * width > LARGEST_WHOLE else None)


PLAIN = Prediction()  # whole images, or large ones in tiles; one view, in float32


def predict(
    model: nn.Module,
    image: Tensor,
    tile: int | None = None,
    flips: Flips = None,
) -> Tensor:
    """Class probabilities of a batch of images: N x K x H x W float32, on the model's device.

    image: N x 3 x H x W, float in [0, 1], any H, W >= 1. tile: None is the whole image here,
    whatever its size. flips: see `Prediction`.
    Raises BadInput when the image is not such a batch, the tile is smaller than 32 pixels, or the
    model has fewer than two classes.
    """
    if image.ndim != 4 or not image.is_floating_point():
        raise BadInput(
            "predict takes float images of N x 3 x H x W in [0, 1], "
            f"not {image.dtype} {tuple(image.shape)}"
        )
    if not (image.min() >= 0 and image.max() <= 1):  # nor with NaN
        raise BadInput("predict takes images in [0, 1]: divide by 255, and do not normalise")
    device = device_of(model)

    def read(rows: slice, columns: slice) -> Tensor:
        return image[:, :, rows, columns].to(device)

    tiles = [_tiles(side, tile) for side in image.shape[2:]]
    bands = _bands(model, read, tiles, Prediction(tile, flips))
    probability = torch.cat([band.to(device) for _, band in bands], dim=2)
    if probability.shape[1] < 2:
        raise BadInput("predict takes models of two classes or more: one logit is no softmax")
    return probability


def predict_strips(
    model: nn.Module,
    image: np.ndarray,
    how: Prediction = PLAIN,
    output_size: Size | None = None,
) -> Strips:
    """Class probabilities of one image: (top, K x h x w float32) strips from top to bottom.

    Each output row comes once. Only one row of tiles is held as floats.

    image: H x W x 3 uint8, possibly a memory map.
    output_size: (height, width) of the output, such as the mask's; by default the image's own.

    Where the output is larger than what the network saw, log-probabilities are interpolated, then
    the softmax is taken. Log-probabilities equal logits up to a constant of each pixel, so without
    tiles and flips the result is that of interpolated logits.
    Raises BadInput when the image is not such an array or the tile is smaller than 32 pixels.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise BadInput(
            f"predict_strips takes uint8 images of H x W x 3, not {image.dtype} {image.shape}: "
            "convert it"
        )
    device = device_of(model)
    size = image.shape[:2]
    tiles = [_tiles(side, how.tile_for(*size)) for side in size]

    def read(rows: slice, columns: slice) -> Tensor:
        window = np.array(image[rows, columns])  # a copy, because memory maps may be read-only
        return torch.from_numpy(window).to(device).permute(2, 0, 1)[None].float() / 255

    bands = _bands(model, read, tiles, how)
    return _resize(bands, size, output_size or size, device)


def predict_labels(
    model: nn.Module,
    image: np.ndarray,
    size: Size,
    how: Prediction,
) -> tuple[np.ndarray, np.ndarray]:
    """Class and confidence of each pixel: two uint8 arrays of `size`.

    The confidence is 255 times the class's probability. image: uint8 H x W x 3. Scores are taken
    from the same strips; one of them is held as floats at a time.
    """
    labels = np.empty(size, np.uint8)
    confidence = np.empty(size, np.uint8)
    for top, probability in predict_strips(model, image, how, size):
        rows = slice(top, top + probability.shape[1])
        highest, label = probability.max(0)  # on CPUs a fifth of argmax's time
        labels[rows] = label.cpu().numpy()
        confidence[rows] = highest.mul(255).round().cpu().numpy()
    return labels, confidence


def _tiles(size: int, tile: int | None) -> Tiles:
    """Tiles along one axis of `size` pixels, with weights that sum to 1 at every position.

    So do the products of the weights of two axes. The weights are a raised cosine, because the
    network has no context beyond a tile's border: there the middle of the next tile should decide.
    The last tile is shifted to end where the image does. BadInput for tiles below SMALLEST_SIDE.
    """
    if tile is not None and tile < SMALLEST_SIDE:
        raise BadInput(
            f"tile {tile} is too small: models take {SMALLEST_SIDE} pixels or more, "
            "512 is a good choice"
        )
    tile = min(tile or size, size)
    step = math.floor(tile * (1 - OVERLAP)) or 1
    starts = [*range(0, size - tile, step), size - tile]
    middles = torch.arange(tile, dtype=torch.float64) + 0.5  # of the pixels
    taper = torch.sin(math.pi * middles / tile) ** 2
    total = torch.zeros(size, dtype=torch.float64)
    for start in starts:
        total[start : start + tile] += taper
    return [(start, (taper / total[start : start + tile]).float()) for start in starts]


def _bands(
    model: nn.Module,
    read: Callable[[slice, slice], Tensor],
    tiles: list[Tiles],
    how: Prediction,
) -> Strips:
    """Averaged probabilities, a row of tiles at a time: (top, N x K x h x W).

    read: rows and columns -> N x 3 x h x w of the image. tiles: of its rows, of its columns.
    """
    rows, columns = tiles
    if len(rows) == len(columns) == 1:
        whole = read(slice(None), slice(None))
        yield 0, _probabilities(model, whole, how)
        return
    height, width = (start + len(weights) for start, weights in (rows[-1], columns[-1]))
    ends = [*(top for top, _ in rows[1:]), height]
    band = torch.zeros(0)  # until the first tile tells the number of classes
    for (top, row_weights), end in zip(rows, ends, strict=True):
        for left, column_weights in columns:
            right = left + len(column_weights)
            window = read(slice(top, top + len(row_weights)), slice(left, right))
            weights = row_weights[:, None] * column_weights
            probability = _probabilities(model, window, how)
            part = probability.mul(weights.to(window.device)).cpu()
            if band.ndim == 1:
                # In main memory: an accelerator holds one tile, whatever the image's size.
                band = torch.zeros(*part.shape[:3], width)
            band[..., left:right] += part
        done = end - top
        yield top, band[:, :, :done]
        # F.pad copies, so the rows that were handed out are not changed by the next tiles.
        band = F.pad(band[:, :, done:], (0, 0, 0, done))


@torch.no_grad()  # not inference_mode: fully sharded models could not be trained on after it
def _probabilities(model: nn.Module, image: Tensor, how: Prediction) -> Tensor:
    """N x 3 x H x W -> N x K x H x W, a mean over views. Small images are padded by their edge."""
    height, width = image.shape[2:]
    right = max(0, SMALLEST_SIDE - width)
    below = max(0, SMALLEST_SIDE - height)
    if right or below:
        image = F.pad(image, (0, right, 0, below), mode="replicate")
    views = VIEWS[how.flips]
    autocast = torch.autocast(image.device.type, torch.bfloat16, enabled=how.amp)
    total = image.new_zeros(())
    with _evaluating(model), autocast:
        for axes in views:
            logits = model(image.flip(axes)).float()
            total = total + logits.softmax(dim=1).flip(axes)
    return total[:, :, :height, :width] / len(views)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, then each module's own mode again: a frozen layer stays in eval mode.

    cuDNN searches the fastest kernels in training only: images have many sizes, each searched anew.
    """
    in_training = [module for module in model.modules() if module.training]
    cudnn = torch.backends.cudnn
    search = cudnn.benchmark
    cudnn.benchmark = False
    model.eval()
    try:
        yield
    finally:
        cudnn.benchmark = search
        for module in in_training:
            module.training = True


def _resize(
    bands: Strips,
    size: Size,
    output: Size,
    device: torch.device,
) -> Strips:
    """Bilinear interpolation of a 1 x K x H x W map that arrives in bands: strips (top, K x h x w).

    They equal the rows of F.interpolate(log of the whole map, output, mode="bilinear").softmax(1).
    """
    # Positions are float32 because F.interpolate's are, and their rounding shows in the result.
    scale = torch.tensor(size[0] / output[0])
    middles = torch.arange(output[0]) + 0.5
    position = (middles * scale - 0.5).clamp(0, size[0] - 1)
    upper = position.floor().long()
    lower = position.ceil().long()
    fraction = (position - upper)[:, None]
    # held: the rows of the map, from `first` on, that the rows of the output from `start` on need.
    held = None
    first = start = 0
    for top, band in bands:
        held = band if held is None else torch.cat([held, band], dim=2)
        bottom = top + band.shape[2]
        ready = int(torch.searchsorted(lower, bottom))  # rows with both neighbours held
        step = max(1, STRIP_VALUES // (band.shape[1] * output[1]))
        while start < ready:
            stop = min(start + step, ready)
            begin = int(upper[start])
            end = int(lower[stop - 1]) + 1
            strip = held[:, :, begin - first : end - first].to(device)
            if size != output:
                strip = strip.clamp(min=TINY).log()  # log 0 is -inf, interpolated NaN
                strip = F.interpolate(strip, (end - begin, output[1]), mode="bilinear")
                rows = slice(start, stop)
                above = strip[:, :, (upper[rows] - begin).to(device)]
                below = strip[:, :, (lower[rows] - begin).to(device)]
                strip = torch.lerp(above, below, fraction[rows].to(device))
                strip = strip.softmax(dim=1)
            yield start, strip[0]
            start = stop
        if start < output[0]:
            following = int(upper[start])
            held = held[:, :, following - first :]
            first = min(following, bottom)


def device_of(model: nn.Module) -> torch.device:
    """The device of the weights; the CPU for a model without any."""
    return next(model.parameters(), torch.empty(0)).device
