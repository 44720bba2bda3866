"""Data sets: folders of image/mask pairs in one of the known layouts, and the built-in scenes.

Opening a set reads every pair once (later its cache entry), lists all that is wrong in one message, and counts the
pixels of each class. Nothing is silently converted, guessed or left out.
"""

import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..errors import BadInput
from . import scenes
from .cache import (
    Unreadable,
    entry_of,
    histogram,
    load_array,
    load_record,
    read_image,
    read_mask,
    store,
)
from .labels import ANTIALIASED, drone_classes, label_table, parse_label_map
from .layouts import SPLITS, find_layout, find_pairs, name_classes, split_names

__all__ = ["SegmentationDataset", "open_dataset", "parse_label_map"]

LISTED = 50
THREADS = min(4, os.cpu_count() or 1)  # more would cost memory on 24-megapixel images
SCENE_SIZE = (256, 256)

Names = dict[str, list[str]]  # split -> names


class Pair(NamedTuple):
    """The cache entries of an image and its mask, and what their records say."""

    image: Path
    mask: Path
    digest: str  # of the image file
    counts: list[int]  # pixels of each label 0..255


@dataclass
class SegmentationDataset:
    """Checked image/mask pairs by name: the path of the image below the root, or "train/0007" for a scene."""

    layout: str
    root: str
    task: str
    seed: int
    label_map: dict[int, int]
    image_size: tuple[int, int] | None
    classes: list[str] = field(default_factory=list)
    palette: list[list[int]] = field(default_factory=list)
    splits: Names = field(default_factory=dict)
    pixel_counts: dict[str, list[int]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    pairs: dict[str, Pair] = field(default_factory=dict, repr=False)

    def image(self, name: str) -> np.ndarray:
        """uint8 H x W x 3, mapped from the cache, read-only; of `image_size` if that is set."""
        return load_array(self.pairs[name].image)

    def mask(self, name: str) -> np.ndarray:
        """uint8 h x w, labels 0..K-1 and 255, mapped from the cache, read-only; always of the file's own size."""
        return load_array(self.pairs[name].mask)

    def describe(self) -> dict[str, Any]:
        """Plain values for a checkpoint; all but layout are arguments of `open_dataset` (root is its data)."""
        size = list(self.image_size) if self.image_size else None
        names = ("layout", "root", "task", "splits", "label_map", "seed")
        return {name: getattr(self, name) for name in names} | {"image_size": size}


def open_dataset(
    data: str,
    *,
    task: str = "multiclass",
    seed: int = 0,
    label_map: dict[int, int] | None = None,
    skip_bad: bool = False,
    image_size: tuple[int, int] | None = None,
    splits: Names | None = None,
) -> SegmentationDataset:
    """Open "scenes" or a folder, read and check every pair, count pixels.

    Args:
        task: "multiclass" or "binary".
        seed: shuffles train and val where the folder gives no splits; draws the scenes.
        label_map: stored value -> label, applied before anything else (see `parse_label_map`).
        skip_bad: leave bad pairs out (sentences in `skipped`) where otherwise they stop the run.
        image_size: (H, W) that images are resized to; masks keep their size. Scenes are rendered at it.
        splits: a checkpoint's {"train": names, "val": ..., "test": ...}: used as they are, other files are not read.

    Raises:
        BadInput: with every problem of the set, one line each.
    """
    if task not in ("multiclass", "binary"):
        raise BadInput(f"--task {task}: unknown; it is multiclass or binary")
    if image_size is not None and (len(image_size) != 2 or min(image_size) < 32):
        raise BadInput(
            f"--image-size {' '.join(map(str, image_size))}: give height and width, at least 32 each"
        )
    size = (int(image_size[0]), int(image_size[1])) if image_size is not None else None
    if splits is not None:
        splits = {split: list(splits.get(split, [])) for split in SPLITS}
    if data == "scenes":
        result = SegmentationDataset(
            "scenes", data, task, seed, dict(label_map or {}), size or SCENE_SIZE
        )
        _fill_from_scenes(result, splits)
    else:
        result = SegmentationDataset(
            "", os.path.abspath(data), task, seed, dict(label_map or {}), size
        )
        _fill_from_folder(result, splits, skip_bad)
    return result


def _fill_from_scenes(data: SegmentationDataset, stored: Names | None) -> None:
    drawn = {
        split: [f"{split}/{index:04d}" for index in range(count)]
        for split, count in scenes.SIZES.items()
    }
    data.splits = stored or drawn
    unknown = [name for split in SPLITS for name in data.splits[split] if name not in drawn[split]]
    if unknown:
        raise BadInput(
            f"{unknown[0]}: no such scene; is this checkpoint from another version of the program?"
        )
    data.classes, data.palette, groups = drone_classes(data.task)
    table = label_table(groups, data.label_map)
    source = entry_of(Path(scenes.__file__).read_bytes()).name  # another renderer, other entries

    def read(name: str) -> Pair:
        image_entry, ids_entry = (
            entry_of(source, data.seed, name, data.image_size, part) for part in ("image", "ids")
        )
        mask_entry = entry_of(ids_entry, table.tobytes())
        record = load_record(mask_entry)
        if load_record(image_entry) is None or load_record(ids_entry) is None:
            split, index = name.split("/")
            image, ids = scenes.render(data.seed, split, int(index), data.image_size or SCENE_SIZE)
            store(image_entry, image)
            store(ids_entry, ids)
        if record is None:
            mask = table.astype(np.uint8)[load_array(ids_entry)]
            record = store(mask_entry, mask, counts=histogram(mask))
        return Pair(image_entry, mask_entry, "", record["counts"])

    _keep(data, _in_threads(read, data.splits))


def _fill_from_folder(data: SegmentationDataset, stored: Names | None, skip_bad: bool) -> None:
    root = Path(data.root)
    try:
        layout = find_layout(root, data.task)
        pairs, given, unpaired = find_pairs(root, layout)
    except OSError as error:
        raise BadInput(
            f"{error.filename}: cannot be listed ({error.strerror}); mend its permissions"
        ) from None
    if stored is not None:
        splits, unpaired = stored, []
        gone = [
            f"{n}: in the stored {split} split"
            for split in SPLITS
            for n in stored[split]
            if n not in pairs
        ]
        if gone:
            raise BadInput(
                _listing(
                    f"{root}: {len(gone)} images of the stored splits have no pair there", gone
                )
            )
    elif len(pairs) < 2:
        unpaired = unpaired or ["a single pair cannot be split into train and val: add images"]
        raise BadInput(_listing(f"{root}: {len(pairs)} images with a mask", unpaired))
    elif layout.folders[0][0] is None:
        splits = split_names(list(pairs), data.seed)
    else:
        splits = {split: [name for name in pairs if given[name] == split] for split in SPLITS}

    table = label_table(layout.labels, data.label_map)
    reads = _in_threads(
        lambda name: _read_pair(data, name, *pairs[name], table, layout.colours), splits
    )
    bad = {name: result for name, result in reads.items() if isinstance(result, list)}
    good = {name: result for name, result in reads.items() if name not in bad}
    bad |= _duplicates(splits, good)
    problems = unpaired + [sentence for name in pairs for sentence in bad.get(name, [])]
    good = {name: result for name, result in good.items() if name not in bad}
    counts = sum((np.array(pair.counts) for pair in good.values()), np.zeros(256, np.int64))
    data.classes, data.palette, nonsense = name_classes(layout, data.task, counts)
    if nonsense:
        nonsense = f"{layout.folders[0][2].relative_to(root).as_posix()}/: {nonsense}"
        raise BadInput(_listing(f"{root}: labels that cannot be used", [nonsense, *problems]))
    if problems and not skip_bad:
        raise BadInput(
            _listing(f"{root}: {len(problems)} problems (--skip-bad leaves these out)", problems)
        )
    data.splits = {split: [name for name in splits[split] if name in good] for split in SPLITS}
    if stored is None and not (data.splits["train"] and data.splits["val"]):
        raise BadInput(
            _listing(f"{root}: nothing is left in train or val without the bad pairs", problems)
        )
    data.layout, data.skipped = layout.name, problems
    _keep(data, good)


def _read_pair(
    data: SegmentationDataset,
    name: str,
    image_path: Path,
    mask_path: Path,
    table: np.ndarray,
    colours: dict[int, int] | None,
) -> Pair | list[str]:
    """The cache entries of a pair, made now where missing; or all sentences on what is wrong with it."""
    mask_name = mask_path.relative_to(data.root).as_posix()
    try:
        files = [
            (str(path), (stat := path.stat()).st_size, stat.st_mtime_ns)
            for path in (image_path, mask_path)
        ]
    except OSError as error:
        return [f"{name} or {mask_name}: cannot be opened ({error.strerror}); mend or remove it"]
    # An image entry says that the image was checked against this very mask file.
    image_entry, mask_entry = (
        entry_of(files, data.image_size),
        entry_of(files[1], table.tobytes(), colours),
    )
    image_record, mask_record = load_record(image_entry), load_record(mask_entry)
    problems, mask_size = [], None
    if mask_record is None:
        try:
            mask, undeclared = read_mask(mask_path, table, colours)
            mask_size = mask.shape[::-1]
            if undeclared:
                problems.append(f"{mask_name}: {undeclared}")
            else:
                mask_record = store(mask_entry, mask, counts=histogram(mask))
        except Unreadable as reason:
            problems.append(f"{mask_name}: {reason}")
    else:
        mask_size = tuple(mask_record["shape"][::-1])
    if image_record is None:
        try:
            image, digest = read_image(image_path, mask_size)
            if mask_size not in (image.size, None):
                (width, height), (columns, rows) = image.size, mask_size
                swapped = (width, height) == (rows, columns)
                advice = (
                    "width and height are swapped, turn one of the two"
                    if swapped
                    else "export the mask again"
                )
                problems.append(
                    f"{name}: {width} x {height} pixels, its mask {mask_name} {columns} x {rows}: {advice}"
                )
            elif mask_record is not None:
                if data.image_size:
                    # Pillow widens its filter with the scale, so this does not alias
                    image = image.resize(data.image_size[::-1], Image.Resampling.BILINEAR)
                image_record = store(image_entry, np.asarray(image), digest=digest)
        except Unreadable as reason:
            problems.append(f"{name}: {reason}")
    if problems or image_record is None or mask_record is None:
        return problems
    return Pair(image_entry, mask_entry, image_record["digest"], mask_record["counts"])


def _in_threads(read: Callable[[str], Any], splits: Names) -> dict[str, Any]:
    names = [name for split in SPLITS for name in splits[split]]
    with warnings.catch_warnings(), ThreadPoolExecutor(THREADS) as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return dict(zip(names, pool.map(read, names), strict=True))


def _keep(data: SegmentationDataset, pairs: dict[str, Pair]) -> None:
    data.pairs = pairs
    for split, names in data.splits.items():
        total = sum((np.array(pairs[name].counts) for name in names), np.zeros(256, np.int64))
        data.pixel_counts[split] = total[: len(data.classes)].tolist()


def _duplicates(splits: Names, good: dict[str, Pair]) -> dict[str, list[str]]:
    """Images that are byte for byte in two splits. To leave out is the copy that no score is taken on."""
    seen: dict[str, tuple[str, str]] = {}
    problems: dict[str, list[str]] = {}
    for split in reversed(SPLITS):
        for name in splits[split]:
            if name in good:
                other_split, other = seen.setdefault(good[name].digest, (split, name))
                if other_split != split:
                    problems[name] = [
                        f"{name} ({split}): the same file as {other} ({other_split}); keep one of them"
                    ]
    return problems


def _listing(title: str, problems: list[str]) -> str:
    """A message of one line a problem. What many masks share stands once and last, so that it hides nothing."""
    shared = [problem for problem in problems if problem.endswith(ANTIALIASED)]
    last = [shared[0], f"the same in {len(shared) - 1} more masks"] if len(shared) > 3 else []
    others = [problem for problem in problems if not (last and problem.endswith(ANTIALIASED))]
    more = [f"... and {len(others) - LISTED} more"] if len(others) > LISTED else []
    return "\n  ".join([title, *others[:LISTED], *more, *last])


def reopen_dataset(meta: dict[str, Any], folder: str | None = None) -> SegmentationDataset:
    """The data of a checkpoint, with its splits, so that no score is ever taken on a training image.

    folder: where the same files lie now, or another data set of the same classes, which then has its own splits.
    BadInput if its classes are not the checkpoint's.
    """
    described = dict(meta["data"])
    described.pop("layout")
    root = described.pop("root")
    if folder is not None and folder != root:
        root = folder
        names = [name for split in described["splits"].values() for name in split]
        if folder == "scenes" or not all(Path(folder, name).exists() for name in names):
            described["splits"] = None
    data = open_dataset(root, **described)
    if described["splits"] is not None and len(data.classes) <= len(meta["classes"]):
        data.classes, data.palette = (
            meta["classes"],
            meta["palette"],
        )  # a split may lack the highest labels
    if data.classes != meta["classes"]:
        raise BadInput(
            f"{root} has the {len(data.classes)} classes {', '.join(data.classes)}, "
            f"the checkpoint knows {len(meta['classes'])}: {', '.join(meta['classes'])}; give data of the same classes"
        )
    return data
