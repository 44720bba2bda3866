"""From stored mask values to labels: --label-map, the table of all 256 values, and its checks.

A stored value is what the mask file holds. A label is 0..K-1, the index of a class, or IGNORED.
"""

from dataclasses import dataclass

import numpy as np

from ..errors import BadInput
from ..metrics import IGNORED
from .problems import ANTIALIASED, Unreadable

MOST_UNNAMED = 64  # labels that masks may hold without a table of classes

Colour = list[int]  # red, green, blue, 0..255 each


@dataclass(frozen=True)
class ClassTable:
    """The classes of a data set, and what the stored values of its masks mean."""

    names: list[str]
    palette: list[Colour]
    labels: dict[int, int] | None = None  # stored value -> label; None: masks store the labels
    colours: dict[int, int] | None = None  # 0xRRGGBB of a colour mask -> stored value


def parse_label_map(text: str) -> dict[int, int]:
    """`"255=1,0-2=0"` -> {255: 1, 0: 0, 1: 0, 2: 0}: stored value, or range of values, to label.

    All are in 0..255.
    """
    result = {}
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
                f"--label-map: {part.strip()!r} leaves 0..255 or runs backwards; "
                "write 0-127=0,128-255=1"
            )
        for value in range(low, high + 1):
            if value in result:
                raise BadInput(
                    f"--label-map: stored value {value} is mapped twice; name each value once"
                )
            result[value] = new
    return result


def label_table(classes: ClassTable | None, label_map: dict[int, int]) -> np.ndarray:
    """Stored value -> label, 256 int16; -1 for a value that no class declares.

    The label map comes first, then the class table. Without a class table every value is a label.
    """
    table = [label_map.get(value, value) for value in range(256)]
    if classes is not None:
        labels = classes.labels or {label: label for label in range(len(classes.names))}
        table = [IGNORED if value == IGNORED else labels.get(value, -1) for value in table]
    return np.array(table, np.int16)


def check_declared(counts: list[int], table: np.ndarray) -> None:
    """Unreadable if a mask stores values that no class declares.

    counts: pixels of each stored value 0..255; table: of `label_table`.
    """
    undeclared = [value for value in range(256) if counts[value] and table[value] < 0]
    if not undeclared:
        return
    if len(undeclared) > 8:
        pixels = sum(counts[value] for value in undeclared)
        raise Unreadable(
            f"holds {len(undeclared)} undeclared values {undeclared[0]}..{undeclared[-1]} "
            f"({pixels} pixels, {100 * pixels / sum(counts):.2g} %): {ANTIALIASED}"
        )
    two_classes = set(table.tolist()) <= {-1, 0, 1, IGNORED}
    new = IGNORED
    meaning = "255 = ignored; or the number of their class"
    if two_classes and len(undeclared) == 1:
        new, meaning = 1, "or 255 to ignore it"
    values = ", ".join(f"{value} ({counts[value]} pixels)" for value in undeclared)
    advice = ",".join(f"{value}={new}" for value in undeclared)
    raise Unreadable(f"holds undeclared values {values}: say --label-map {advice} ({meaning})")


def check_labels(counts: np.ndarray, task: str, declared: bool, part: bool) -> str:
    """One sentence on why the labels of all masks together make no sense; "" if they do.

    counts: pixels of each label 0..255; declared: classes.csv or the layout names the classes;
    part: other masks have more labels, perhaps.
    """
    present = np.flatnonzero(counts[:IGNORED]).tolist()
    held = np.flatnonzero(counts)
    most = np.argsort(counts)[-2:]
    # Antialiasing lies between two values; many sound classes beside a large one do not.
    between = len(held) > 32 and set(most) == {held[0], held[-1]} and held[-1] > 127
    if not declared and between and counts[most].sum() > 0.9 * counts.sum():
        return f"masks hold {len(held)} values, two of them in most pixels: {ANTIALIASED}"
    if not declared and len(present) > MOST_UNNAMED:
        return (
            f"masks hold {len(present)} different values: are these labels? Name them in "
            "classes.csv; soft masks of two classes need --label-map 0-127=0,128-255=1"
        )
    if counts[IGNORED] and present == [0]:
        return (
            "masks hold only 0 and 255, and 255 means ignored; "
            "where it is class 1 say --label-map 255=1"
        )
    if declared or part or not len(held):
        return ""
    if len(present) < 2:
        return f"masks hold only the labels {present}; a segmentation needs two classes"
    highest = present[-1]
    if task == "binary" and highest > 1:
        above = "2" if highest == 2 else f"2-{highest}"
        return (
            f"--task binary needs labels 0 and 1, masks go up to {highest}: "
            f"say --label-map {above}=1"
        )
    if 2 * len(present) < highest + 1:
        advice = ",".join(f"{old}={new}" for new, old in enumerate(present) if old != new)
        also = f" (255 is ignored: if it is a class, add ,255={len(present)})"
        return (
            f"masks hold only {len(present)} of the labels 0..{highest}: "
            f"say --label-map {advice}{also if counts[IGNORED] else ''}, or write classes.csv"
        )
    return ""


def check_agreement(counts: list[list[int]]) -> str:
    """One sentence where some masks paint with 255 what others paint with 1; "" if none do.

    counts: of each mask, the pixels of each label 0..255.
    """
    held = [{*np.flatnonzero(mask)} - {0} for mask in counts]  # labels other than 0
    white = held.count({IGNORED})
    one = held.count({1})
    if not white or not one or any(labels > {IGNORED} for labels in held):
        return ""
    return (
        f"{white} masks hold only 0 and 255, {one} only 0 and 1: where both paint one "
        "class say --label-map 255=1; where 255 is to be ignored, --label-map 255=255"
    )
