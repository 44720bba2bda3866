"""The sections of a report as HTML: every text that comes from a file is escaped here."""

import base64
import io
import json
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from html import escape

from PIL import Image

from ..checkpoint import count_seen, trained_on
from ..hardware import hardware_of
from .curves import curve_panels, with_colours
from .pictures import UNSCORED, WRONG, Example, Picture
from .tables import Entries, Entry, Rows, format_score, index_of_best, miou_of_images

LONG = 8  # items: a longer list is counted


def score_section(table: Rows, entries: Entries) -> str:
    """The scores side by side, and which entry is best where. table: of `score_table`."""
    (measure, meaning, *labels), *scores = table
    rows = []
    for name, text, *values in scores:
        best = min if name == "loss" else max
        rows.append([name, *score_cells(values, best), escape(text)])
    pixels = sum(map(sum, entries[0].scores["confusion"]))
    images = len(entries[0].scores["images"])
    note = (
        f"{pixels:,} pixels of {images} images are scored, at the masks' own size; "
        "pixels that the truth leaves out count nowhere."
    )
    html = scrollable_table("Scores", [measure, *labels, meaning], rows, "scores")
    html += f'<p class="soft">{note}</p>\n'
    return html + win_list(entries) if len(entries) > 1 else html


def win_list(entries: Entries) -> str:
    """In how many classes and images each entry alone is the best."""
    ious = zip(*(entry.scores["iou"].values() for entry in entries), strict=True)
    classes = [index_of_best(values) for values in ious]
    images = [index_of_best(values) for values in miou_of_images(entries).values()]
    items = ""
    for index, entry in enumerate(entries):
        items += (
            f"<li><b>{escape(entry.label)}</b> has the highest IoU in {classes.count(index)} "
            f"of {len(classes)} classes and the highest mIoU in {images.count(index)} "
            f"of {len(images)} images.</li>\n"
        )
    return f"<ul>{items}</ul>\n"


def class_section(table: Rows, entries: Entries) -> str:
    """IoU and accuracy of each class, with bars. table: of `class_table`."""
    heads, *classes = table
    n = len(entries)
    if n == 1:
        heads = ["class", "share of truth", "IoU", "accuracy"]
    rows = []
    for colour, (name, share, *values) in zip(entries[0].meta["palette"], classes, strict=True):
        cells = score_cells(values[:n]) + score_cells(values[n:])
        rows.append([swatch(colour) + escape(name), f"{share:.2%}", *cells])
    return scrollable_table("Classes", heads, rows, "classes")


def curve_section(entries: Entries) -> str:
    """The training curves of the entries that have a history."""
    runs = {entry.label: entry.meta.get("history") or [] for entry in entries}
    if not any(runs.values()):
        return "<p>No training history is stored: this checkpoint was made from others.</p>"
    return (
        '<p class="soft">On val, if the run kept one; dashed: on the training batches, which are '
        "augmented, as the model in training mode predicted them. "
        "The learning rate is on a logarithmic scale.</p>\n"
        f"{legend(with_colours(runs) if len(runs) > 1 else [])}\n"
        f'<div class="curves">{"".join(curve_panels(runs))}</div>'
    )


def example_section(examples: list[Example], entries: Entries) -> str:
    """The pictures of each example in a row, below a legend of the colours."""
    if not examples:
        return "<p>None of the images.</p>"
    meta = entries[0].meta
    colours = [*zip(meta["classes"], meta["palette"], strict=True)]
    colours += [("wrong", WRONG), ("not in the truth", UNSCORED)]
    html = (
        '<p class="soft hint">Choose a picture to enlarge it '
        "and to slide between truth and prediction.</p>\n"
        f"{legend(colours, 'palette')}\n"
    )
    layout = "row many" if len(entries) > 1 else "row"
    for example in examples:
        figures = "".join(figure(picture, example.name, entries) for picture in example.pictures)
        html += (
            f'<article class="example"><h3>{escape(example.name)}</h3>\n'
            f'<div class="{layout}">{figures}</div></article>\n'
        )
    return html


def figure(picture: Picture, name: str, entries: Entries) -> str:
    """A picture of the image `name` with its caption; template.html reads the data-attributes."""
    entry = entries[picture.model or 0]
    model = entry.label if len(entries) > 1 else ""
    image = next(image for image in entry.scores["images"] if image["name"] == name)
    score = f"mIoU {format_score(image['miou'])}, mPA {format_score(image['mpa'])}"
    title, heading, by = f"{name}: {score}", "prediction", ""
    if model:
        title = f"{name}, {model}: {score}"
        heading, by = f"<b>{escape(model)}</b>", f" by {model}"
    caption, alt = {
        "image": ("image", f"Image {name}"),
        "truth": ("truth", f"True classes of {name}"),
        "prediction": (f"{heading}<br>{score}", f"Classes of {name} predicted{by}, {score}"),
        "difference": (
            "where they differ",
            f"{name}: pixels where {model or 'the prediction'} differs from the truth, in red",
        ),
    }[picture.kind]
    number = "" if picture.model is None else picture.model
    return (
        f'<figure><button class="zoom" data-kind="{picture.kind}" data-model="{number}" '
        f'data-title="{escape(title)}"><img src="{data_uri(picture.image)}" '
        f'width="{picture.image.width}" height="{picture.image.height}" '
        f'alt="{escape(alt)}"></button><figcaption>{caption}</figcaption></figure>\n'
    )


def data_uri(image: Image.Image) -> str:
    """An image inside the page: labels as PNG, without loss; photographs as JPEG, smaller."""
    content = io.BytesIO()
    kind = "png" if image.mode == "P" else "jpeg"
    # subsampling 0 keeps the edges of error maps sharp. Each format ignores the other's options.
    image.save(content, kind, optimize=True, quality=82, subsampling=0)
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"


def confusion_section(entries: Entries) -> str:
    """Each row in shares of its class's true pixels; a class that the truth lacks has dashes."""
    html = ""
    for entry in entries:
        names = list(entry.scores["iou"])
        rows = []
        for name, counts in zip(names, entry.scores["confusion"], strict=True):
            total, cells = sum(counts), []
            for predicted, count in zip(names, counts, strict=True):
                share = count / (total or 1)
                text = f"{100 * share:.1f}" if count else "" if total else "&ndash;"
                ink = "#fff" if share > 0.55 else "inherit"
                style = f"background:rgba(var(--mark),{share:.3f});color:{ink}"
                hover = escape(f"{name} taken for {predicted}: {count:,} pixels")
                cells.append(f'<div style="{style}" title="{hover}">{text}</div>')
            rows.append([escape(name), *cells])
        html += f"<h3>{escape(entry.label)}</h3>\n" if len(entries) > 1 else ""
        html += (
            '<p class="soft">Rows: the truth. Columns: the prediction. '
            "Per cent of the row's pixels.</p>\n"
        )
        label = f"Confusion matrix of {entry.label}"
        html += scrollable_table(label, ["", *names], rows, "matrix")
    return html


def run_section(entries: Entries, evaluation: dict[str, str]) -> str:
    """How each checkpoint, each member of a UFormer, and this report was made."""
    columns = []
    for entry in entries:
        columns.append(entry)
        for member in entry.meta.get("members", []):
            label = f"{entry.label}: {member['label']}"
            meta = entry.meta | member
            columns.append(Entry(label, member["path"], member["parameters"], meta, entry.scores))
    facts = [run_facts(column) for column in columns]
    rows = [[name, *(escape(fact[name]) for fact in facts)] for name in facts[0]]
    html = scrollable_table("Runs", ["", *(column.label for column in columns)], rows, "facts")
    for column in columns:
        settings = {key: column.meta[key] for key in ("config", "args")}
        html += (
            f"<details><summary>All settings of {escape(column.label)}</summary>"
            f"<pre>{escape(json.dumps(settings, indent=1))}</pre></details>\n"
        )
    rows = [[*map(escape, fact)] for fact in evaluation.items()]
    return f"{html}<h3>This report</h3>{scrollable_table('This report', [], rows, 'facts')}"


def run_facts(entry: Entry) -> dict[str, str]:
    """How a checkpoint was made: name of a fact -> the fact in words."""
    meta = entry.meta
    args, data = meta["args"], meta["data"]
    names = [value for value in meta["config"].values() if isinstance(value, str)]
    counts = ", ".join(f"{len(names)} {split}" for split, names in data["splits"].items())
    size = "the images' own size"
    if data["image_size"]:
        size = "{} x {} pixels".format(*data["image_size"])
    if args.get("crop"):
        size += " in windows of {} x {}".format(*args["crop"])
    recipe = "unknown"  # of a published model
    if "batch_size" in args:
        recipe = f"{meta['epoch']} epochs, batch {args['batch_size']}, learning rate {args['lr']}"
    elif "checkpoints" in args:
        recipe = f"weighted average of {in_words(args['checkpoints'])}"
    hardware = software = code = took = "unknown"
    if machine := meta.get("environment"):
        hardware = hardware_of(machine)
        software = f"torch {machine['torch']}, Python {machine['python']}"
        code = machine.get("code", code)  # older checkpoints name none
    if seconds := meta.get("seconds"):
        took = str(timedelta(seconds=round(seconds)))
    weights = meta.get("encoder_weights")
    scored = [image["name"] for image in entry.scores["images"]]
    seen = count_seen(scored, trained_on(meta))
    return {
        "checkpoint": entry.path,
        "model": f"{' '.join(names)}, {entry.parameters:,} parameters",
        "parameters": in_words(meta.get("parameter_counts", "unknown")),
        "command": meta.get("command") or "unknown",
        "data": f"{data['root']} ({data['layout']}, {data['task']}): {counts} images",
        "size": size,
        "recipe": recipe,
        "seed": str(args.get("seed", "none")),
        "encoder weights": in_words(weights) if weights else "none: trained from random numbers",
        "scored here, seen before": f"{seen} of {len(scored)} images, by name",
        "training time": took,
        "hardware": hardware,
        "software": software,
        "code": code,
    }


def in_words(value: object) -> str:
    """A nested dict or list on one line."""
    if isinstance(value, dict):
        return "; ".join(f"{key}: {in_words(item)}" for key, item in value.items())
    if isinstance(value, list):
        if len(value) > LONG:
            return f"{len(value)} of them"
        return ", ".join(map(in_words, value))
    return "none" if value is None else str(value)


def score_cells(values: Sequence, best: Callable = max) -> list[str]:
    """The scores of one row, the best in bold; the style sheet may draw their size as a bar."""
    cells = []
    for index, value in enumerate(values):
        mark = "best" if index == index_of_best(values, best) else ""
        size = f"--size:{100 * (value or 0.0):.1f}%"
        cells.append(f'<div class="score {mark}" style="{size}">{format_score(value)}</div>')
    return cells


def swatch(colour: Sequence[int] | str) -> str:
    code = colour if isinstance(colour, str) else "#{:02x}{:02x}{:02x}".format(*colour)
    return f'<span class="swatch" style="background:{code}"></span>'


def legend(colours: Iterable[tuple], kind: str = "") -> str:
    """colours: (name, colour) of each item; kind: a class of the style sheet."""
    items = "".join(f"<li>{swatch(colour)}{escape(name)}</li>" for name, colour in colours)
    return f'<ul class="legend {kind}">{items}</ul>'


def scrollable_table(label: str, heads: list[str], rows: list[list[str]], kind: str) -> str:
    """A table that scrolls sideways, by keys too, where the screen is too narrow.

    label: for screen readers; heads: text, escaped here; rows: HTML; kind: a class of the style
    sheet.
    """
    head, body = "", ""
    for text in heads:
        head += f'<th scope="col">{escape(text)}</th>' if text else "<td></td>"
    for first, *cells in rows:
        row = "".join(f"<td>{cell}</td>" for cell in cells)
        body += f'<tr><th scope="row">{first}</th>{row}</tr>\n'
    return (
        f'<div class="scrollable" role="region" tabindex="0" aria-label="{escape(label)}">'
        f'<table class="{kind}"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>\n"
    )
