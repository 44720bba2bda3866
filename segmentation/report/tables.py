"""The content of a report as plain rows, for HTML, CSV and the terminal alike."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass


@dataclass
class Entry:
    """A checkpoint in a report. meta: all it holds but the weights; scores: see `score_split`."""

    label: str
    path: str
    parameters: int
    meta: dict
    scores: dict


Entries = list[Entry]
Rows = list[list]  # of a table, its heads first; numbers are scores


def format_score(value: float | None) -> str:
    return "absent" if value is None else f"{value:.4f}"


def format_table(rows: Rows) -> str:
    """Lines for a terminal: the first column is flush left, the others flush right."""
    texts = []
    for row in rows:
        cells = [cell if isinstance(cell, str) else format_score(cell) for cell in row]
        texts.append(cells)
    columns = zip(*texts, strict=True)
    width, *widths = [max(map(len, column)) for column in columns]
    lines = [[first.ljust(width), *map(str.rjust, rest, widths)] for first, *rest in texts]
    return "\n".join(map("  ".join, lines))


def index_of_best(values: Sequence, best: Callable = max) -> int | None:
    """The place of the best value; None where two share it, or where there is only one value."""
    known = [value for value in values if value is not None]
    winner = best(known, default=None)
    if len(values) > 1 and known.count(winner) == 1:
        return values.index(winner)
    return None


def score_table(entries: Entries) -> Rows:
    """Rows of: measure, what it means, a value for each entry."""
    loss = entries[0].meta["loss"]
    ious = [list(entry.scores["iou"].values()) for entry in entries]
    classes = len(ious[0])
    present = [str(classes - values.count(None)) for values in ious]
    counted = present[0] if len(set(present)) == 1 else "/".join(present)
    meanings = {
        "mIoU": f"one confusion matrix of all pixels, mean over {counted} of {classes} classes",
        "mPA": "accuracy of a class, from the same matrix, mean over the classes in the truth",
        "pixel accuracy": "share of the pixels that are right",
        "fwIoU": "mean IoU, each class weighted by its share of the pixels of the truth",
        "image mIoU": "IoU of each image, mean over images for each class, then over classes",
        "image mPA": "accuracy of each image, averaged in the same way",
        "loss": f"Tversky {loss['alpha']:g} / {loss['beta']:g}, one loss over all pixels",
    }
    rows: Rows = [["measure", "meaning", *(entry.label for entry in entries)]]
    for name, meaning in meanings.items():
        key = name.lower().replace(" ", "_")  # of scores: "pixel_accuracy"
        values = [entry.scores[key] for entry in entries]
        rows.append([name, meaning, *values])
    return rows


def class_table(entries: Entries) -> Rows:
    """Rows of: class, share of the truth's pixels, the IoU of all entries, then their accuracy."""
    columns = {}  # heading -> class -> score
    for kind in ("IoU", "accuracy"):
        for entry in entries:
            columns[f"{kind} {entry.label}"] = entry.scores[kind.lower()]
    rows: Rows = [["class", "share", *columns]]
    scores = entries[0].scores
    pixels = [sum(row) for row in scores["confusion"]]
    total = sum(pixels) or 1
    for name, count in zip(scores["iou"], pixels, strict=True):
        values = [column[name] for column in columns.values()]
        rows.append([name, count / total, *values])
    return rows


def image_table(entries: Entries) -> Rows:
    """Rows of: image, then mIoU and mPA of each entry."""
    heads = ["image"]
    for entry in entries:
        heads += [f"mIoU {entry.label}", f"mPA {entry.label}"]
    rows = [heads]
    for images in images_side_by_side(entries):
        row = [images[0]["name"]]
        for image in images:
            row += [image["miou"], image["mpa"]]
        rows.append(row)
    return rows


def images_side_by_side(entries: Entries) -> Iterator[tuple[dict, ...]]:
    """For each image, its scores by each entry: all entries have the same images, in one order."""
    return zip(*(entry.scores["images"] for entry in entries), strict=True)


def comparison_table(entries: Entries) -> Rows:
    """Rows of: checkpoint, mIoU, mPA, recall and precision of the class with fewest true pixels."""
    first = entries[0].scores
    pixels = [sum(row) for row in first["confusion"]]
    fewest = min(filter(None, pixels), default=0)
    rarest = pixels.index(fewest)
    name = list(first["iou"])[rarest]
    rows: Rows = [["", "mIoU", "mPA", f"{name}: recall", "precision"]]
    for entry in entries:
        scores = entry.scores
        predicted = [row[rarest] for row in scores["confusion"]]
        precision = predicted[rarest] / sum(predicted) if any(predicted) else None
        recall = scores["accuracy"][name]
        rows.append([entry.label, scores["miou"], scores["mpa"], recall, precision])
    return rows


def miou_of_images(entries: Entries) -> dict[str, list]:
    """Image -> the mIoU of each entry."""
    return {
        images[0]["name"]: [image["miou"] for image in images]
        for images in images_side_by_side(entries)
    }


def choose_examples(entries: Entries, top: int) -> dict[str, list[str]]:
    """Heading -> names of at most `top` images, chosen by mIoU.

    One entry: its best and its worst images. Several: where each leads, and the hardest for all.
    """
    mious = miou_of_images(entries)
    known = {name: row for name, row in mious.items() if None not in row}
    ordered = sorted(known, key=lambda name: -sum(known[name]))
    if len(entries) == 1:
        half = (len(ordered) + 1) // 2
        best, rest = ordered[:half], ordered[half:]
        return {"Best images": best[:top], "Worst images": rest[::-1][:top]}

    def lead(name: str) -> float:
        *_, second, first = sorted(known[name])
        return first - second

    chosen = {}
    by_lead = sorted(known, key=lead, reverse=True)
    for index, entry in enumerate(entries):
        won = [name for name in by_lead if index_of_best(known[name]) == index]
        chosen[f"Where {entry.label} leads most"] = won[:top]
    chosen["Hardest for all"] = ordered[::-1][:top]
    return chosen
