"""Class tables: names and colours of the classes, and the stored values that mean them.

A mask file stores values; a class table (and --label-map before it) turns them into labels 0..K-1;
the label is the index of a class. 255 is no label: such a pixel is ignored.
"""

import colorsys
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ..errors import BadInput
from .labels import IGNORED, ClassTable


def _table(text: str, ignored: Iterable[int] = ()) -> ClassTable:
    """Of lines of the stored values of a class, its name and its colour."""
    rows = [line.split(",") for line in text.split()]
    labels = {int(stored): label for label, row in enumerate(rows) for stored in row[0].split("+")}
    return ClassTable(
        [row[1].replace("_", " ") for row in rows],
        [[int(part) for part in row[2:]] for row in rows],
        dict.fromkeys(ignored, IGNORED) | labels,
    )


# The ids of the TU Graz data set that each class groups. The original drone masks and the built-in
# scenes store these ids, 0..23.
FIVE_GROUPS = _table("""
0+6+10+11+12+13+14+21+22+23,obstacles,155,38,182
5+7,water,14,135,204
2+3+8+19+20,nature,124,252,0
15+16+17+18,moving,255,20,147
1+4+9,landable,169,169,169
""")
TWO_GROUPS = _table("""
0+5+6+7+8+10+11+12+13+14+15+16+17+18+19+20+21+22+23,obstacles,155,38,182
1+2+3+4+9,landable,169,169,169
""")
CAMVID = _table(
    """
0,sky,128,128,128
1,building,128,0,0
2,pole,192,192,128
3,road,128,64,128
4,pavement,60,40,222
5,tree,128,128,0
6,sign,192,128,128
7,fence,64,64,128
8,car,64,0,128
9,pedestrian,64,64,0
10,bicyclist,0,128,192
""",
    ignored=[11],  # void
)
CITYSCAPES_IDS = _table(
    """
7,road,128,64,128
8,sidewalk,244,35,232
11,building,70,70,70
12,wall,102,102,156
13,fence,190,153,153
17,pole,153,153,153
19,traffic_light,250,170,30
20,traffic_sign,220,220,0
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
""",
    ignored=range(34),
)
CITYSCAPES = replace(CITYSCAPES_IDS, labels=None)  # labelTrainIds are the labels

# A table of classes -> its lines.
COLOUR = r"\s*(?P<r>\d+)\s*,\s*(?P<g>\d+)\s*,\s*(?P<b>\d+)"
TABLES = {
    "classes.csv": rf"(?P<index>\d+)\s*,(?P<name>.*),{COLOUR}",
    "class_dict.csv": rf"(?P<name>.*),{COLOUR}",
    "class_dict_seg.csv": rf"(?P<name>.*),{COLOUR}",
    "labelmap.txt": rf"(?P<name>.*?):{COLOUR}.*",
    "label_colors.txt": r"(?P<r>\d+)\s+(?P<g>\d+)\s+(?P<b>\d+)\s+(?P<name>.*)",
    "_classes.csv": r"(?P<index>\d+)\s*,(?P<name>.*)",
    "codes.txt": r"(?P<name>.*)",
    "class_names.txt": r"(?P<name>.*)",
    "objectinfo150.txt": r"\d+\t.*\t(?P<name>.*)",
}


def drone_classes(task: str, *, grouped: bool = False) -> ClassTable:
    """Two classes for the binary task, else five.

    grouped: masks store the labels already, not the TU Graz ids.
    """
    table = TWO_GROUPS if task == "binary" else FIVE_GROUPS
    return replace(table, labels=None) if grouped else table


def numbered_classes(count: int) -> ClassTable:
    """Names "0", "1", ... and colours of well separated hues, for labels that nothing names."""
    palette = []
    for index in range(count):
        hue = index * 0.618034 % 1  # steps of the golden ratio keep any number of hues apart
        colour = colorsys.hsv_to_rgb(hue, 0.75, 0.95)
        palette.append([round(255 * part) for part in colour])
    return ClassTable([str(index) for index in range(count)], palette)


ADE20K = replace(
    numbered_classes(150),
    labels={0: IGNORED} | {label + 1: label for label in range(150)},
)


def read_classes(path: Path) -> ClassTable:
    """Read a table of TABLES; a first line of titles is skipped.

    Indices are 0..K-1, each once, and those of the lines where the table has none; a line of index
    255 gives the colour of ignored pixels. BadInput for anything else.
    """
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read as UTF-8 text ({error}); write it anew") from None
    pattern = TABLES[path.name.lower()]
    lines = [line.strip() for line in text.splitlines() if line.strip() and line[0] != "#"]
    titles = r"\d" in pattern and not re.search(r"\d", "".join(lines[:1]))
    names: dict[int, str] = {}
    palette = {}
    colours = {}
    for line in lines[1:] if titles else lines:
        found = re.fullmatch(pattern, line)
        if not found:
            raise BadInput(
                f"{path}: cannot read the line {line!r}; in classes.csv lines are index,name,r,g,b"
            )
        parts = found.groupdict()
        name = parts["name"].strip(' "')
        index = int(parts.get("index", len(names)))
        colour = [int(parts[part]) for part in "rgb" if part in parts]
        if max(index, *colour, 0) > 255:
            raise BadInput(f"{path}: numbers in {line!r} must be within 0..255")
        code = int.from_bytes(colour, "big")
        if index in names or (colour and code in colours) or name in names.values():
            raise BadInput(
                f"{path}: {line!r} repeats an index, a name or a colour; each must be its own"
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
    table = ClassTable([names[index] for index in range(count)], numbered_classes(count).palette)
    if "(?P<r>" in pattern:
        table = replace(table, palette=[palette[index] for index in range(count)], colours=colours)
    return replace(table, labels=ADE20K.labels) if path.name == "objectInfo150.txt" else table
