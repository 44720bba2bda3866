"""Bring one image/mask pair into the cache: decode its two files, or render a scene."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy import ndarray
from PIL import Image

from . import scenes
from .cache import entry_of, load_array, load_record, store
from .drawn import Drawing, paint
from .images import histogram, read_image, read_mask
from .labels import check_declared
from .problems import Unreadable

Size = tuple[int, int]  # height, width


class Pair(NamedTuple):
    """The cache entries of an image and its mask, and what their records say."""

    image: Path
    mask: Path
    digest: str  # of the image file
    counts: list[int]  # pixels of each label 0..255
    palette: list[list[int]]  # [stored value, 0xRRGGBB], where the mask has a palette


def read_pair(
    root: Path,
    masks: dict[str, str],
    drawings: dict[str, Drawing],
    table: ndarray,
    colours: dict[int, int] | None,
    size: Size | None,
    name: str,
) -> Pair | list[str]:
    """The cache entries of a pair, made now where missing; or all that is wrong with it.

    masks: image -> mask, as names below root; name: one of the images; drawings: of those whose
    mask is JSON. table: see `label_table`; colours: see `ClassTable`. size: the image is resized to
    it; None: it keeps its own, as masks always do.
    """
    mask_name, drawing = masks[name], drawings.get(name)
    image_file = root / name
    mask_file = root / mask_name
    try:
        image_key = _file_key(image_file)
        mask_key = drawing or _file_key(mask_file)
    except OSError as error:
        return [f"{name} or {mask_name}: cannot be opened ({error.strerror}); mend or remove it"]
    # The image's key holds the mask's too: an entry exists only if this pair's sizes were compared.
    image_entry = entry_of([image_key, mask_key], size)
    mask_entry = entry_of(mask_key, table.tobytes(), colours)
    image_record = load_record(image_entry)
    mask_record = load_record(mask_entry)
    mask_shape = mask_record["shape"] if mask_record else None
    problems: list[str] = []

    try:
        if mask_record is None:
            stored, palette = (paint(drawing), []) if drawing else read_mask(mask_file, colours)
            mask_shape = stored.shape
            check_declared(histogram(stored), table)
            mask = table.astype(np.uint8)[stored]
            mask_record = store(mask_entry, mask, counts=histogram(mask), palette=palette)
    except Unreadable as reason:
        problems.append(f"{mask_name}: {reason}")

    try:
        if image_record is None:
            mask_size = (mask_shape[1], mask_shape[0]) if mask_shape else None
            image, digest = read_image(image_file, mask_size)
            if mask_size:
                _check_sizes(image.size, mask_size, mask_name)
            if problems:
                return problems
            if size:
                # Pillow widens its filter with the scale, so a smaller image is not aliased.
                image = image.resize(size[::-1], Image.Resampling.BILINEAR)
            image_record = store(image_entry, np.asarray(image), digest=digest)
    except Unreadable as reason:
        problems.append(f"{name}: {reason}")

    if image_record is None or mask_record is None:
        return problems
    return Pair(
        image_entry,
        mask_entry,
        image_record["digest"],
        mask_record["counts"],
        mask_record["palette"],
    )


def clashing_palettes(pairs: dict[str, Pair]) -> str:
    """One sentence on two masks that give one index two colours; "" if there are none."""
    seen: dict[int, tuple[int, str]] = {}
    for name, pair in pairs.items():
        for index, colour in pair.palette:
            other, first = seen.setdefault(index, (colour, name))
            if other != colour:
                return (
                    f"index {index} is #{other:06x} in the palette of the mask of {first}, "
                    f"#{colour:06x} in that of {name}: these indices are no labels; "
                    "save the masks as RGB and name the colours in classes.csv"
                )
    return ""


def _check_sizes(image: Size, mask: Size, mask_name: str) -> None:
    """Unreadable if an image and its mask differ in size. Both are (width, height) here."""
    if image == mask:
        return
    advice = "export the mask again"
    if image == mask[::-1]:
        advice = "width and height are swapped, turn one of the two"
    raise Unreadable(
        f"{image[0]} x {image[1]} pixels, its mask {mask_name} {mask[0]} x {mask[1]}: {advice}"
    )


def _file_key(path: Path) -> tuple[str | int, ...]:
    """What changes with a file's content, even where archives give all files one time."""
    stat = path.stat()
    return str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def render_pair(
    version: str,
    seed: int,
    size: Size,
    table: ndarray,
    name: str,
) -> Pair:
    """The cache entries of a scene, made now where missing.

    version: stands for the renderer's source. name: "train/0007". table: TU Graz id -> label.
    """
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
    return Pair(image_entry, mask_entry, name, record["counts"], [])
