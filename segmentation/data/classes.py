"""Class tables: names and colours of the classes, and the stored values that mean them.

A mask file stores values; a class table (and --label-map before it) turns them into labels 0..K-1;
the label is the index of a class. 255 is no label: such a pixel is ignored.
"""

import colorsys
import csv
from dataclasses import dataclass
from pathlib import Path

from ..errors import BadInput
from .labels import IGNORED

Colour = list[int]  # red, green, blue, 0..255 each

DRONE_COLOURS = {
    "obstacles": [155, 38, 182],
    "water": [14, 135, 204],
    "nature": [124, 252, 0],
    "moving": [255, 20, 147],
    "landable": [169, 169, 169],
}
# The TU Graz ids 0..23 of drone originals and of the built-in scenes, in groups.
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
    "sky": [128, 128, 128],
    "building": [128, 0, 0],
    "pole": [192, 192, 128],
    "road": [128, 64, 128],
    "pavement": [60, 40, 222],
    "tree": [128, 128, 0],
    "sign": [192, 128, 128],
    "fence": [64, 64, 128],
    "car": [64, 0, 128],
    "pedestrian": [64, 64, 0],
    "bicyclist": [0, 128, 192],
}


@dataclass(frozen=True)
class ClassTable:
    names: list[str]
    palette: list[Colour]
    labels: dict[int, int]  # stored value -> label
    colours: dict[int, int] | None = None  # 0xRRGGBB of a colour mask -> stored value


def drone_classes(task: str, *, grouped: bool = False) -> ClassTable:
    """Two classes for the binary task, else five.

    grouped: masks store the labels themselves, not the TU Graz ids.
    """
    groups = TWO_GROUPS if task == "binary" else FIVE_GROUPS
    labels = {}
    for label, ids in enumerate(groups.values()):
        for stored in [label] if grouped else ids:
            labels[stored] = label
    return ClassTable(list(groups), [DRONE_COLOURS[name] for name in groups], labels)


def camvid_classes() -> ClassTable:
    """Eleven classes; 11 is void."""
    labels = {index: index for index in range(11)} | {11: IGNORED}
    return ClassTable(list(CAMVID_COLOURS), list(CAMVID_COLOURS.values()), labels)


def numbered_classes(count: int) -> ClassTable:
    """Names "0", "1", ... and colours of well separated hues, for labels that nothing names."""
    palette = []
    for index in range(count):
        colour = colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.75, 0.95)
        palette.append([round(255 * part) for part in colour])
    names = [str(index) for index in range(count)]
    return ClassTable(names, palette, {index: index for index in range(count)})


def read_classes(path: Path) -> ClassTable:
    """Read classes.csv: index,name,r,g,b; a first line of titles may stand.

    Indices are 0..K-1, each once; a row of index 255 gives the colour of ignored pixels.
    """
    names: dict[int, str] = {}
    palette: dict[int, Colour] = {}
    colours: dict[int, int] = {}
    for row in _read_rows(path):
        index, name, colour = _parse_row(path, row)
        red, green, blue = colour
        code = red << 16 | green << 8 | blue
        if index in names or code in colours or name in names.values():
            raise BadInput(
                f"{path}: {','.join(row)!r} repeats an index, a name or a colour; "
                "each must be its own"
            )
        names[index], palette[index], colours[code] = name, colour, index
    count = len(names) - (IGNORED in names)
    if count < 2 or any(index not in names for index in range(count)):
        raise BadInput(
            f"{path}: the indices must be 0, 1, ..., K-1 with K at least 2 "
            "(and 255 for ignored pixels)"
        )
    indices = range(count)
    return ClassTable(
        [names[index] for index in indices],
        [palette[index] for index in indices],
        {index: index for index in indices},
        colours,
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
    try:
        index, name = int(row[0]), row[1]
        red, green, blue = map(int, row[2:])
    except (ValueError, IndexError):
        raise BadInput(
            f"{path}: cannot read the line {','.join(row)!r}; lines are index,name,r,g,b"
        ) from None
    colour = [red, green, blue]
    if not all(0 <= number <= 255 for number in (index, *colour)):
        raise BadInput(f"{path}: numbers in {','.join(row)!r} must be within 0..255")
    return index, name, colour
