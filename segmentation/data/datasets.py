"""Data sets: folders of image/mask pairs in one of the known layouts, and the built-in scenes.

Opening a set reads every pair once (later its cache entry), lists all that is wrong in one message,
and counts the pixels of each class. Nothing is silently converted, guessed or left out.
"""

import os
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..errors import BadInput
from . import scenes
from .cache import entry_of, load_array, load_record, store
from .classes import drone_classes, numbered_classes
from .images import Unreadable, histogram, read_image, read_mask
from .labels import IGNORED, check_labels, label_table, undeclared_values
from .layouts import SPLITS, Layout, Splits, find_layout
from .problems import Problem, listing

THREADS = min(4, os.cpu_count() or 1)  # more would cost memory on 24-megapixel images
SCENE_SIZE = (256, 256)

Size = tuple[int, int]
Record = dict[str, Any]


class Pair(NamedTuple):
    """The cache entries of an image and its mask, and what their records say."""

    image: Path
    mask: Path
    digest: str  # of the image file
    counts: list[int]  # pixels of each label 0..255


@dataclass(frozen=True)
class SegmentationDataset:
    """Checked image/mask pairs.

    The name of a pair is the image's path below the root, or "train/0007" for a scene.
    """

    layout: str
    root: str
    task: str
    seed: int
    label_map: dict[int, int]
    image_size: Size | None  # (H, W) of all images; None: of the files
    classes: list[str]
    palette: list[list[int]]
    splits: Splits
    skipped: list[str]  # sentences on what was left out
    pairs: dict[str, Pair] = field(repr=False)

    def image(self, name: str) -> np.ndarray:
        """uint8 H x W x 3, mapped from the cache, read-only; of `image_size` if that is set."""
        return load_array(self.pairs[name].image)

    def mask(self, name: str) -> np.ndarray:
        """uint8 h x w, labels 0..K-1 and 255, mapped from the cache, read-only.

        Always of the file's own size.
        """
        return load_array(self.pairs[name].mask)

    @cached_property
    def pixel_counts(self) -> dict[str, list[int]]:
        """Pixels of each class in the masks of each split."""
        counts = {}
        for split, names in self.splits.items():
            total = _count_labels(self.pairs[name] for name in names)
            counts[split] = total[: len(self.classes)].tolist()
        return counts

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
    """Open "scenes" or a folder, read and check every pair.

    Args:
        task: "multiclass" or "binary".
        seed: shuffles train and val where the folder gives no splits; draws the scenes.
        label_map: stored value -> label, applied before anything else (see `parse_label_map`).
        skip_bad: leave bad pairs out (sentences in `skipped`) where otherwise they stop the run.
        image_size: (H, W) that images are resized to; masks keep their size. Scenes are rendered
            at it.
        splits: a checkpoint's {"train": names, "val": ..., "test": ...}: used as they are, other
            files are not read.

    Raises:
        BadInput: with every problem of the set, one line each.
    """
    if task not in ("multiclass", "binary"):
        raise BadInput(f"--task {task}: unknown; it is multiclass or binary")
    if image_size is not None and (len(image_size) != 2 or min(image_size) < 32):
        given = " ".join(map(str, image_size))
        raise BadInput(f"--image-size {given}: give height and width, at least 32 each")
    size = (int(image_size[0]), int(image_size[1])) if image_size is not None else None
    label_map = dict(label_map or {})
    if splits is not None:
        splits = {split: list(splits.get(split, [])) for split in SPLITS}
    if data == "scenes":
        return _open_scenes(task, seed, label_map, size or SCENE_SIZE, splits)
    return _open_folder(Path(os.path.abspath(data)), task, seed, label_map, size, splits, skip_bad)


def _open_scenes(
    task: str,
    seed: int,
    label_map: dict[int, int],
    size: Size,
    stored: Splits | None,
) -> SegmentationDataset:
    drawn = {
        split: [f"{split}/{index:04d}" for index in range(count)]
        for split, count in scenes.IMAGES_PER_SPLIT.items()
    }
    splits = stored or drawn
    unknown = [name for split in SPLITS for name in splits[split] if name not in drawn[split]]
    if unknown:
        raise BadInput(
            f"{unknown[0]}: no such scene; is this checkpoint from another version of the program?"
        )
    classes = drone_classes(task)
    table = label_table(classes.labels, label_map)
    sources = sorted(Path(scenes.__file__).parent.glob("*.py"))
    version = entry_of(*[path.read_bytes() for path in sources]).name  # of the renderer
    return SegmentationDataset(
        layout="scenes",
        root="scenes",
        task=task,
        seed=seed,
        label_map=label_map,
        image_size=size,
        classes=classes.names,
        palette=classes.palette,
        splits=splits,
        skipped=[],
        pairs=_in_threads(lambda name: _render_pair(version, seed, name, size, table), splits),
    )


def _render_pair(version: str, seed: int, name: str, size: Size, table: np.ndarray) -> Pair:
    """The cache entries of a scene, made now where missing."""
    image_entry = entry_of(version, seed, name, size, "image")
    ids_entry = entry_of(version, seed, name, size, "ids")
    mask_entry = entry_of(ids_entry, table.tobytes())
    if load_record(image_entry) is None or load_record(ids_entry) is None:
        split, index = name.split("/")
        image, ids = scenes.render(seed, split, int(index), size)
        store(image_entry, image)
        store(ids_entry, ids)
    record = load_record(mask_entry)
    if record is None:
        mask = table.astype(np.uint8)[load_array(ids_entry)]
        record = store(mask_entry, mask, counts=histogram(mask))
    return Pair(image_entry, mask_entry, "", record["counts"])


def _open_folder(
    root: Path,
    task: str,
    seed: int,
    label_map: dict[int, int],
    size: Size | None,
    stored: Splits | None,
    skip_bad: bool,
) -> SegmentationDataset:
    try:
        layout = find_layout(root, task)
    except OSError as error:
        raise BadInput(
            f"{error.filename}: cannot be listed ({error.strerror}); mend its permissions"
        ) from None
    splits = _choose_splits(root, layout, seed, stored)
    declared = layout.classes
    table = label_table(declared.labels if declared else None, label_map)
    colours = declared.colours if declared else None
    reader = _PairReader(root, layout.pairs, table, colours, size)
    reads = _in_threads(reader.read, splits)

    bad = {name: result for name, result in reads.items() if isinstance(result, list)}
    good = {name: result for name, result in reads.items() if isinstance(result, Pair)}
    bad |= _duplicates(splits, good)
    good = {name: pair for name, pair in good.items() if name not in bad}
    problems = [problem for name in layout.pairs for problem in bad.get(name, [])]
    if stored is None:
        problems = layout.problems + problems

    counts = _count_labels(good.values())
    nonsense = check_labels(counts, task, declared=declared is not None)
    if nonsense:
        first = Problem(f"{layout.masks}/: {nonsense}")
        raise BadInput(listing(f"{root}: labels that cannot be used", [first, *problems]))
    if problems and not skip_bad:
        title = f"{root}: {len(problems)} problems (--skip-bad leaves these out)"
        raise BadInput(listing(title, problems))
    splits = {split: [name for name in splits[split] if name in good] for split in SPLITS}
    if stored is None and not (splits["train"] and splits["val"]):
        title = f"{root}: nothing is left in train or val without the bad pairs"
        raise BadInput(listing(title, problems))
    highest = np.flatnonzero(counts[:IGNORED]).max(initial=0)
    classes = declared or numbered_classes(int(highest) + 1)
    return SegmentationDataset(
        layout=layout.name,
        root=str(root),
        task=task,
        seed=seed,
        label_map=label_map,
        image_size=size,
        classes=classes.names,
        palette=classes.palette,
        splits=splits,
        skipped=[problem.sentence for problem in problems],
        pairs=good,
    )


def _choose_splits(root: Path, layout: Layout, seed: int, stored: Splits | None) -> Splits:
    """The stored splits, else those of the folder, else new ones."""
    if stored is not None:
        gone = [
            Problem(f"{name}: in the stored {split} split")
            for split in SPLITS
            for name in stored[split]
            if name not in layout.pairs
        ]
        if gone:
            title = f"{root}: {len(gone)} images of the stored splits have no pair there"
            raise BadInput(listing(title, gone))
        return stored
    if len(layout.pairs) < 2:
        alone = Problem("a single pair cannot be split into train and val: add images")
        title = f"{root}: {len(layout.pairs)} images with a mask"
        raise BadInput(listing(title, layout.problems or [alone]))
    return layout.splits or split_names(list(layout.pairs), seed)


def split_names(names: list[str], seed: int) -> Splits:
    """Of the sorted names the last eighth is test; the rest, shuffled, is 80 % train, 20 % val."""
    ordered = sorted(names)
    rest = len(ordered) - len(ordered) // 8
    order = np.random.default_rng(seed).permutation(rest)
    shuffled = [ordered[i] for i in order]
    train = rest * 4 // 5
    return {
        "train": sorted(shuffled[:train]),
        "val": sorted(shuffled[train:]),
        "test": ordered[rest:],
    }


@dataclass(frozen=True)
class _PairReader:
    """Reads the pairs of a folder: from the cache, or from their files into it."""

    root: Path
    pairs: dict[str, tuple[Path, Path]]  # name -> image file, mask file
    table: np.ndarray  # stored value -> label
    colours: dict[int, int] | None  # 0xRRGGBB of a colour mask -> stored value
    size: Size | None  # (H, W) that images are resized to

    def read(self, name: str) -> Pair | list[Problem]:
        """The cache entries of a pair; or all that is wrong with it."""
        image_path, mask_path = self.pairs[name]
        mask_name = self._name(mask_path)
        try:
            image_key, mask_key = _file_key(image_path), _file_key(mask_path)
        except OSError as error:
            sentence = f"cannot be opened ({error.strerror}); mend or remove it"
            return [Problem(f"{name} or {mask_name}: {sentence}")]
        # An image entry says that the image was checked against this very mask file.
        image_entry = entry_of([image_key, mask_key], self.size)
        mask_entry = entry_of(mask_key, self.table.tobytes(), self.colours)
        problems: list[Problem] = []
        mask, mask_size = self._read_mask(mask_entry, mask_path, problems)
        image = load_record(image_entry)
        if image is None:
            image = self._read_image(image_entry, image_path, mask_name, mask_size, problems)
        if image is None or mask is None:
            return problems
        return Pair(image_entry, mask_entry, image["digest"], mask["counts"])

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _read_mask(
        self,
        entry: Path,
        path: Path,
        problems: list[Problem],
    ) -> tuple[Record | None, Size | None]:
        """The record of a mask and, where it can be read at all, its (width, height).

        Adds a problem where there is no record.
        """
        record = load_record(entry)
        if record is not None:
            height, width = record["shape"]
            return record, (width, height)
        try:
            stored = read_mask(path, self.colours)
        except Unreadable as reason:
            problems.append(Problem(f"{self._name(path)}: {reason}"))
            return None, None
        height, width = stored.shape
        problem = undeclared_values(self._name(path), histogram(stored), self.table)
        if problem:
            problems.append(problem)
        else:
            labels = self.table.astype(np.uint8)[stored]
            record = store(entry, labels, counts=histogram(labels))
        return record, (width, height)

    def _read_image(
        self,
        entry: Path,
        path: Path,
        mask_name: str,
        mask_size: Size | None,
        problems: list[Problem],
    ) -> Record | None:
        """The record of an image, if neither the image nor its mask has a problem."""
        name = self._name(path)
        try:
            image, digest = read_image(path, mask_size)
        except Unreadable as reason:
            problems.append(Problem(f"{name}: {reason}"))
            return None
        if mask_size not in (image.size, None):
            (width, height), (columns, rows) = image.size, mask_size
            swapped = (width, height) == (rows, columns)
            advice = "export the mask again"
            if swapped:
                advice = "width and height are swapped, turn one of the two"
            sizes = f"{width} x {height} pixels, its mask {mask_name} {columns} x {rows}"
            problems.append(Problem(f"{name}: {sizes}: {advice}"))
        if problems:
            return None
        if self.size:
            # Pillow widens its filter with the scale, so this does not alias.
            image = image.resize(self.size[::-1], Image.Resampling.BILINEAR)
        return store(entry, np.asarray(image), digest=digest)


def _file_key(path: Path) -> tuple[str, int, int]:
    """A file's path, size and time of change: another key, another content."""
    stat = path.stat()
    return str(path), stat.st_size, stat.st_mtime_ns


def _in_threads(read: Callable[[str], Any], splits: Splits) -> dict[str, Any]:
    """name -> read(name)"""
    names = [name for split in SPLITS for name in splits[split]]
    with warnings.catch_warnings(), ThreadPoolExecutor(THREADS) as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return dict(zip(names, pool.map(read, names), strict=True))


def _count_labels(pairs: Iterable[Pair]) -> np.ndarray:
    """Pixels of each label 0..255 in all masks, int64."""
    counts = np.zeros(256, np.int64)
    for pair in pairs:
        counts += pair.counts
    return counts


def _duplicates(splits: Splits, pairs: dict[str, Pair]) -> dict[str, list[Problem]]:
    """name -> its problem, for images that are byte for byte in two splits.

    The problem is that of the copy in the training split, or in val if the other is in test.
    """
    seen: dict[str, tuple[str, str]] = {}
    problems: dict[str, list[Problem]] = {}
    for split in reversed(SPLITS):
        for name in splits[split]:
            if name not in pairs:
                continue
            other_split, other = seen.setdefault(pairs[name].digest, (split, name))
            if other_split != split:
                sentence = f"the same file as {other} ({other_split}); keep one of them"
                problems[name] = [Problem(f"{name} ({split}): {sentence}")]
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
    if described["splits"] is not None and len(data.classes) <= len(classes):
        # A split may lack the highest labels.
        data = replace(data, classes=classes, palette=meta["palette"])
    if data.classes != classes:
        raise BadInput(
            f"{root} has the {len(data.classes)} classes {', '.join(data.classes)}, "
            f"the checkpoint knows {len(classes)}: {', '.join(classes)}; "
            "give data of the same classes"
        )
    return data
