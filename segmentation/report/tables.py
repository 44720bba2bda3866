"""What is said about scores, before it is HTML or printed: its columns, its tables, the images it shows."""

from dataclasses import dataclass

from PIL import Image

COLUMNS = {"miou": "mIoU", "mpa": "mPA"}


@dataclass
class Entry:
    """One column of a report. meta: what the checkpoint says; scores: see `score_split`."""

    label: str
    path: str
    parameters: int
    meta: dict
    scores: dict


@dataclass
class Example:
    """One image as it is shown; predictions and differences: one for each entry. All pictures have one size."""

    name: str
    image: Image.Image
    truth: Image.Image
    predictions: list[Image.Image]
    differences: list[Image.Image]


def number(value: float | None) -> str:
    return "absent" if value is None else f"{value:.4f}"


def aligned(rows: list[list]) -> str:
    """Rows as lines of a terminal: the first column left, the others right, numbers with four digits."""
    cells = [[cell if isinstance(cell, str) else number(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join([f"{first:{widths[0]}}", *(f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True))])
        for first, *rest in cells
    ]
    return "\n".join(lines)


def choose_examples(entries: list[Entry], top: int) -> dict[str, list[str]]:
    """Heading -> names of images. One entry: the best and the worst by mIoU. Several: where each leads, the hardest."""
    columns = [{image["name"]: image["miou"] for image in entry.scores["images"]} for entry in entries]
    names = [name for name in columns[0] if all(column[name] is not None for column in columns)]
    ordered = sorted(names, key=lambda name: -sum(column[name] for column in columns))
    if len(entries) == 1:
        best = ordered[: min(top, (len(ordered) + 1) // 2)]
        worst = [name for name in reversed(ordered) if name not in best][:top]
        return {"Best images": best, "Worst images": worst}
    chosen = {}
    for index, entry in enumerate(entries):
        others = columns[:index] + columns[index + 1 :]
        lead = {name: columns[index][name] - max(other[name] for other in others) for name in names}
        chosen[f"Where {entry.label} leads most"] = sorted((n for n in names if lead[n] > 0), key=lambda n: -lead[n])[
            :top
        ]
    return chosen | {"Hardest for all": ordered[::-1][:top]}


def pictures_of(example: Example, entries: list[Entry]) -> list[tuple[str, Image.Image]]:
    """(kind, picture) in the order they are shown."""
    pictures = [("image", example.image), ("truth", example.truth)]
    for entry, prediction, wrong in zip(entries, example.predictions, example.differences, strict=True):
        of = f" {entry.label}" if len(entries) > 1 else ""
        pictures += [(f"prediction{of}", prediction), (f"difference{of}", wrong)]
    return pictures


def score_table(entries: list[Entry]) -> list[list]:
    """Rows of: measure, what it means, a value for each entry."""
    settings, iou = entries[0].meta["args"], entries[0].scores["iou"]
    present = [sum(value is not None for value in entry.scores["iou"].values()) for entry in entries]
    counted = str(present[0]) if len(set(present)) == 1 else "/".join(map(str, present))
    loss = f"Tversky {settings['alpha']:g} / {settings['beta']:g}, one loss over all pixels"
    meanings = {
        "mIoU": ("miou", f"one confusion matrix of all pixels, mean over {counted} of {len(iou)} classes"),
        "mPA": ("mpa", "accuracy of a class, from the same matrix, mean over the classes in the truth"),
        "pixel accuracy": ("pixel_accuracy", "share of the pixels that are right"),
        "image mIoU": ("image_miou", "IoU of each image, mean over images for each class, then over classes"),
        "image mPA": ("image_mpa", "accuracy of each image, averaged in the same way"),
        "loss": ("loss", loss),
    }
    rows = [["measure", "meaning", *(entry.label for entry in entries)]]
    return rows + [[name, text, *(e.scores[key] for e in entries)] for name, (key, text) in meanings.items()]


def class_table(entries: list[Entry]) -> list[list]:
    """Rows of: class, share of the truth's pixels, IoU and accuracy for each entry."""
    matrix = entries[0].scores["confusion"]
    total = sum(map(sum, matrix)) or 1
    rows = [["class", "share", *(f"{kind} {e.label}" for kind in ("IoU", "accuracy") for e in entries)]]
    for index, name in enumerate(entries[0].scores["iou"]):
        values = [e.scores[kind][name] for kind in ("iou", "accuracy") for e in entries]
        rows.append([name, sum(matrix[index]) / total, *values])
    return rows


def comparison_table(entries: list[Entry]) -> list[list]:
    """Rows of: checkpoint, mIoU, mPA, recall and precision of the class with the fewest pixels in the truth."""
    pixels = [(sum(row), k) for k, row in enumerate(entries[0].scores["confusion"])]
    rarest = min((each for each in pixels if each[0]), default=(0, 0))[1]
    name = list(entries[0].scores["iou"])[rarest]
    rows: list[list] = [["", "mIoU", "mPA", f"{name}: recall", "precision"]]
    for entry in entries:
        predicted = sum(row[rarest] for row in entry.scores["confusion"])
        precision = entry.scores["confusion"][rarest][rarest] / predicted if predicted else None
        scores = entry.scores
        rows.append([entry.label, scores["miou"], scores["mpa"], scores["accuracy"][name], precision])
    return rows


def image_table(entries: list[Entry]) -> list[list]:
    rows = [["image", *(f"{title} {e.label}" for e in entries for title in COLUMNS.values())]]
    for images in zip(*(entry.scores["images"] for entry in entries), strict=True):
        rows.append([images[0]["name"], *(image[key] for image in images for key in COLUMNS)])
    return rows
