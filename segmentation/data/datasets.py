"""Data sets: folders of image/mask pairs in one of the known layouts, and the built-in scenes.

Opening a set reads every pair (the next time its cache entry instead), lists all that is wrong in
one message, and counts the pixels of each class. Nothing is silently converted, guessed or left
out.
"""

import os
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray
from PIL import Image

from ..errors import BadInput
from . import scenes
from .cache import entry_of, load_array
from .classes import drone_classes, numbered_classes
from .labels import IGNORED, ClassTable, check_labels, label_table
from .layouts import SPLITS, Layout, Splits, fill_splits, find_layout
from .pairs import Pair, Size, clashing_palettes, read_pair, render_pair
from .problems import listing

THREADS = min(4, os.cpu_count() or 1)  # more would cost memory on 24-megapixel images
SCENE_SIZE = (256, 256)


@dataclass(frozen=True)
class SegmentationDataset:
    """Checked image/mask pairs. root: an absolute path, or "scenes".

    The name of a pair is the image's path below the root, or "train/0007" for a scene.
    """

    layout: str
    root: str
    task: str
    seed: int
    label_map: dict[int, int]
    image_size: Size | None  # (H, W) that all images have; None: each has its file's
    classes: list[str]
    palette: list[list[int]]
    splits: Splits
    pairs: dict[str, Pair] = field(repr=False)
    skipped: list[str] = field(default_factory=list)  # sentences on what was left out
    notes: list[str] = field(default_factory=list)  # on what was recognised, and is not read

    def image(self, name: str) -> ndarray:
        """uint8 H x W x 3, a read-only memory map; of `image_size` if that is set."""
        return load_array(self.pairs[name].image)

    def mask(self, name: str) -> ndarray:
        """uint8 h x w, labels 0..K-1 and 255, a read-only memory map.

        Always of the file's own size.
        """
        return load_array(self.pairs[name].mask)

    @cached_property
    def pixel_counts(self) -> dict[str, list[int]]:
        """Split -> pixels of each class in its masks, K numbers; 255 is not counted."""
        K = len(self.classes)
        return {
            split: _count_labels(self.pairs[name] for name in names)[:K].tolist()
            for split, names in self.splits.items()
        }

    def describe(self) -> dict[str, Any]:
        """Plain values for a checkpoint.

        All but layout are arguments of `open_dataset` (root is its data).
        """
        return {
            "layout": self.layout,
            "root": self.root,
            "task": self.task,
            "splits": self.splits,
            "label_map": self.label_map,
            "seed": self.seed,
            "image_size": list(self.image_size) if self.image_size else None,
        }


def open_dataset(
    data: str,
    *,
    task: str = "multiclass",
    seed: int = 0,
    label_map: dict[int, int] | None = None,
    skip_bad: bool = False,
    image_size: Size | None = None,
    splits: Splits | None = None,
) -> SegmentationDataset:
    """Open "scenes" or a folder; read and check every pair.

    Args:
        task: "multiclass" or "binary".
        seed: shuffles train and val where the folder gives no splits; draws the scenes.
        label_map: stored value -> label, applied before anything else (see `parse_label_map`).
        skip_bad: leave bad pairs out, with a sentence each in `skipped`, instead of BadInput.
        image_size: (H, W) that images are resized to; masks keep their size. Scenes are rendered
            at it.
        splits: a checkpoint's {"train": names, "val": ..., "test": ...}: used as they are, other
            files are not read.

    Raises:
        BadInput: with every problem of the set, one line each.
    """
    if task not in ("multiclass", "binary"):
        raise BadInput(f"--task {task}: unknown; it is multiclass or binary")
    if image_size and min(image_size) < 32:
        raise BadInput(
            f"--image-size {' '.join(map(str, image_size))}: "
            "give height and width, at least 32 each"
        )
    size = (image_size[0], image_size[1]) if image_size else None
    label_map = label_map or {}
    if data == "scenes":
        root = layout = data
        skipped: list[str] = []
        notes: list[str] = []
        size = size or SCENE_SIZE
        classes = drone_classes(task)
        splits, pairs = _open_scenes(seed, label_table(classes, label_map), size, splits)
    else:
        root = os.path.abspath(data)
        layout, classes, splits, pairs, skipped, notes = _open_folder(
            Path(root), task, seed, label_map, size, splits, skip_bad
        )
    return SegmentationDataset(
        layout,
        root,
        task,
        seed,
        label_map,
        size,
        classes.names,
        classes.palette,
        splits,
        pairs,
        skipped,
        notes,
    )


def _open_scenes(
    seed: int,
    table: ndarray,
    size: Size,
    stored: Splits | None,
) -> tuple[Splits, dict[str, Pair]]:
    """The splits, and the pair of each name. stored: a checkpoint's splits."""
    drawn = {
        split: [f"{split}/{index:04d}" for index in range(count)]
        for split, count in scenes.IMAGES_PER_SPLIT.items()
    }
    splits = stored or drawn
    unknown = [name for split in drawn for name in splits[split] if name not in drawn[split]]
    if unknown:
        raise BadInput(
            f"{unknown[0]}: no such scene, so the checkpoint is of another version: train it again"
        )
    sources = sorted(Path(scenes.__file__).parent.glob("*.py"))
    version = entry_of(*[path.read_bytes() for path in sources]).name  # of the renderer's source
    pairs = _in_threads(lambda name: render_pair(version, seed, name, size, table), splits)
    return splits, pairs


def _open_folder(
    root: Path,
    task: str,
    seed: int,
    label_map: dict[int, int],
    size: Size | None,
    stored: Splits | None,
    skip_bad: bool,
) -> tuple[str, ClassTable, Splits, dict[str, Pair], list[str], list[str]]:
    """The layout's name, the classes, the splits, the good pairs, a sentence on each problem.

    At last the layout's notes.
    """
    try:
        layout = find_layout(root, task)
    except OSError as error:
        raise BadInput(
            f"{error.filename}: cannot be listed ({error.strerror}); mend its permissions"
        ) from None
    splits = _choose_splits(root, layout, seed, stored)
    declared = layout.classes
    table = label_table(declared, label_map)
    colours = declared.colours if declared else None
    reads = _in_threads(
        lambda name: read_pair(
            root, name, layout.pairs[name], layout.drawings.get(name), table, colours, size
        ),
        splits,
    )
    reads |= _duplicates(splits, reads)
    pairs = {}
    problems = [] if stored else list(layout.problems)
    for name in layout.pairs:
        result = reads.get(name, [])
        if isinstance(result, Pair):
            pairs[name] = result
        else:
            problems += result

    counts = _count_labels(pairs.values())
    clash = "" if colours else clashing_palettes(pairs)
    nonsense = clash or check_labels(counts, task, declared=declared is not None)
    if nonsense:
        problems = [f"{layout.masks}/: {nonsense}", *problems]
        raise BadInput(listing(f"{root}: labels that cannot be used", problems))
    if problems and not skip_bad:
        raise BadInput(
            listing(f"{root}: {len(problems)} problems (--skip-bad leaves these out)", problems)
        )
    splits = {split: [name for name in splits[split] if name in pairs] for split in SPLITS}
    if stored is None and not (splits["train"] and splits["val"]):
        raise BadInput(
            listing(f"{root}: nothing is left in train or val without the bad pairs", problems)
        )
    highest = np.flatnonzero(counts[:IGNORED]).max(initial=0)
    classes = declared or numbered_classes(highest + 1)
    return layout.name, classes, splits, pairs, problems, layout.notes


def _choose_splits(
    root: Path,
    layout: Layout,
    seed: int,
    stored: Splits | None,
) -> Splits:
    """The stored splits, else those of the folder, else new ones."""
    if stored is not None:
        gone = [
            f"{name}: in the stored {split} split"
            for split, names in stored.items()
            for name in names
            if name not in layout.pairs
        ]
        if gone:
            title = f"{root}: {len(gone)} images of the stored splits have no pair there"
            raise BadInput(listing(title, gone))
        return stored
    if len(layout.pairs) < 2:
        alone = "a single pair cannot be split into train and val: add images"
        raise BadInput(
            listing(f"{root}: {len(layout.pairs)} images with a mask", layout.problems or [alone])
        )
    return fill_splits(layout, seed)


def _in_threads(read: Callable[[str], Any], splits: Splits) -> dict[str, Any]:
    """name -> read(name), for the names of all splits."""
    names = [name for names in splits.values() for name in names]
    with warnings.catch_warnings(), ThreadPoolExecutor(THREADS) as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return dict(zip(names, pool.map(read, names), strict=True))


def _count_labels(pairs: Iterable[Pair]) -> ndarray:
    """Pixels of each label 0..255 in all masks, int64."""
    return np.sum([[0] * 256, *(pair.counts for pair in pairs)], axis=0)


def _duplicates(splits: Splits, reads: dict[str, Any]) -> dict[str, list[str]]:
    """name -> its problem, for images that are byte for byte in two splits.

    The copy in the training split is the one reported, or that in val if the other is in test.
    """
    seen: dict[str, tuple[str, str]] = {}
    problems = {}
    for split in reversed(SPLITS):
        for name in splits[split]:
            pair = reads[name]
            if not isinstance(pair, Pair):
                continue
            other_split, other = seen.setdefault(pair.digest, (split, name))
            if other_split != split:
                same = f"{name} ({split}): the same file as {other} ({other_split})"
                problems[name] = [f"{same}; keep one of them"]
    return problems


def reopen_dataset(meta: dict[str, Any], folder: str | None = None) -> SegmentationDataset:
    """The data of a checkpoint, with its splits: no score is ever taken on a training image.

    Args:
        folder: where the same files lie now, or another data set of the same classes, which then
            has its own splits.

    Raises:
        BadInput: if its classes are not the checkpoint's.
    """
    described = dict(meta["data"])
    del described["layout"]
    root = described.pop("root")
    if folder is not None and folder != root:
        root = folder
        names = [name for split in described["splits"].values() for name in split]
        if folder == "scenes" or not all(Path(folder, name).exists() for name in names):
            described["splits"] = None
    data = open_dataset(root, **described)
    classes = meta["classes"]
    numbers = [str(label) for label, _ in enumerate(classes)]
    if described["splits"] is not None and data.classes == numbers[: len(data.classes)]:
        # Without classes.csv the classes are those that masks hold; these may lack the last ones.
        data = replace(data, classes=classes, palette=meta["palette"])
    if data.classes != classes:
        raise BadInput(
            f"{root} has the {len(data.classes)} classes {', '.join(data.classes)}, "
            f"the checkpoint knows {len(classes)}: {', '.join(classes)}; "
            "give data of the same classes"
        )
    return data
