"""The pictures of a report: classes as colours, overlays, errors against the truth."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from ..metrics import IGNORED

LONGEST = 800  # pixels of the longer side of a picture in a report
LONGEST_SHEET = 2048  # and of samples.png
WRONG = (220, 0, 70)  # colours of `error_map`
UNSCORED = (70, 76, 90)


@dataclass
class Picture:
    """A picture of one image. model: the index of its entry; None for what all models share."""

    kind: Literal["image", "truth", "prediction", "difference"]
    image: Image.Image
    model: int | None = None


@dataclass
class Example:
    """The pictures of one image, in the order they are shown, all of one size."""

    name: str
    pictures: list[Picture]


def palette_image(labels: np.ndarray, palette: list[list[int]]) -> Image.Image:
    """uint8 H x W labels as a palette image: its indices are the labels.

    Label 255 is black, or white where a class is black.
    """
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette)] = palette
    if [0, 0, 0] in palette:
        colours[IGNORED] = 255
    image = Image.fromarray(labels)
    image.putpalette(colours.tobytes())
    return image


def overlay(image: Image.Image, labels: Image.Image) -> Image.Image:
    """The image half covered by the colours of a palette image of the same size."""
    return Image.blend(image, labels.convert("RGB"), 0.5)


def error_map(
    image: Image.Image,
    truth: Image.Image,
    prediction: Image.Image,
) -> Image.Image:
    """The faded image, with wrong pixels in WRONG and ignored ones in UNSCORED.

    truth, prediction: palette images of the image's size.
    """
    gray = image.convert("L")
    faded = gray.point(lambda value: 130 + value * 120 // 255)
    picture = np.array(faded.convert("RGB"))
    target = np.array(truth)
    picture[target != np.array(prediction)] = WRONG
    picture[target == IGNORED] = UNSCORED
    return Image.fromarray(picture)


def sample_sheet(samples: list[dict], palette: list[list[int]]) -> Image.Image:
    """Eight training samples, four a row, each image above its mask.

    samples: of one size, with image uint8 3 x h x w and mask uint8 h x w.
    """
    columns = []
    for sample in samples:
        mask = palette_image(sample["mask"].numpy(), palette).convert("RGB")
        columns.append(np.concatenate([sample["image"].permute(1, 2, 0), mask]))
    rows = [np.hstack(columns[first : first + 4]) for first in (0, 4)]
    sheet = Image.fromarray(np.vstack(rows))
    sheet.thumbnail((LONGEST_SHEET, LONGEST_SHEET), Image.Resampling.NEAREST)
    return sheet


def thumbnail(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image at `size` (height, width), or smaller: the longer side is at most LONGEST."""
    factor = min(1.0, LONGEST / max(size))
    smaller = [max(1, round(side * factor)) for side in reversed(size)]  # width, height
    # Palette images keep their labels: Pillow samples them nearest, whatever filter is given.
    return image.resize(smaller, Image.Resampling.BILINEAR)
