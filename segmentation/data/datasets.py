"""Data sets: folders of image/mask pairs in one of the known layouts, and the built-in scenes.

Opening a set reads every pair (the next time its cache entry instead), lists all that is wrong in
one message, and counts the pixels of each class. Nothing is silently converted, guessed or left
out.
"""

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray
from PIL import Image

from ..distributed import rank, say
from ..errors import BadInput
from . import scenes
from .cache import entry_of, load_array, tidy
from .classes import drone_classes, numbered_classes
from .labels import IGNORED, check_agreement, check_labels, label_table
from .layouts import Layout, Splits, find_layout
from .pairs import Pair, Size, clashing_palettes, read_pair, render_pair
from .problems import listing
from .splits import check_present, choose_scored, new_splits

THREADS = min(4, os.cpu_count() or 1)  # more would cost memory on 24-megapixel images
SCENE_SIZE = (256, 256)

Read = Callable[[str], Pair | list[str]]  # the pair of a name, or all that is wrong with it
Choice = Callable[[Layout], Splits]


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
    read: Read = field(repr=False, compare=False)
    skipped: list[str] = field(default_factory=list)  # sentences on what was left out
    notes: list[str] = field(default_factory=list)  # on what was recognised, and is not read

    def image(self, name: str) -> ndarray:
        """uint8 H x W x 3, a read-only memory map; of `image_size` if that is set."""
        return self._load(name, "image")

    def mask(self, name: str) -> ndarray:
        """uint8 h x w, labels 0..K-1 and 255, a read-only memory map.

        Always of the file's own size.
        """
        return self._load(name, "mask")

    def _load(self, name: str, kind: str) -> ndarray:
        """The array of a pair; read anew where its entry has gone since the set was opened."""
        try:
            return load_array(getattr(self.pairs[name], kind))
        except FileNotFoundError:
            pair = self.read(name)
        if not isinstance(pair, Pair):
            raise BadInput(f"{self.root}: {'; '.join(pair)}")
        return load_array(getattr(pair, kind))

    def without_val(self) -> "SegmentationDataset":
        """The same images, those of val moved to train."""
        both = [*self.splits["train"], *self.splits["val"]]
        return replace(self, splits=self.splits | {"train": both, "val": []})

    def ignored_share(self, split: str) -> float:
        """The share of the pixels of a split's masks that no class has."""
        counts = self._label_counts[split]
        return counts[IGNORED] / max(1, counts.sum())

    @cached_property
    def _label_counts(self) -> dict[str, ndarray]:
        """Split -> pixels of each label 0..255 in its masks."""
        return {
            split: _count_labels(self.pairs[name] for name in names)
            for split, names in self.splits.items()
        }

    @cached_property
    def pixel_counts(self) -> dict[str, list[int]]:
        """Split -> pixels of each class in its masks, K numbers; 255 is not counted."""
        K = len(self.classes)
        return {split: counts[:K].tolist() for split, counts in self._label_counts.items()}

    def describe(self) -> dict[str, Any]:
        """Plain values for a checkpoint.

        All but layout and pixels are arguments of `open_dataset` (root is its data).
        """
        return {
            "layout": self.layout,
            "pixels": self.pixel_counts,
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
    splits: Splits | Choice | None = None,
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
            files are not read; or what chooses some from a folder's layout.

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
    read: Read
    colours = None
    if data == "scenes":
        root = data
        size = size or SCENE_SIZE
        layout = _scenes_layout(task)
        table = label_table(layout.classes, label_map)
        read = partial(render_pair, _version_of_scenes(), seed, size, table)
    else:
        root = os.path.abspath(data)
        try:
            layout = find_layout(Path(root), task)
        except OSError as error:
            raise BadInput(
                f"{error.filename}: cannot be read ({error.strerror}); mend its permissions"
            ) from None
        table = label_table(layout.classes, label_map)
        colours = layout.classes.colours if layout.classes else None
        read = partial(read_pair, Path(root), layout.pairs, layout.drawings, table, colours, size)
    chosen = splits(layout) if callable(splits) else splits or new_splits(root, layout, seed)
    check_present(root, layout, chosen)
    problems = [] if splits else list(layout.problems)
    pairs = _read_pairs(layout, chosen, read, problems)
    counts = _count_labels(pairs.values())
    nonsense = "" if colours else clashing_palettes(pairs)
    nonsense = nonsense or check_labels(counts, task, layout.classes is not None, bool(splits))
    if not nonsense and IGNORED not in label_map:
        nonsense = check_agreement([pair.counts for pair in pairs.values()])
    if nonsense:
        listed = [f"{layout.masks}/: {nonsense}", *problems]
        raise BadInput(listing(f"{root}: labels that cannot be used", listed))
    if problems and not skip_bad:
        raise BadInput(
            listing(f"{root}: {len(problems)} problems (--skip-bad leaves these out)", problems)
        )
    good = {split: [name for name in names if name in pairs] for split, names in chosen.items()}
    if splits is None and not (good["train"] and good["val"]):
        raise BadInput(
            listing(f"{root}: nothing is left in train or val without the bad pairs", problems)
        )
    highest = np.flatnonzero(counts[:IGNORED]).max(initial=0)
    classes = layout.classes or numbered_classes(highest + 1)
    return SegmentationDataset(
        layout.name,
        root,
        task,
        seed,
        label_map,
        size,
        classes.names,
        classes.palette,
        good,
        pairs,
        read,
        layout.problems if "all" in chosen else problems,
        layout.notes,
    )


def _scenes_layout(task: str) -> Layout:
    """As of a folder, but that image and mask have one name."""
    splits = {
        split: [f"{split}/{index:04d}" for index in range(count)]
        for split, count in scenes.IMAGES_PER_SPLIT.items()
    }
    pairs = {name: name for names in splits.values() for name in names}
    return Layout("scenes", pairs, {}, splits, drone_classes(task), "scenes", [], [])


def _version_of_scenes() -> str:
    """Stands for the renderer's source."""
    source = Path(scenes.__file__).read_bytes()
    return entry_of(source).name


def _read_pairs(layout: Layout, splits: Splits, read: Read, problems: list[str]) -> dict[str, Pair]:
    """The good pairs of the splits; what is wrong with others is added to problems."""
    began = time.time()
    reads = _in_threads(read, splits)
    if rank() == 0 and (held := tidy(began)):
        say(held)
    reads |= _duplicates(splits, reads)
    pairs = {}
    for name in layout.pairs:
        result = reads.get(name, [])
        if isinstance(result, Pair):
            pairs[name] = result
        else:
            problems += result
    return pairs


def _in_threads(read: Read, splits: Splits) -> dict[str, Any]:
    """name -> read(name), for the names of all splits."""
    names = list({name: None for names in splits.values() for name in names})
    pool = ThreadPoolExecutor(THREADS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return dict(_counted(zip(names, pool.map(read, names), strict=True), len(names)))
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt does not wait for the rest


def _counted(reads: Iterable, count: int) -> Iterator:
    """The same; on the first rank says how long it takes, from the first second on.

    A terminal is told after each pair, a log once.
    """
    began = time.monotonic()
    told = rank() != 0
    terminal = sys.stdout.isatty()
    for done, read in enumerate(reads, 1):
        yield read
        seconds = time.monotonic() - began
        if seconds < 1 or told:
            continue
        left = f"reading {count} pairs: {done} done, {seconds / done * (count - done):.0f} s left"
        print(f"\r\033[K{left}" if terminal else left, end="" if terminal else "\n", flush=True)
        told = not terminal
    if terminal and not told:
        print("\r\033[K", end="")


def _count_labels(pairs: Iterable[Pair]) -> ndarray:
    """Pixels of each label 0..255 in all masks, int64."""
    return np.sum([[0] * 256, *(pair.counts for pair in pairs)], axis=0)


def _duplicates(splits: Splits, reads: dict[str, Any]) -> dict[str, list[str]]:
    """name -> its problem, for images that are byte for byte in two splits.

    The copy in the training split is the one reported, or that in val if the other is in test.
    """
    seen: dict[str, tuple[str, str]] = {}
    problems = {}
    for split in reversed(splits):
        for name in splits[split]:
            pair = reads[name]
            if not isinstance(pair, Pair):
                continue
            other_split, other = seen.setdefault(pair.digest, (split, name))
            if other_split != split:
                same = f"{name} ({split}): the same file as {other} ({other_split})"
                problems[name] = [f"{same}; keep one of them"]
    return problems


def reopen_dataset(
    meta: dict[str, Any],
    folder: str | None = None,
    wanted: tuple[str, ...] = (),
) -> SegmentationDataset:
    """The data of a checkpoint that an evaluation asks for: no other files are read.

    Args:
        folder: where the same files lie now, or another data set of the same classes.
        wanted: splits; or "all", every image there, as one. By default all of another set, else
            test, or val where there is no test.

    Raises:
        BadInput: if its classes are not the checkpoint's, or files of a wanted split are missing.
    """
    described = dict(meta["data"])
    del described["layout"]
    pixels = described.pop("pixels", {})  # older checkpoints know none
    root = described.pop("root")
    stored = described.pop("splits")
    elsewhere = folder not in (None, root)
    root = folder or root
    choice = partial(choose_scored, stored, wanted, described["seed"], elsewhere)
    data = open_dataset(root, **described, splits=choice)
    classes = meta["classes"]
    numbers = [str(label) for label, _ in enumerate(classes)]
    if data.classes == numbers[: len(data.classes)]:
        # Without a table the classes are those that masks hold; these may lack the last ones.
        data = replace(data, classes=classes, palette=meta["palette"])
    if data.classes != classes:
        raise BadInput(
            f"{root} has the {len(data.classes)} classes {', '.join(data.classes)}, "
            f"the checkpoint knows {len(classes)}: {', '.join(classes)}; "
            "give data of the same classes"
        )
    for split, counts in data.pixel_counts.items():
        before = pixels.get(split, [])
        if any(before) and any(a != b for a, b in zip_longest(before, counts, fillvalue=0)):
            say(
                f"warning: the {split} masks have other pixels of each class than in training; "
                f"if {root} is another set with the same names, say --split all"
            )
    return data
