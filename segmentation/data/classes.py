"""Class tables: names and colours of the classes, and the stored values that mean them.

A mask file stores values; a class table (and --label-map before it) turns them into labels 0..K-1;
the label is the index of a class. 255 is no label: such a pixel is ignored.
"""

import colorsys
import csv
import re
from collections.abc import Iterator
from dataclasses import replace
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

# As a table of classes: the stored value of gtFine's labelIds, a name, a colour.
CITYSCAPES_TABLE = """
7,road,128,64,128
8,sidewalk,244,35,232
11,building,70,70,70
12,wall,102,102,156
13,fence,190,153,153
17,pole,153,153,153
19,traffic light,250,170,30
20,traffic sign,220,220,0
21,vegetation,107,142,35
22,terrain,152,251,152
23,sky,70,130,180
24,person,220,20,60
25,rider,255,0,0
26,car,0,0,142
27,truck,0,0,70
28,bus,0,60,100
31,train,0,80,100
32,motorcycle,0,0,230
33,bicycle,119,11,32
"""
# A table of classes -> what separates the parts of its lines, and the parts in their order.
TABLES = {
    "classes.csv": (",", "index name r g b"),
    "class_dict.csv": (",", "name r g b"),
    "class_dict_seg.csv": (",", "name r g b"),
    "labelmap.txt": ("[:,]", "name r g b parts actions"),
    "label_colors.txt": (r"\s+", "r g b name"),
    "_classes.csv": (",", "index name"),
    "codes.txt": ("\n", "name"),
    "class_names.txt": ("\n", "name"),
    "objectinfo150.txt": ("\t", "number ratio train val stuff name"),
}


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


def _cityscapes() -> Iterator[ClassTable]:
    """Its 19 classes for masks of labelTrainIds, then for labelIds; all else is ignored."""
    rows = [line.split(",") for line in CITYSCAPES_TABLE.split("\n")[1:-1]]
    names = [name for _, name, *_ in rows]
    palette = [[int(part) for part in colour] for _, _, *colour in rows]
    yield ClassTable(names, palette)
    labels = dict.fromkeys(range(34), IGNORED)
    labels |= {int(stored): label for label, (stored, *_) in enumerate(rows)}
    yield ClassTable(names, palette, labels)


def reduced_classes(classes: ClassTable) -> ClassTable:
    """The classes of masks that store 0 for no class, and label + 1."""
    labels = {label + 1: label for label, _ in enumerate(classes.names)}
    return replace(classes, labels={0: IGNORED} | labels, colours=None)


CITYSCAPES, CITYSCAPES_IDS = _cityscapes()
ADE20K = reduced_classes(numbered_classes(150))


def read_classes(path: Path) -> ClassTable:
    """Read a table of TABLES; a first line of titles is skipped.

    Indices are 0..K-1, each once, and those of the lines where the table has none; a line of index
    255 gives the colour of ignored pixels. BadInput for anything else.
    """
    separator, columns = TABLES[path.name.lower()]
    names: dict[int, str] = {}
    palette = {}
    colours = {}
    for number, row in enumerate(_read_rows(path, separator, columns)):
        index, name, colour = _parse_row(path, row, columns, number)
        code = int.from_bytes(colour, "big")
        if index in names or (colour and code in colours) or name in names.values():
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
    coloured = "r g b" in columns
    table = ClassTable(
        [names[i] for i in range(count)],
        [palette[i] for i in range(count)] if coloured else numbered_classes(count).palette,
        colours=colours if coloured else None,
    )
    return reduced_classes(table) if "ratio" in columns else table


def _read_rows(path: Path, separator: str, columns: str) -> list[list[str]]:
    """The rows of a table without its titles, comments and empty lines, each part stripped."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
        lines = [line for line in lines if line.strip() and line[0] != "#"]
        parts = (
            csv.reader(lines)
            if separator == ","
            else (re.split(separator, line.strip(), maxsplit=columns.count(" ")) for line in lines)
        )
        rows = [[part.strip() for part in row] for row in parts]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(
            f"{path}: cannot be read as UTF-8 text ({error}); lines are {columns.replace(' ', ',')}"
        ) from None
    rows = [row for row in rows if any(row)]
    titles = columns != "name" and rows and not re.search(r"\d", "".join(rows[0]))
    return rows[1:] if titles else rows


def _parse_row(
    path: Path,
    row: list[str],
    columns: str,
    number: int,
) -> tuple[int, str, Colour]:
    """Index, name and colour of a line; the index is the line's number where none is there."""
    values = dict(zip(columns.split(), row, strict=False))
    try:
        index = int(values["index"]) if "index" in columns else number
        colour = [int(values[part]) for part in "rgb"] if "r g b" in columns else []
        name = values["name"]
    except (KeyError, ValueError):
        raise BadInput(
            f"{path}: cannot read the line {','.join(row)!r}; lines are {columns.replace(' ', ',')}"
        ) from None
    if not all(0 <= part <= 255 for part in [index, *colour]):
        raise BadInput(f"{path}: numbers in {','.join(row)!r} must be within 0..255")
    return index, name, colour
