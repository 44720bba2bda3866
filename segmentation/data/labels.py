"""What stored mask values mean: the class tables of the known data sets, classes.csv, and --label-map."""

import colorsys
import csv
from pathlib import Path

import numpy as np

from ..errors import BadInput

IGNORED = 255
ANTIALIASED = "edges are antialiased; for two classes say --label-map 0-127=0,128-255=1"

# The TU Graz ids 0..23 of drone originals and of the built-in scenes, in groups.
DRONE = {
    "obstacles": [155, 38, 182],
    "water": [14, 135, 204],
    "nature": [124, 252, 0],
    "moving": [255, 20, 147],
}
DRONE["landable"] = [169, 169, 169]
FIVE_GROUPS = {
    "obstacles": (0, 6, 10, 11, 12, 13, 14, 21, 22, 23),
    "water": (5, 7),
    "nature": (2, 3, 8, 19, 20),
    "moving": (15, 16, 17, 18),
    "landable": (1, 4, 9),
}
LANDABLE = (1, 2, 3, 4, 9)
TWO_GROUPS = {"obstacles": tuple(i for i in range(24) if i not in LANDABLE), "landable": LANDABLE}
CAMVID = {
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


def parse_label_map(text: str) -> dict[int, int]:
    """`"255=1,0-2=0"` -> {255: 1, 0: 0, 1: 0, 2: 0}: stored value, or range of values, to label; all in 0..255."""
    result: dict[int, int] = {}
    for part in text.split(","):
        try:
            stored, label = part.split("=")
            first, _, last = stored.partition("-")
            low, high, new = int(first), int(last or first), int(label)
        except ValueError:
            raise BadInput(
                f"--label-map: cannot read {part!r}; write 255=1 or 0-127=0,128-255=1"
            ) from None
        if not (0 <= low <= high <= 255 and 0 <= new <= 255):
            raise BadInput(
                f"--label-map: {part.strip()!r} leaves 0..255 or runs backwards; write 0-127=0,128-255=1"
            )
        for value in range(low, high + 1):
            if value in result:
                raise BadInput(
                    f"--label-map: stored value {value} is mapped twice; name each value once"
                )
            result[value] = new
    return result


def label_table(labels: dict[int, int] | None, label_map: dict[int, int]) -> np.ndarray:
    """256 int16: stored value -> class, 255 ignored, -1 undeclared. The label map comes first."""
    mapped = [label_map.get(value, value) for value in range(256)]
    if labels is None:
        return np.array(mapped, np.int16)
    return np.array(
        [IGNORED if value == IGNORED else labels.get(value, -1) for value in mapped], np.int16
    )


def drone_classes(task: str) -> tuple[list[str], list[list[int]], dict[int, int]]:
    """Class names, palette and grouping of the 24 TU Graz ids for a task."""
    groups = TWO_GROUPS if task == "binary" else FIVE_GROUPS
    labels = {stored: label for label, ids in enumerate(groups.values()) for stored in ids}
    return list(groups), [DRONE[name] for name in groups], labels


def numbered_classes(count: int) -> tuple[list[str], list[list[int]]]:
    """Names "0", "1", ... and colours of well separated hues, for labels that nothing names."""
    hues = [colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.75, 0.95) for index in range(count)]
    return [str(index) for index in range(count)], [
        [round(255 * part) for part in hue] for hue in hues
    ]


def read_classes(path: Path) -> tuple[list[str], list[list[int]], dict[int, int]]:
    """classes.csv (index,name,r,g,b; a first line of titles may stand) -> names, palette, 0xRRGGBB -> index.

    Indices are 0..K-1, each once; a row of index 255 gives the colour of ignored pixels.
    """
    try:
        lines = list(csv.reader(path.read_text("utf-8-sig").splitlines()))
        rows = [
            [part.strip() for part in line] for line in lines if any(part.strip() for part in line)
        ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(
            f"{path}: cannot be read as UTF-8 text ({error}); lines are index,name,r,g,b"
        ) from None
    if rows and rows[0][0].lower() == "index":
        rows = rows[1:]
    table: dict[int, tuple[str, list[int]]] = {}
    colours: dict[int, int] = {}
    for row in rows:
        try:
            index, name, (red, green, blue) = int(row[0]), row[1], map(int, row[2:])
        except (ValueError, IndexError):
            raise BadInput(
                f"{path}: cannot read the line {','.join(row)!r}; lines are index,name,r,g,b"
            ) from None
        if not (0 <= index <= 255 and all(0 <= part <= 255 for part in (red, green, blue))):
            raise BadInput(f"{path}: numbers in {','.join(row)!r} must be within 0..255")
        colour = red << 16 | green << 8 | blue
        if index in table or colour in colours or name in [other for other, _ in table.values()]:
            raise BadInput(
                f"{path}: {','.join(row)!r} repeats an index, a name or a colour; each must be its own"
            )
        table[index], colours[colour] = (name, [red, green, blue]), index
    count = len(table) - (IGNORED in table)
    if count < 2 or any(index not in table for index in range(count)):
        raise BadInput(
            f"{path}: the indices must be 0, 1, ..., K-1 with K at least 2 (and 255 for ignored pixels)"
        )
    return [table[i][0] for i in range(count)], [table[i][1] for i in range(count)], colours
