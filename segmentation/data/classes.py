"""Class tables: names and colours of the classes, and the stored values that mean them.

A mask file stores values; a class table (and --label-map before it) turns them into labels 0..K-1;
the label is the index of a class. 255 is no label: such a pixel is ignored.
"""

import colorsys
import csv
from pathlib import Path

from ..errors import BadInput
from .labels import IGNORED, ClassTable, Colour, red_green_blue

DRONE_COLOURS = {
    "obstacles": 0x9B26B6,
    "water": 0x0E87CC,
    "nature": 0x7CFC00,
    "moving": 0xFF1493,
    "landable": 0xA9A9A9,
}
# Classes, and the ids of the TU Graz data set that each groups. The original drone masks and the
# built-in scenes store these ids, 0..23; scenes/ids.py names those that scenes use.
FIVE_GROUPS = {
    "obstacles": [0, 6, 10, 11, 12, 13, 14, 21, 22, 23],
    "water": [5, 7],
    "nature": [2, 3, 8, 19, 20],
    "moving": [15, 16, 17, 18],
    "landable": [1, 4, 9],
}
LANDABLE = [1, 2, 3, 4, 9]
TWO_GROUPS = {
    "obstacles": [index for index in range(24) if index not in LANDABLE],
    "landable": LANDABLE,
}
CAMVID_COLOURS = {
    "sky": 0x808080,
    "building": 0x800000,
    "pole": 0xC0C080,
    "road": 0x804080,
    "pavement": 0x3C28DE,
    "tree": 0x808000,
    "sign": 0xC08080,
    "fence": 0x404080,
    "car": 0x400080,
    "pedestrian": 0x404000,
    "bicyclist": 0x0080C0,
}
CAMVID = ClassTable(
    list(CAMVID_COLOURS),
    [red_green_blue(code) for code in CAMVID_COLOURS.values()],
    {index: index for index in range(11)} | {11: IGNORED},  # 11 is void
)


def drone_classes(task: str, *, grouped: bool = False) -> ClassTable:
    """Two classes for the binary task, else five.

    grouped: masks store the labels already, not the TU Graz ids.
    """
    groups = TWO_GROUPS if task == "binary" else FIVE_GROUPS
    labels = {stored: label for label, ids in enumerate(groups.values()) for stored in ids}
    palette = [red_green_blue(DRONE_COLOURS[name]) for name in groups]
    return ClassTable(list(groups), palette, None if grouped else labels)


def numbered_classes(count: int) -> ClassTable:
    """Names "0", "1", ... and colours of well separated hues, for labels that nothing names."""
    palette = []
    for index in range(count):
        hue = index * 0.618034 % 1  # steps of the golden ratio keep any number of hues apart
        colour = colorsys.hsv_to_rgb(hue, 0.75, 0.95)
        palette.append([round(255 * part) for part in colour])
    return ClassTable([str(index) for index in range(count)], palette)


def read_classes(path: Path) -> ClassTable:
    """Read classes.csv: lines of index,name,r,g,b; a first line of titles is skipped.

    Indices are 0..K-1, each once; a line of index 255 gives the colour of ignored pixels. BadInput
    for anything else.
    """
    names: dict[int, str] = {}
    palette = {}
    colours = {}
    for row in _read_rows(path):
        index, name, colour = _parse_row(path, row)
        code = int.from_bytes(colour, "big")
        if index in names or code in colours or name in names.values():
            raise BadInput(
                f"{path}: {','.join(row)!r} repeats an index, a name or a colour; "
                "each must be its own"
            )
        names[index] = name
        palette[index] = colour
        colours[code] = index
    count = len(names) - (IGNORED in names)
    if count < 2 or not names.keys() >= set(range(count)):
        raise BadInput(
            f"{path}: the indices must be 0, 1, ..., K-1 with K at least 2 "
            "(and 255 for ignored pixels)"
        )
    return ClassTable(
        [names[i] for i in range(count)],
        [palette[i] for i in range(count)],
        colours=colours,
    )


def _read_rows(path: Path) -> list[list[str]]:
    """The rows of classes.csv without its titles and empty lines, each part stripped."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
        rows = [[part.strip() for part in row] for row in csv.reader(lines)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(
            f"{path}: cannot be read as UTF-8 text ({error}); lines are index,name,r,g,b"
        ) from None
    rows = [row for row in rows if any(row)]
    if rows and rows[0][0].lower() == "index":
        return rows[1:]
    return rows


def _parse_row(path: Path, row: list[str]) -> tuple[int, str, Colour]:
    """Index, name and colour of a line of classes.csv."""
    try:
        first, name, red, green, blue = row
        numbers = [int(part) for part in (first, red, green, blue)]
    except ValueError:
        raise BadInput(
            f"{path}: cannot read the line {','.join(row)!r}; lines are index,name,r,g,b"
        ) from None
    if not all(0 <= number <= 255 for number in numbers):
        raise BadInput(f"{path}: numbers in {','.join(row)!r} must be within 0..255")
    index, *colour = numbers
    return index, name, colour
