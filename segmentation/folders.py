"""Predictions for a folder of images that have no masks, from the function that scores are taken with."""

import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from .checkpoint import load_checkpoint
from .data.cache import Unreadable, read_image
from .data.layouts import SUFFIXES
from .distributed import gather, rank, world_size
from .errors import BadInput
from .evaluation.inference import Flips, predict_labels
from .report.pictures import overlay, palette_image

ONE_CLASS = 0.999  # share of an image's pixels beyond which one class is worth a warning


def predict_folder(
    checkpoint: str, images: Path, out: Path, *, tile: int | None, flips: Flips, device: torch.device
) -> None:
    """Class indices, overlay and confidence of each image in a folder as PNG, a printed line for each.

    Each rank takes its share of the images. BadInput at the end if some were bad; the others are predicted.
    """
    model, meta = load_checkpoint(checkpoint)
    model.to(device)
    paths = find_images(images)
    folders = {kind: out / kind for kind in ("labels", "overlay", "confidence")}
    for folder in folders.values():
        make_folder(folder)
    bad: list[str] = []
    for number, path in enumerate(paths, start=1):
        if number % world_size() != rank():
            continue
        if sys.stdout.isatty():
            print(f"\r\033[K{number}/{len(paths)} {path.name} ...", end="", flush=True)
        try:
            if path.stem in [earlier.stem for earlier in paths[: number - 1]]:
                raise Unreadable("has the name of another image but for its ending; rename one")
            line = predict_file(path, folders, model, meta, tile=tile, flips=flips, device=device)
        except Unreadable as reason:
            bad.append(path.name)
            line = f"left out: {path.name} {reason}"
        print(f"{chr(13) + chr(27) + '[K' if sys.stdout.isatty() else ''}{number}/{len(paths)} {line}", flush=True)
    bad = gather(bad)
    if bad:
        raise BadInput(f"{images}: {len(bad)} of {len(paths)} images left out: {', '.join(bad)}; mend or move them")


def find_images(folder: Path) -> list[Path]:
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    except OSError as error:
        raise BadInput(f"--images {folder} cannot be listed ({error.strerror}): give a folder of images") from error
    if not paths:
        raise BadInput(f"--images {folder} holds no images: give the folder that they are in")
    return paths


def predict_file(
    path: Path,
    folders: dict[str, Path],
    model: nn.Module,
    meta: dict,
    *,
    tile: int | None,
    flips: Flips,
    device: torch.device,
) -> str:
    """Predict one image, write its three PNG files, return a line about it. Unreadable if it is no good image."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image, _ = read_image(path, None)
    trained = meta["data"]["image_size"]  # what the network sees must be as large as in training, as data sets do it
    pixels = np.asarray(image.resize(trained[::-1], Image.Resampling.BILINEAR) if trained else image)
    size = image.height, image.width
    labels, confidence = predict_labels(model, pixels, size, tile=tile, flips=flips, device=device)
    indexed = palette_image(labels, meta["palette"])
    pictures = {"labels": indexed, "overlay": overlay(image, indexed), "confidence": Image.fromarray(confidence)}
    for kind, picture in pictures.items():
        file = folders[kind] / f"{path.stem}.png"
        try:
            picture.save(file, compress_level=1 if kind == "overlay" else 6)  # photographs hardly shrink, but take long
        except OSError as error:
            raise BadInput(f"{file} cannot be written ({error.strerror}): choose another --out") from error
    shares = np.bincount(labels.ravel(), minlength=len(meta["classes"])) / labels.size
    order = [index for index in np.argsort(-shares, kind="stable") if shares[index] >= 0.0005]
    line = f"{path.name}  " + ", ".join(f"{meta['classes'][index]} {shares[index]:.1%}" for index in order)
    if shares.max() > ONE_CLASS:
        line += f"  warning: {meta['classes'][shares.argmax()]} is more than {ONE_CLASS:.1%} of the pixels"
    return line


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--out {folder} cannot be made ({error.strerror}): choose another folder") from error
