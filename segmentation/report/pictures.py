"""Predictions as pictures: class indices with their colours, an overlay, the confidence, and where truth is missed."""

import numpy as np
from PIL import Image

IGNORED = 255
LONGEST = 800  # pixels of the longer side of a picture in a report
WRONG, UNSCORED = (220, 0, 70), (70, 76, 90)  # colours of `difference`

Size = tuple[int, int]  # height, width
Palette = list[list[int]]


def palette_image(labels: np.ndarray, palette: Palette) -> Image.Image:
    """uint8 H x W labels as a palette image whose indices are the labels; 255 is black, or white if a class is."""
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette)] = palette
    colours[IGNORED] = 255 if [0, 0, 0] in palette else 0
    image = Image.fromarray(labels)
    image.putpalette(colours.flatten().tolist())
    return image


def overlay(image: Image.Image, labels: Image.Image) -> Image.Image:
    """The image half covered by the colours of a palette image of the same size."""
    return Image.blend(image, labels.convert("RGB"), 0.5)


def difference(image: Image.Image, truth: Image.Image, prediction: Image.Image) -> Image.Image:
    """Where two palette images differ, in red on the faded image; what the truth leaves out is dark."""
    target, predicted = np.asarray(truth), np.asarray(prediction)
    faded = 130 + np.asarray(image.convert("L"), np.uint16)[..., None] * 120 // 255
    picture = np.repeat(faded, 3, axis=2).astype(np.uint8)
    picture[target != predicted] = WRONG
    picture[target == IGNORED] = UNSCORED
    return Image.fromarray(picture)


def bounded(image: Image.Image, size: Size) -> Image.Image:
    """The picture of an image or of labels of `size`: the longer side at most LONGEST, labels by nearest neighbour."""
    factor = min(1.0, LONGEST / max(size))
    columns, rows = max(1, round(size[1] * factor)), max(1, round(size[0] * factor))
    return image.resize((columns, rows), Image.Resampling.BILINEAR)  # Pillow takes the nearest for palette images
