"""Known layouts of a data set: where images and masks lie, how they pair, how names split.

A layout is recognised by what is in the folder. Image and mask pair by their exact name without the extension.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import BadInput
from .labels import ANTIALIASED, CAMVID, IGNORED, drone_classes, numbered_classes, read_classes

SPLITS = ("train", "val", "test")
SUFFIXES = frozenset(
    [
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
    ]
)

LOOKED_FOR = """
  drone, 5 classes: [classes_dataset/]classes_dataset/original_images/*.png and label_images_semantic/*.png beside it
  drone, binary: [binary_dataset/]binary_dataset/original_images/*.png and images_semantic/*.png beside it
  drone, original: any original_images/*.jpg and label_images_semantic/*.png (0..23) beside it
  CamVid: train/, val/ (test/ if there is one) and trainannot/, valannot/ (testannot/)
  generic: images/ and masks/, or train/images/, train/masks/, val/images/, ...; and classes.csv: index,name,r,g,b"""


@dataclass(frozen=True)
class Layout:
    """What a folder is. `classes` and `labels` are None where the masks themselves say how many classes there are."""

    name: str
    folders: list[tuple[str | None, Path, Path]]  # split (None: not given), images, masks
    classes: list[str] | None = None
    palette: list[list[int]] | None = None
    labels: dict[int, int] | None = None  # stored value -> class
    colours: dict[int, int] | None = None  # 0xRRGGBB of a colour mask -> stored value


def find_layout(root: Path, task: str) -> Layout:
    """Recognise the folder; BadInput that prints what was looked for if it is none of the known layouts."""
    if not root.is_dir():
        raise BadInput(
            f"{root}: no such folder; give --data a folder of images and masks, or scenes"
        )
    inner = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    for base in [root, *(inner if len(inner) == 1 else [])]:
        layout = _camvid(base, task) or _generic(base, task)
        if layout:
            return layout
    layout = _drone(root, task)
    if layout is None:
        raise BadInput(f"{root}: not a data set this program knows. It looked for{LOOKED_FOR}")
    return layout


def _child(folder: Path, *names: str) -> Path | None:
    """The subfolder with one of these names, whatever its case."""
    if not folder.is_dir():
        return None
    return next(
        (path for path in sorted(folder.iterdir()) if path.is_dir() and path.name.lower() in names),
        None,
    )


def _camvid(base: Path, task: str) -> Layout | None:
    if not ((base / "train").is_dir() and (base / "trainannot").is_dir()):
        return None
    if task == "binary":
        raise BadInput(f"{base}: CamVid has 11 classes, not two; leave out --task binary")
    folders: list[tuple[str | None, Path, Path]] = [
        (s, base / s, base / f"{s}annot") for s in SPLITS
    ]
    labels = {**{index: index for index in range(11)}, 11: IGNORED}
    return Layout("camvid", folders, list(CAMVID), list(CAMVID.values()), labels)


def _generic(base: Path, task: str) -> Layout | None:
    places: list[tuple[str | None, Path]] = [
        (None, base),
        *((split, base / split) for split in SPLITS),
    ]
    images, masks = ("images", "image"), ("masks", "mask")
    found = [(s, i, m) for s, p in places if (i := _child(p, *images)) and (m := _child(p, *masks))]
    if not found:
        return None
    if found[0][0] is None:
        found = found[:1]
    else:
        known = {split: (i, m) for split, i, m in found}
        found = [(s, *known.get(s, (base / s / "images", base / s / "masks"))) for s in SPLITS]
    table = base / "classes.csv"
    if not table.exists():
        return Layout("generic", found)
    names, palette, colours = read_classes(table)
    if task == "binary" and len(names) != 2:
        raise BadInput(
            f"{table}: --task binary needs two classes, this table has {len(names)}; leave out --task binary"
        )
    return Layout(
        "generic", found, names, palette, {index: index for index in range(len(names))}, colours
    )


def _drone(root: Path, task: str) -> Layout | None:
    found: dict[str, list[tuple[str | None, Path, Path]]] = {}
    for folder, inner, _ in os.walk(root, followlinks=True):
        here = Path(folder)
        deep = len(here.relative_to(root).parts) >= 4
        if "original_images" in inner:
            images, labels = here / "original_images", here / "label_images_semantic"
            if (here / "images_semantic").is_dir():
                found.setdefault("drone binary", []).append(
                    (None, images, here / "images_semantic")
                )
            elif labels.is_dir():
                # The two sets that share these folder names differ in the format of their photographs.
                grouped = "classes_dataset" in here.parts or any(
                    p.suffix.lower() == ".png" for p in images.iterdir()
                )
                found.setdefault("drone" if grouped else "drone original", []).append(
                    (None, images, labels)
                )
        inner[:] = (
            [] if deep else [d for d in inner if d != "original_images" and not d.startswith(".")]
        )
    if not found:
        return None
    name = next(
        (
            n
            for n in ("drone binary" if task == "binary" else "drone", "drone original")
            if n in found
        ),
        None,
    )
    if name is None:
        way = "leave out --task binary" if task == "binary" else "add --task binary"
        raise BadInput(
            f"{root}: holds {' and '.join(found)} only, no masks for the {task} task; {way}"
        )
    if len(found[name]) > 1:
        raise BadInput(
            f"{root}: several data sets: {', '.join(str(i.parent) for _, i, _ in found[name])}; name one"
        )
    classes, palette, groups = drone_classes(task)
    labels_of = (
        groups if name == "drone original" else {index: index for index in range(len(classes))}
    )
    return Layout(name, found[name], classes, palette, labels_of)


def find_pairs(
    root: Path, layout: Layout
) -> tuple[dict[str, tuple[Path, Path]], dict[str, str | None], list[str]]:
    """(name -> image and mask file, name -> given split, sentences about what has no partner). Names are sorted."""
    pairs: dict[str, tuple[Path, Path]] = {}
    given: dict[str, str | None] = {}
    problems: list[str] = []
    for split, image_folder, mask_folder in layout.folders:
        if split and not image_folder.is_dir() and not mask_folder.is_dir():
            if split != "test":
                problems.append(
                    f"{image_folder.relative_to(root)}/: missing; a set with its own splits has train and val"
                )
            continue
        images, masks = (_by_stem(root, folder, problems) for folder in (image_folder, mask_folder))
        if images and masks:
            places = [folder.relative_to(root).as_posix() for folder in (image_folder, mask_folder)]
            problems += [
                f"{_relative(root, images[s][0])}: no mask {places[1]}/{s}.*"
                for s in images
                if s not in masks
            ]
            problems += [
                f"{_relative(root, masks[s][0])}: no image {places[0]}/{s}.*"
                for s in masks
                if s not in images
            ]
        for stem in images.keys() & masks.keys():
            if len(images[stem]) == len(masks[stem]) == 1:
                name = _relative(root, images[stem][0])
                pairs[name], given[name] = (images[stem][0], masks[stem][0]), split
    return dict(sorted(pairs.items())), given, problems


def _relative(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _by_stem(root: Path, folder: Path, problems: list[str]) -> dict[str, list[Path]]:
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    files = [
        path for path in files if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    ]
    if not files:
        problems.append(
            f"{_relative(root, folder)}/: {'holds no images' if folder.is_dir() else 'missing'}"
        )
    result: dict[str, list[Path]] = {}
    for path in files:
        result.setdefault(path.stem, []).append(path)
        if len(result[path.stem]) > 1:
            problems.append(
                f"{_relative(root, path)}: same name as {result[path.stem][0].name}; keep one of them"
            )
    return result


def split_names(names: list[str], seed: int) -> dict[str, list[str]]:
    """Of the sorted names the last eighth is test; the rest, shuffled by the seed, is 80 % train and 20 % val."""
    ordered = sorted(names)
    rest = len(ordered) - len(ordered) // 8
    shuffled = [ordered[i] for i in np.random.default_rng(seed).permutation(rest)]
    train = rest * 4 // 5
    return {
        "train": sorted(shuffled[:train]),
        "val": sorted(shuffled[train:]),
        "test": ordered[rest:],
    }


def name_classes(
    layout: Layout, task: str, counts: np.ndarray
) -> tuple[list[str], list[list[int]], str]:
    """Names, palette, and "" or one sentence on why the labels of the set as a whole make no sense.

    counts: pixels of each label 0..255 in all masks.
    """
    present, stored = np.flatnonzero(counts[:IGNORED]).tolist(), np.count_nonzero(counts)
    highest = present[-1] if present else 0
    nonsense = ""
    if layout.labels is None and stored > 32 and np.sort(counts)[-2:].sum() > 0.9 * counts.sum():
        nonsense = f"masks hold {stored} values, two of them in most pixels: {ANTIALIASED}"
    elif counts[IGNORED] and present == [0]:
        nonsense = "masks hold only 0 and 255, and 255 means ignored; where it is class 1 say --label-map 255=1"
    elif layout.classes is not None and layout.palette is not None:
        return layout.classes, layout.palette, ""
    elif len(present) < 2 and stored:
        nonsense = f"masks hold only the labels {present}; a segmentation needs two classes"
    elif task == "binary" and highest > 1:
        above = "2" if highest == 2 else f"2-{highest}"
        nonsense = f"--task binary needs labels 0 and 1, masks go up to {highest}: say --label-map {above}=1"
    elif 2 * len(present) < highest + 1:
        advice = ",".join(
            f"{value}={label}" for label, value in enumerate(present) if value != label
        )
        nonsense = f"masks hold only {len(present)} of 0..{highest}: say --label-map {advice}, or write classes.csv"
    return *numbered_classes(highest + 1), nonsense
