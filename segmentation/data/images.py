"""Decode image and mask files. What cannot be decoded exactly is refused, in one sentence."""

import hashlib
import io
from pathlib import Path

import numpy as np
from numpy import ndarray
from PIL import Image, ImageOps, ImageSequence

from .problems import Unreadable

LOSSY = ("JPEG", "MPO", "JPEG2000", "WEBP", "AVIF")
MAX_PIXELS = 178_956_970  # where Pillow by itself refuses to open a file (it warns at half of that)
GREY_STEPS = {"L;2": 85, "L;4": 17}  # Pillow stretches 2- and 4-bit grey to 0..255
EXIF_ORIENTATION = 274  # tags of EXIF and TIFF, by number
TIFF_BANDS = 277
TIFF_KIND = 254  # its lowest bit: a copy at a lower resolution


def read_image(path: Path, mask_size: tuple[int, int] | None) -> tuple[Image.Image, str]:
    """An image file -> (8-bit RGB image, digest of the file).

    An EXIF orientation is applied if there is no mask, or if it swaps width and height and the mask
    has the size that results, so that the mask is turned too.

    mask_size: (width, height) of the mask, None if there is none or it could not be read.
    """
    image, content = _open(path)
    if image.mode[0] in "IF" or ";16" in _raw_mode(image):
        raise Unreadable(
            f"stores more than 8 bits a channel (mode {image.mode}); save it as 8-bit RGB"
        )
    bands = getattr(image, "tag_v2", {}).get(TIFF_BANDS, 1)
    if bands > 4:
        raise Unreadable(f"has {bands} bands; save three of them as 8-bit RGB")
    # Pillow's TIFF reader turns by itself.
    turned = image.size if image.format == "TIFF" else image.size[::-1]
    orientation = _decode(image)
    if orientation in range(2, 9):
        quarter_turn = orientation >= 5 and turned[0] != turned[1]
        if mask_size is not None and not (quarter_turn and mask_size == turned):
            raise Unreadable(
                f"has EXIF orientation {orientation}, and no mask of the turned size says to apply "
                "it; turn the image itself, as its mask is, and save it without the tag"
            )
        image = ImageOps.exif_transpose(image)
    return image.convert("RGB"), hashlib.blake2b(content, digest_size=16).hexdigest()


def read_mask(path: Path, colours: dict[int, int] | None) -> tuple[ndarray, list[list[int]]]:
    """A mask file -> stored values, uint8 H x W, and [value, 0xRRGGBB] of its palette.

    Grey and palette masks store the values themselves, colour masks the colours of classes.csv;
    without it those of three equal channels store the values. An alpha channel is dropped.

    colours: 0xRRGGBB -> stored value, None without classes.csv.
    """
    image, _ = _open(path)
    if image.format in LOSSY:
        raise Unreadable(
            f"is a {image.format} file; lossy compression changes labels: "
            "export the masks again as PNG"
        )
    raw_mode = _raw_mode(image)
    _decode(image)
    if image.mode in ("RGB", "RGBA"):
        if ";16" in raw_mode:
            raise Unreadable("is a colour mask of more than 8 bits a channel; save it with 8 bits")
        return _values_of_colours(np.asarray(image)[..., :3], colours), []
    if image.mode not in ("1", "L", "P", "LA", "PA") and not image.mode.startswith("I"):
        raise Unreadable(
            f"is a mask of mode {image.mode}; save labels as an 8-bit grey or palette PNG"
        )
    stored = np.asarray(image) // GREY_STEPS.get(raw_mode, 1)
    if stored.ndim == 3:
        stored = stored[..., 0]
    if stored.dtype != np.uint8:
        bad = stored[(stored < 0) | (stored > 255)]
        if bad.size:
            raise Unreadable(
                f"stores the label {bad[0]} ({bad.size} pixels beyond 0..255); save labels 0..254"
            )
        stored = stored.astype(np.uint8)
    palette = _palette(image, stored) if image.mode == "P" else []
    if colours and any(colours.get(code, index) != index for index, code in palette):
        raise Unreadable(
            "has the colours of classes.csv at other indices of its palette; "
            "save it as RGB, or reorder"
        )
    return stored, palette


def histogram(values: ndarray) -> list[int]:
    """Pixels of each value 0..255 of a uint8 array H x W, without a wider copy of it."""
    return Image.fromarray(values).histogram()


def _open(path: Path) -> tuple[Image.Image, bytes]:
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
    except Exception:  # a broken header makes Pillow's readers raise anything
        raise Unreadable(
            "is not an image that can be read (8 bits, at most 4 bands); save it again as PNG"
        ) from None
    pages = _pages(image)
    if pages > 1:
        raise Unreadable(f"holds {pages} images; save one a file")
    return image, content


def _pages(image: Image.Image) -> int:
    """How many images a file holds, smaller copies of the first not counted."""
    if image.format == "MPO":  # a camera's, with its preview
        return 1
    try:
        pages = getattr(image, "n_frames", 1)
        if image.format == "TIFF":
            for page in ImageSequence.Iterator(image):
                pages -= getattr(page, "tag_v2", {}).get(TIFF_KIND, 0) & 1
        image.seek(0)
    except Exception:  # as in _open
        return 1  # decoding will say what is wrong
    return pages


def _decode(image: Image.Image) -> int:
    """Decode in place, and return the EXIF orientation (which decoding can remove)."""
    try:
        orientation = int(image.getexif().get(EXIF_ORIENTATION, 1))
        image.load()
    except Exception as error:  # as in _open
        raise Unreadable(f"is truncated or damaged ({error}); copy it again or remove it") from None
    return orientation


def _raw_mode(image: Image.Image) -> str:
    """How the file stores its pixels, before Pillow converts them; known only until decoding."""
    tiles = getattr(image, "tile", [])
    if not tiles:
        return ""
    arguments = tiles[0][3]
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _values_of_colours(pixels: ndarray, colours: dict[int, int] | None) -> ndarray:
    """uint8 H x W x 3 -> stored values, uint8 H x W."""
    if colours is None:
        if (pixels == pixels[..., :1]).all():
            return pixels[..., 0]
        raise Unreadable(
            "is a colour mask; name the colours in classes.csv (index,name,r,g,b), "
            "or save labels as grey"
        )
    codes = pixels[..., 0].astype(np.uint32)
    for band in (1, 2):
        codes = codes << 8 | pixels[..., band]
    stored = np.full(codes.shape, -1, np.int16)
    for colour, value in colours.items():
        stored[codes == colour] = value
    if stored.min() < 0:
        strange, counts = np.unique(codes[stored < 0], return_counts=True)
        first = ", ".join(
            f"{code >> 16},{code >> 8 & 255},{code & 255} ({count} pixels)"
            for code, count in zip(strange[:3], counts[:3], strict=True)
        )
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        raise Unreadable(
            f"has colours that classes.csv does not name: {first}{more}; add them, or mend the mask"
        )
    return stored.astype(np.uint8)


def _palette(image: Image.Image, stored: ndarray) -> list[list[int]]:
    """[stored value, its colour 0xRRGGBB in the palette] for the values of a mask."""
    palette = image.getpalette("RGB") or []
    return [
        [index, int.from_bytes(palette[3 * index : 3 * index + 3], "big")]
        for index in np.unique(stored).tolist()
        if 3 * index + 2 < len(palette)
    ]
