"""Known layouts of a data set: where images and masks lie, how they pair, which splits are given.

A layout is recognised by what is in the folder. Image and mask pair by their exact stem, the file's
name without its extension.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import BadInput
from .classes import CAMVID, ClassTable, drone_classes, read_classes

SPLITS = ("train", "val", "test")
SUFFIXES = {
    ".png",
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".bmp",
    ".tif",
    ".tiff",
    ".webp",
    ".gif",
    ".ppm",
    ".pgm",
    ".pbm",
    ".tga",
    ".jp2",
    ".avif",
}
DEEPEST = 4  # folders below the root in which drone sets are looked for

LOOKED_FOR = """
  drone, 5 classes: [classes_dataset/]classes_dataset/original_images/*.png \
and label_images_semantic/*.png beside it
  drone, binary: [binary_dataset/]binary_dataset/original_images/*.png \
and images_semantic/*.png beside it
  drone, original: any original_images/*.jpg and label_images_semantic/*.png (0..23) beside it
  CamVid: train/, val/ (test/ if there is one) and trainannot/, valannot/ (testannot/)
  generic: images/ and masks/, or train/images/, train/masks/, val/images/, ...; \
and classes.csv: index,name,r,g,b"""

Splits = dict[str, list[str]]  # split -> names


class Folders(NamedTuple):
    """A folder of images and the folder of their masks."""

    images: Path
    masks: Path
    split: str | None = None  # None: the data set gives no splits


# A layout whose files are not listed yet: its name, folders and classes.
Recognised = tuple[str, list[Folders], ClassTable | None]


@dataclass(frozen=True)
class Layout:
    """What a folder is, and the pairs in it."""

    name: str
    pairs: dict[str, str]  # image -> mask, as names below the root; sorted
    splits: Splits  # empty: the data set gives none
    classes: ClassTable | None  # None: the masks themselves say how many classes there are
    masks: str  # the first folder of masks, below the root
    problems: list[str]  # files without a partner, missing folders


def find_layout(root: Path, task: str) -> Layout:
    """Recognise the folder and pair its files.

    BadInput, with a list of the layouts looked for, if it is none of them.
    """
    name, folders, classes = _recognise(root, task)
    pairs: dict[str, str] = {}
    splits: Splits = {}
    problems: list[str] = []
    for each in folders:
        found = _pair(root, each, problems)
        pairs |= found
        if each.split:
            splits[each.split] = sorted(found)
    return Layout(
        name,
        dict(sorted(pairs.items())),
        splits,
        classes,
        _name(root, folders[0].masks),
        problems,
    )


def _recognise(root: Path, task: str) -> Recognised:
    """The layout of the root, or of the only folder in it."""
    if not root.is_dir():
        raise BadInput(
            f"{root}: no such folder; give --data a folder of images and masks, or scenes"
        )
    inner = [path for path in root.iterdir() if path.is_dir() and path.name[0] != "."]
    bases = [root, *inner] if len(inner) == 1 else [root]
    for base in bases:
        recognised = _camvid(base, task) or _generic(base, task)
        if recognised:
            return recognised
    recognised = _drone(root, task)
    if recognised:
        return recognised
    raise BadInput(f"{root}: not a data set this program knows. It looked for{LOOKED_FOR}")


def _child(folder: Path, *names: str) -> Path | None:
    """The subfolder with one of these names, whatever its case."""
    if not folder.is_dir():
        return None
    inner = (path for path in sorted(folder.iterdir()) if path.is_dir())
    return next((path for path in inner if path.name.lower() in names), None)


def _camvid(base: Path, task: str) -> Recognised | None:
    """CamVid in SegNet's split, or None."""
    if not ((base / "train").is_dir() and (base / "trainannot").is_dir()):
        return None
    if task == "binary":
        raise BadInput(f"{base}: CamVid has 11 classes, not two; leave out --task binary")
    folders = [Folders(base / split, base / f"{split}annot", split) for split in SPLITS]
    return "camvid", folders, CAMVID


def _generic(base: Path, task: str) -> Recognised | None:
    """The generic layout, with splits or without, or None."""
    folders = _images_and_masks(base)
    if not folders:
        by_split = {split: _images_and_masks(base / split, split) for split in SPLITS}
        if not any(by_split.values()):
            return None
        for split, found in by_split.items():
            missing = Folders(base / split / "images", base / split / "masks", split)
            folders += found or [missing]
    table = base / "classes.csv"
    classes = read_classes(table) if table.exists() else None
    if classes and task == "binary" and len(classes.names) != 2:
        raise BadInput(
            f"{table}: --task binary needs two classes, this table has {len(classes.names)}; "
            "leave out --task binary"
        )
    return "generic", folders, classes


def _images_and_masks(folder: Path, split: str | None = None) -> list[Folders]:
    """The folders images/ and masks/ in a folder; none where one is missing."""
    images = _child(folder, "images", "image")
    masks = _child(folder, "masks", "mask")
    return [Folders(images, masks, split)] if images and masks else []


def _drone(root: Path, task: str) -> Recognised | None:
    """The one drone set below the root that has masks for the task, or None if there is no set."""
    found: dict[str, list[Folders]] = {}
    for name, folders in _drone_sets(root):
        found.setdefault(name, []).append(folders)
    if not found:
        return None
    name = "drone binary" if task == "binary" else "drone"
    if name not in found:
        name = "drone original"  # its ids can be grouped for either task
    if name not in found:
        way = "leave out --task binary" if task == "binary" else "add --task binary"
        raise BadInput(
            f"{root}: holds {' and '.join(found)} only, no masks for the {task} task; {way}"
        )
    if len(found[name]) > 1:
        places = ", ".join(str(folders.images.parent) for folders in found[name])
        raise BadInput(f"{root}: several data sets: {places}; give --data one")
    classes = drone_classes(task, grouped=name != "drone original")
    return name, found[name], classes


def _drone_sets(root: Path) -> Iterator[tuple[str, Folders]]:
    """The drone sets below the root, each with the name of its layout."""
    for folder, inner, _ in os.walk(root, followlinks=True):
        here = Path(folder)
        if "original_images" in inner:
            images = here / "original_images"
            binary = here / "images_semantic"
            labels = here / "label_images_semantic"
            if binary.is_dir():
                yield "drone binary", Folders(images, binary)
            elif labels.is_dir():
                yield _drone_name(images), Folders(images, labels)
        if len(here.relative_to(root).parts) >= DEEPEST:
            inner.clear()
        inner[:] = [name for name in inner if name != "original_images" and name[0] != "."]


def _drone_name(images: Path) -> str:
    """The five-class set or the original: their folders have the same names.

    The photographs are PNG in the first and JPEG in the other.
    """
    if "classes_dataset" in images.parts:
        return "drone"
    png = any(path.suffix.lower() == ".png" for path in images.iterdir())
    return "drone" if png else "drone original"


def _pair(root: Path, folders: Folders, problems: list[str]) -> dict[str, str]:
    """Image -> mask, as names below the root. Adds a problem for each without a partner."""
    image_folder = _name(root, folders.images)
    mask_folder = _name(root, folders.masks)
    if folders.split and not folders.images.is_dir() and not folders.masks.is_dir():
        if folders.split != "test":
            missing = "missing; a set with its own splits has train and val"
            problems.append(f"{image_folder}/: {missing}")
        return {}
    images = _by_stem(root, folders.images, problems)
    masks = _by_stem(root, folders.masks, problems)
    pairs = {}
    for stem, names in images.items():
        partners = masks.get(stem, [])
        if len(names) == len(partners) == 1:
            pairs[names[0]] = partners[0]
        if masks and not partners:
            problems.append(f"{names[0]}: no mask {mask_folder}/{stem}.*")
    for stem, names in masks.items():
        if images and stem not in images:
            problems.append(f"{names[0]}: no image {image_folder}/{stem}.*")
    return pairs


def _by_stem(root: Path, folder: Path, problems: list[str]) -> dict[str, list[str]]:
    """Stem -> names of the images in a folder.

    Adds a problem if there are none, and for each repeated stem.
    """
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    files = [path for path in files if path.suffix.lower() in SUFFIXES and path.name[0] != "."]
    if not files:
        what = "holds no images" if folder.is_dir() else "missing"
        problems.append(f"{_name(root, folder)}/: {what}")
    result: dict[str, list[str]] = {}
    for path in files:
        name = _name(root, path)
        same = result.setdefault(path.stem, [])
        same.append(name)
        if len(same) > 1:
            problems.append(f"{name}: same name as {Path(same[0]).name}; keep one of them")
    return result


def _name(root: Path, path: Path) -> str:
    """The path below the root."""
    return path.relative_to(root).as_posix()


def split_names(names: list[str], seed: int) -> Splits:
    """Of the sorted names the last eighth is test; the rest, shuffled, is 80 % train, 20 % val."""
    ordered = sorted(names)
    rest = len(ordered) - len(ordered) // 8
    shuffled = np.random.default_rng(seed).permutation(ordered[:rest]).tolist()
    train = rest * 4 // 5
    return {
        "train": sorted(shuffled[:train]),
        "val": sorted(shuffled[train:]),
        "test": ordered[rest:],
    }
