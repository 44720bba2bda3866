"""Decode images and masks once: check them, and keep them as uint8 arrays that are mapped into memory.

One mechanism for small and for 24-megapixel images; ranks and workers share the arrays through the page cache.
An entry is a folder (array.npy, record.json) that appears by one rename, so it is whole or not there, and
two processes may build the same one. Deleting the cache folder is always safe between runs.
"""

import hashlib
import io
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ..errors import BadInput
from .labels import ANTIALIASED

VERSION = 1  # part of every key: raise it when decoding changes
LOSSY = ("JPEG", "MPO", "JPEG2000", "WEBP", "AVIF")
MAX_PIXELS = 178_956_970  # where Pillow by itself refuses to open a file (it warns at half of that)
GREY_STEPS = {"L;2": 85, "L;4": 17}  # Pillow stretches 2- and 4-bit grey to 0..255


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "segmentation"


def entry_of(*parts: object) -> Path:
    """The folder of the entry with this key."""
    return (
        cache_folder()
        / hashlib.blake2b(repr((VERSION, *parts)).encode(), digest_size=16).hexdigest()
    )


def load_record(entry: Path) -> dict[str, Any] | None:
    """What `store` returned for this entry, or None if it is not there or not whole. Reads no pixel."""
    try:
        record = json.loads((entry / "record.json").read_text())
        whole = (entry / "array.npy").stat().st_size == record["bytes"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if whole else None


def store(entry: Path, array: np.ndarray, **facts: Any) -> dict[str, Any]:
    """Write an array with facts about it and return its record: the facts, the shape, the size of the file."""
    temporary = None
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix="new-", dir=entry.parent))
        np.save(temporary / "array.npy", array)
        record = {**facts, "shape": array.shape, "bytes": (temporary / "array.npy").stat().st_size}
        (temporary / "record.json").write_text(json.dumps(record))
        if entry.exists() and load_record(entry) is None:
            shutil.rmtree(entry, ignore_errors=True)
        try:
            temporary.rename(entry)
        except OSError:
            if load_record(entry) is None:  # not just another process that came first
                raise
    except OSError as error:
        reason = (
            error.strerror or "the disk is full"
        )  # numpy reports a short write without a reason
        raise BadInput(
            f"{entry.parent}: cannot write the cache ({reason}); free some space, or set XDG_CACHE_HOME"
        ) from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return record


def load_array(entry: Path) -> np.ndarray:
    """The array of an entry, mapped into memory, read-only."""
    return np.load(entry / "array.npy", mmap_mode="r")


def histogram(labels: np.ndarray) -> list[int]:
    """Pixels of each value 0..255 of a uint8 array H x W, without a wider copy of it."""
    return Image.fromarray(np.ascontiguousarray(labels)).histogram()


class Unreadable(Exception):
    """One sentence on why a file cannot be used."""


def open_image(path: Path) -> tuple[Image.Image, bytes]:
    """The opened, not yet decoded image and the bytes of its file."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Unreadable(f"cannot be opened ({error.strerror}); mend or remove it") from None
    if not content:
        raise Unreadable("is empty (0 bytes); copy it again or remove it")
    try:
        image = Image.open(io.BytesIO(content))
    except Image.DecompressionBombError:
        raise Unreadable(f"has more than {MAX_PIXELS} pixels; cut it into tiles") from None
    except Exception:  # Pillow's readers raise whatever a broken header makes them stumble over
        raise Unreadable(
            "is not an image that can be read (8 bits, at most 4 bands); save it again as PNG"
        ) from None
    return image, content


def _load(image: Image.Image) -> int:
    """Decode, and return the EXIF orientation (which decoding can remove)."""
    try:
        turn = int(image.getexif().get(274, 1))
        image.load()
    except Exception as error:  # as in open_image
        raise Unreadable(f"is truncated or damaged ({error}); copy it again or remove it") from None
    return turn


def _raw_mode(image: Image.Image) -> str:
    """How the file stores its pixels, before Pillow changes it; known only until the image is decoded."""
    tiles = getattr(image, "tile", [])
    arguments = tiles[0][3] if tiles else ""
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def read_image(path: Path, mask_size: tuple[int, int] | None) -> tuple[Image.Image, str]:
    """An image file -> (8-bit RGB image, digest of the file). Rotated by its EXIF tag only where the mask is, too.

    Args:
        mask_size: (width, height) of the mask, None if it could not be read.
    """
    image, content = open_image(path)
    if image.mode[0] in "IF" or ";16" in _raw_mode(image):
        raise Unreadable(
            f"stores more than 8 bits a channel (mode {image.mode}); save it as 8-bit RGB"
        )
    bands = getattr(image, "tag_v2", {}).get(277, 1)
    if bands > 4:
        raise Unreadable(f"has {bands} bands; save three of them as 8-bit RGB")
    turned = (
        image.size if image.format == "TIFF" else image.size[::-1]
    )  # Pillow's TIFF reader turns by itself
    turn = _load(image)
    if turn in (5, 6, 7, 8) and mask_size in (turned, None) and turned[0] != turned[1]:
        image = ImageOps.exif_transpose(image)
    elif turn in range(2, 9):
        raise Unreadable(
            f"has EXIF orientation {turn}, and its mask's size does not say that the mask is turned too; "
            "save the image as the mask sees it, without the tag"
        )
    return image.convert("RGB"), hashlib.blake2b(content, digest_size=16).hexdigest()


def read_mask(
    path: Path, table: np.ndarray, colours: dict[int, int] | None
) -> tuple[np.ndarray, str]:
    """A mask file -> (labels uint8 H x W, "" or one sentence about undeclared values).

    Grey and palette masks store the label itself; colour masks a colour of classes.csv. Alpha is not looked at.

    Args:
        table: 256 int16, stored value -> label, -1 undeclared.
        colours: 0xRRGGBB -> stored value, None without classes.csv.
    """
    image, _ = open_image(path)
    if image.format in LOSSY:
        raise Unreadable(
            f"is a {image.format} file; lossy compression changes labels: export the masks again as PNG"
        )
    raw_mode = _raw_mode(image)
    _load(image)
    if image.mode in ("RGB", "RGBA"):
        if ";16" in raw_mode:
            raise Unreadable("is a colour mask of more than 8 bits a channel; save it with 8 bits")
        stored = _labels_of_colours(np.asarray(image)[..., :3], colours)
    elif image.mode in ("1", "L", "P", "LA", "PA") or image.mode.startswith("I"):
        stored = np.asarray(image) // GREY_STEPS.get(raw_mode, 1)
        stored = stored[..., 0] if stored.ndim == 3 else stored
        if stored.dtype != np.uint8:
            bad = stored[(stored < 0) | (stored > 255)]
            if bad.size:
                raise Unreadable(
                    f"stores the label {bad[0]} ({bad.size} pixels beyond 0..255); save labels 0..254"
                )
            stored = stored.astype(np.uint8)
        if image.mode == "P" and colours:
            _check_palette(image, stored, colours)
    else:
        raise Unreadable(
            f"is a mask of mode {image.mode}; save labels as an 8-bit grey or palette PNG"
        )
    undeclared = [
        (value, count)
        for value, count in enumerate(histogram(stored))
        if count and table[value] < 0
    ]
    return table.astype(np.uint8)[stored], _undeclared(undeclared, stored, table)


def _undeclared(values: list[tuple[int, int]], stored: np.ndarray, table: np.ndarray) -> str:
    if not values:
        return ""
    pixels = sum(count for _, count in values)
    if len(values) > 8:
        share = f"{pixels} pixels, {100 * pixels / stored.size:.2g} %"
        return f"holds {len(values)} undeclared values {values[0][0]}..{values[-1][0]} ({share}): {ANTIALIASED}"
    foreground = len(values) == 1 and set(table.tolist()) <= {-1, 0, 1, 255}
    new = 1 if foreground else 255
    listed = ", ".join(f"{value} ({count} pixels)" for value, count in values)
    advice = ",".join(f"{value}={new}" for value, _ in values)
    meaning = "255 = ignored; or the number of their class" if new == 255 else "or 255 to ignore it"
    return f"holds undeclared values {listed}: say --label-map {advice} ({meaning})"


def _labels_of_colours(pixels: np.ndarray, colours: dict[int, int] | None) -> np.ndarray:
    if colours is None:
        raise Unreadable(
            "is a colour mask; name the colours in classes.csv (index,name,r,g,b), or save labels as grey"
        )
    codes = (
        pixels[..., 0].astype(np.uint32) << 16
        | pixels[..., 1].astype(np.uint32) << 8
        | pixels[..., 2]
    )
    stored, known = np.zeros(codes.shape, np.uint8), np.zeros(codes.shape, bool)
    for colour, index in colours.items():
        here = codes == colour
        stored[here] = index
        known |= here
    if not known.all():
        strange, counts = np.unique(codes[~known], return_counts=True)
        first = ", ".join(
            f"{c >> 16},{c >> 8 & 255},{c & 255} ({n} pixels)"
            for c, n in zip(strange[:3], counts[:3], strict=True)
        )
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        raise Unreadable(
            f"has colours that classes.csv does not name: {first}{more}; add them, or mend the mask"
        )
    return stored


def _check_palette(image: Image.Image, stored: np.ndarray, colours: dict[int, int]) -> None:
    """A palette that gives the colours of classes.csv to other indices means a mask that was re-quantised."""
    palette = image.getpalette("RGB") or []
    used = [int(index) for index in np.unique(stored) if 3 * index + 2 < len(palette)]
    named = {
        i: colours.get(palette[3 * i] << 16 | palette[3 * i + 1] << 8 | palette[3 * i + 2])
        for i in used
    }
    if None not in named.values() and any(index != name for index, name in named.items()):
        raise Unreadable(
            "has the colours of classes.csv at other indices of its palette; save it as RGB, or reorder"
        )
