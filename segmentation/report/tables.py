"""The content of a report as plain rows, for HTML, CSV and the terminal alike."""

from dataclasses import dataclass


@dataclass
class Entry:
    """A checkpoint in a report. meta: all it holds but weights; scores: see `score_split`."""

    label: str
    path: str
    parameters: int
    meta: dict
    scores: dict


def format_score(value: float | None) -> str:
    return "absent" if value is None else f"{value:.4f}"


def format_table(rows: list[list]) -> str:
    """Lines for a terminal: the first column to the left, the others to the right."""
    lines = []
    for row in rows:
        lines.append([cell if isinstance(cell, str) else format_score(cell) for cell in row])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    )


def score_table(entries: list[Entry]) -> list[list]:
    """Rows of: measure, what it means, a value for each entry."""
    args = entries[0].meta["args"]
    ious = [list(entry.scores["iou"].values()) for entry in entries]
    present = [str(len(values) - values.count(None)) for values in ious]
    counted = present[0] if len(set(present)) == 1 else "/".join(present)
    meanings = {
        "mIoU": f"one confusion matrix of all pixels, mean over {counted} of {len(ious[0])} classes",
        "mPA": "accuracy of a class, from the same matrix, mean over the classes in the truth",
        "pixel accuracy": "share of the pixels that are right",
        "image mIoU": "IoU of each image, mean over images for each class, then over classes",
        "image mPA": "accuracy of each image, averaged in the same way",
        "loss": f"Tversky {args['alpha']:g} / {args['beta']:g}, one loss over all pixels",
    }
    rows = [["measure", "meaning", *(entry.label for entry in entries)]]
    for name, meaning in meanings.items():
        key = name.lower().replace(" ", "_")
        rows.append([name, meaning, *(entry.scores[key] for entry in entries)])
    return rows


def class_table(entries: list[Entry]) -> list[list]:
    """Rows of: class, share of the truth's pixels, the IoU of all entries, then their accuracy."""
    pixels = [sum(row) for row in entries[0].scores["confusion"]]
    heads = [f"{kind} {entry.label}" for kind in ("IoU", "accuracy") for entry in entries]
    rows: list[list] = [["class", "share", *heads]]
    for name, count in zip(entries[0].scores["iou"], pixels, strict=True):
        values = [entry.scores[kind][name] for kind in ("iou", "accuracy") for entry in entries]
        rows.append([name, count / (sum(pixels) or 1), *values])
    return rows


def image_table(entries: list[Entry]) -> list[list]:
    """Rows of: image, then mIoU and mPA of each entry."""
    rows = [["image", *(f"{kind} {entry.label}" for entry in entries for kind in ("mIoU", "mPA"))]]
    for images in zip(*(entry.scores["images"] for entry in entries), strict=True):
        values = [image[key] for image in images for key in ("miou", "mpa")]
        rows.append([images[0]["name"], *values])
    return rows


def comparison_table(entries: list[Entry]) -> list[list]:
    """Rows of: checkpoint, mIoU, mPA, recall and precision of the truth's rarest class."""
    pixels = [sum(row) for row in entries[0].scores["confusion"]]
    rarest = pixels.index(min(filter(None, pixels), default=0))
    name = list(entries[0].scores["iou"])[rarest]
    rows: list[list] = [["", "mIoU", "mPA", f"{name}: recall", "precision"]]
    for entry in entries:
        scores = entry.scores
        predicted = [row[rarest] for row in scores["confusion"]]
        precision = predicted[rarest] / sum(predicted) if any(predicted) else None
        recall = scores["accuracy"][name]
        rows.append([entry.label, scores["miou"], scores["mpa"], recall, precision])
    return rows


def miou_of_images(entries: list[Entry]) -> dict[str, list]:
    """Image -> the mIoU of each entry."""
    columns = [entry.scores["images"] for entry in entries]
    rows = zip(*columns, strict=True)
    return {images[0]["name"]: [image["miou"] for image in images] for images in rows}


def choose_examples(entries: list[Entry], top: int) -> dict[str, list[str]]:
    """Heading -> names of at most `top` images, chosen by mIoU.

    One entry: its best and its worst images. Several: where each leads, and the hardest for all.
    """
    known = {name: row for name, row in miou_of_images(entries).items() if None not in row}
    ordered = sorted(known, key=lambda name: -sum(known[name]))
    if len(entries) == 1:
        best = ordered[: min(top, (len(ordered) + 1) // 2)]
        worst = ordered[len(best) :][::-1]
        return {"Best images": best, "Worst images": worst[:top]}
    chosen = {}
    for index, entry in enumerate(entries):
        leads = {}
        for name, row in known.items():
            leads[name] = row[index] - max(row[:index] + row[index + 1 :])
        ahead = sorted((n for n in leads if leads[n] > 0), key=leads.__getitem__, reverse=True)
        chosen[f"Where {entry.label} leads most"] = ahead[:top]
    return chosen | {"Hardest for all": ordered[::-1][:top]}
