"""Data sets as archives unpack: recognised, paired, and equal to the pixel to what was drawn."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segmentation.data.datasets import SegmentationDataset, open_dataset
from segmentation.errors import BadInput

SIZE = (12, 16)
SPLITS = {"train": 4, "val": 2, "test": 2}
COLOURS = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0], [0, 0, 200]], np.uint8)
Save = Callable[[np.ndarray, Path], None]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def drawn(seed: int, classes: int = 4) -> np.ndarray:
    mask = np.random.default_rng([seed, 1]).integers(0, classes, SIZE, np.uint8)
    mask.flat[:classes] = np.arange(classes)
    return mask


def grey(mask: np.ndarray, path: Path) -> None:
    Image.fromarray(mask).save(path)


def palette(mask: np.ndarray, path: Path) -> None:
    image = Image.fromarray(mask)
    image.putpalette(COLOURS.ravel().tolist())
    image.save(path)


def colour(mask: np.ndarray, path: Path) -> None:
    Image.fromarray(COLOURS[mask]).save(path)


def three_channels(mask: np.ndarray, path: Path) -> None:
    Image.fromarray(np.stack([mask] * 3, -1)).save(path)


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def write(
    root: Path, image: str, mask: str, names: list[str], save: Save = grey, classes: int = 4
) -> dict[str, np.ndarray]:
    """Pairs at these patterns, {} being the name; returns image -> what was drawn."""
    result = {}
    for name in names:
        seed = sum(map(ord, image + name))
        picture(root / image.format(name), seed)
        (root / mask.format(name)).parent.mkdir(parents=True, exist_ok=True)
        result[image.format(name)] = drawn(seed, classes)
        save(result[image.format(name)], root / mask.format(name))
    return result


def numbers(count: int = 8, first: int = 0) -> list[str]:
    return [f"{index:03d}" for index in range(first, first + count)]


def each_split(
    root: Path,
    image: str,
    mask: str,
    words: str = "train val test",
    save: Save = grey,
    classes: int = 4,
) -> dict[str, np.ndarray]:
    """As `write`, with {split} in the patterns."""
    result = {}
    for index, word in enumerate(words.split()):
        places = [pattern.replace("{split}", word) for pattern in (image, mask)]
        names = numbers(list(SPLITS.values())[index], 10 * index)
        result |= write(root, *places, names, save, classes)
    return result


def check(root: Path, expected: dict[str, np.ndarray], **options: object) -> SegmentationDataset:
    """Every drawn pair is there, and equal to the pixel."""
    data = open_dataset(str(root), **options)
    assert sorted(name for names in data.splits.values() for name in names) == sorted(expected)
    for name, mask in expected.items():
        assert np.array_equal(data.mask(name), mask), name
    assert data.notes
    return data


def counts(data: SegmentationDataset) -> dict[str, int]:
    return {split: len(names) for split, names in data.splits.items()}


FOLDERS = [
    ("images", "masks"),
    ("Images", "Labels"),
    ("imgs", "masks"),
    ("img", "label"),
    ("data/imgs", "data/masks"),
    ("JPEGImages", "SegmentationClass"),
    ("JPEGImages", "SegmentationClassPNG"),
    ("images", "annotations"),
    ("images", "annotations/trimaps"),
    ("images", "gt"),
    ("image", "ground_truth"),
    ("images_png", "masks_png"),
    ("Original_Images", "Segmentation_Masks"),
    ("semantic segmentation dataset/Tile 1/images", "semantic segmentation dataset/Tile 1/masks"),
]


@pytest.mark.parametrize(("images", "masks"), FOLDERS)
def test_usual_names_of_two_folders(tmp_path, images, masks):
    root = tmp_path / "data"
    check(root, write(root, f"{images}/{{}}.jpg", f"{masks}/{{}}.png", numbers()))


SPLIT_FOLDERS = [
    ("{split}/images", "{split}/masks", "train val test"),
    ("{split}/Images", "{split}/Labels", "Train Val Test"),
    ("{split}/images", "{split}/gt", "training validation testing"),
    ("{split}/img", "{split}/annotations", "train valid test"),
    ("images/{split}", "masks/{split}", "train val test"),
    ("img_dir/{split}", "ann_dir/{split}", "train val test"),
    ("outer/images/{split}", "outer/labels/{split}", "train valid test"),
    ("{split}", "{split}annot", "train val test"),
    ("{split}", "{split}_labels", "train val test"),
    ("{split}", "{split}_masks", "train val test"),
    ("{split}_images", "{split}_masks", "train val test"),
    ("{split}/Urban/images_png", "{split}/Urban/masks_png", "Train Val Test"),
    ("{split}/{split}/Rural/images_png", "{split}/{split}/Rural/masks_png", "Train Val Test"),
    ("{split}/image_2", "{split}/semantic", "training val testing"),
    ("{split}/{split}-org-img", "{split}/{split}-label-img", "train val test"),
    ("bdd/images/10k/{split}", "bdd/labels/sem_seg/masks/{split}", "train val test"),
]


@pytest.mark.parametrize(("images", "masks", "words"), SPLIT_FOLDERS)
def test_usual_names_of_splits(tmp_path, images, masks, words):
    root = tmp_path / "data"
    expected = each_split(root, f"{images}/{{}}.png", f"{masks}/{{}}.png", words)
    assert counts(check(root, expected)) == SPLITS


ADDED = [
    ("images/{}.jpg", "masks/{}_mask.png"),
    ("images/{}.jpg", "masks/{}_mask.gif"),
    ("images/{}.jpg", "masks/{}.jpg.png"),
    ("images/{}.png", "labels/{}_L.png"),
    ("images/{}.png", "labels/{}_P.png"),
    ("images/{}.png", "masks/{}_lab.png"),
    ("images/{}.png", "masks/{}_anything at all.png"),
    ("images/{}.png", "masks/manual-{}.png"),
    ("images/img_{}.png", "masks/mask_{}.png"),
    ("images/{}_sat.jpg", "masks/{}_mask.png"),
    ("{}.jpg", "{}_mask.png"),
    ("{}_sat.jpg", "{}_mask.png"),
    ("images/{}.jpg", "images/{}_mask.png"),
    ("kaggle_3m/TCGA/TCGA_{}.tif", "kaggle_3m/TCGA/TCGA_{}_mask.tif"),
    (
        "ISIC_Task1-2_Training_Input/ISIC_{}.jpg",
        "ISIC_Task1_Training_GroundTruth/ISIC_{}_segmentation.png",
    ),
]


@pytest.mark.parametrize(("image", "mask"), ADDED)
def test_what_is_added_to_the_names_of_all_masks(tmp_path, image, mask):
    root = tmp_path / "data"
    check(root, write(root, image, mask, [*numbers(8, 1), "11", "1"]))
