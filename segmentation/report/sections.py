"""The sections of a report as HTML: every text that comes from a file is escaped here."""

import base64
import io
import json
from collections.abc import Callable, Sequence
from html import escape

from PIL import Image

from .curves import colour_of, curve_panels
from .pictures import UNSCORED, WRONG, Palette
from .tables import COLUMNS, Entry, Example, class_table, image_table, pictures_of, score_table


def score_section(entries: list[Entry]) -> str:
    header, *rows = score_table(entries)
    heads = "".join(f'<th scope="col">{escape(text)}</th>' for text in [header[0], *header[2:], header[1]])
    body = ""
    for number, (name, meaning, *values) in enumerate(rows):
        best = min if name == "loss" else max
        cells = "".join(f'<td class="number{mark}">{shown(v)}</td>' for v, mark in marked(values, best))
        first = ' class="first"' if number == 0 else ""
        body += f'<tr{first}><th scope="row">{escape(name)}</th>{cells}<td class="soft">{escape(meaning)}</td></tr>'
    pixels = sum(map(sum, entries[0].scores["confusion"]))
    text = f"{pixels:,} pixels of {len(entries[0].scores['images'])} images are scored, at the masks' own size; "
    text += "pixels that the truth leaves out count nowhere."
    table = wide("Scores", f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>")
    return f"{table}<p class='soft'>{text}</p>{wins(entries)}"


def wins(entries: list[Entry]) -> str:
    """In how many classes and images each of several entries is the best."""
    if len(entries) == 1:
        return ""
    classes = [[entry.scores["iou"][name] for entry in entries] for name in entries[0].scores["iou"]]
    images = [row[1 :: len(COLUMNS)] for row in image_table(entries)[1:]]
    sentences = ""
    for index, entry in enumerate(entries):
        first, second = (sum(bool(marked(values)[index][1]) for values in table) for table in (classes, images))
        sentences += (
            f"<li><b>{escape(entry.label)}</b> has the highest IoU in {first} of {len(classes)} classes and the "
            f"highest mIoU in {second} of {len(images)} images.</li>"
        )
    return f"<ul>{sentences}</ul>"


def class_section(entries: list[Entry], palette: Palette) -> str:
    header, *rows = class_table(entries)
    heads = "".join(f'<th scope="col">{escape(text.strip())}</th>' for text in header)
    if len(entries) == 1:
        heads = "".join(f'<th scope="col">{text}</th>' for text in ("class", "share of truth", "IoU", "accuracy"))
    body = ""
    for colour, (name, share, *values) in zip(palette, rows, strict=True):
        marks = marked(values[: len(entries)]) + marked(values[len(entries) :])
        cells = "".join(f"<td>{bar(value, mark)}</td>" for value, mark in marks)
        body += (
            f'<tr><th scope="row">{swatch(colour)}{escape(name)}</th><td class="number">{share:.2%}</td>{cells}</tr>'
        )
    return wide("Classes", f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>")


def curve_section(entries: list[Entry]) -> str:
    runs = {entry.label: entry.meta.get("history") or [] for entry in entries}
    if not any(runs.values()):
        return "<p>No training history is stored: this checkpoint was made from others.</p>"
    names = "".join(
        f"<li>{swatch(colour_of(index))}{escape(name)}</li>" for index, name in enumerate(runs) if len(runs) > 1
    )
    note = "On the validation images; dashed: the training loss. The learning rate is on a logarithmic scale."
    panels = "".join(curve_panels(runs))
    return f'<p class="soft">{note}</p><ul class="legend">{names}</ul><div class="curves">{panels}</div>'


def example_section(examples: list[Example], entries: list[Entry], classes: list[str], palette: Palette) -> str:
    if not examples:
        return "<p>None of the images.</p>"
    names = "".join(f"<li>{swatch(c)}{escape(name)}</li>" for name, c in zip(classes, palette, strict=True))
    names += f"<li>{swatch(WRONG)}wrong</li><li>{swatch(UNSCORED)}not in the truth</li>"
    hint = '<p class="soft hint">Choose a picture to enlarge it and to slide between truth and prediction.</p>'
    shown = "".join(example_article(example, entries) for example in examples)
    return f'{hint}<ul class="legend classes">{names}</ul>{shown}'


def example_article(example: Example, entries: list[Entry]) -> str:
    """Image, truth, and for each entry prediction and difference, with the scores of this image."""
    several = len(entries) > 1
    images = [next(i for i in e.scores["images"] if i["name"] == example.name) for e in entries]
    figures = ""
    for number, (kind, picture) in enumerate(pictures_of(example, entries)):
        model = max(0, number // 2 - 1)
        name, kind = (entries[model].label if several and number > 1 else ""), kind.split()[0]
        score = f"mIoU {shown(images[model]['miou'])}, mPA {shown(images[model]['mpa'])}"
        caption = {
            "image": "image",
            "truth": "truth",
            "prediction": f"{name or 'prediction'}<br>{score}" if not name else f"<b>{escape(name)}</b><br>{score}",
            "difference": "where they differ",
        }[kind]
        alt = {
            "image": f"Image {example.name}",
            "truth": f"True classes of {example.name}",
            "prediction": f"Classes of {example.name} predicted{f' by {name}' if name else ''}, {score}",
            "difference": f"{example.name}: pixels where {name or 'the prediction'} differs from the truth, in red",
        }[kind]
        title = escape(f"{example.name}{f', {name}' if name else ''}: {score}", quote=True)
        labels = ' class="labels"' if kind in ("truth", "prediction") else ""
        figures += (
            f'<figure><button class="zoom" data-kind="{kind}" data-title="{title}"'
            f"{f' data-model={chr(34)}{model}{chr(34)}' if number > 1 else ''}>"
            f'<img{labels} src="{data_uri(picture)}" width="{picture.width}" height="{picture.height}" '
            f'alt="{escape(alt, quote=True)}"></button><figcaption>{caption}</figcaption></figure>'
        )
    row = "row many" if several else "row"
    return f'<article class="example"><h3>{escape(example.name)}</h3><div class="{row}">{figures}</div></article>'


def data_uri(picture: Image.Image) -> str:
    """A picture inside the page: labels without loss, photographs small."""
    content = io.BytesIO()
    if picture.mode == "P":
        picture.save(content, "PNG", optimize=True)
    else:
        picture.save(content, "JPEG", quality=82, subsampling=0)  # full colour, for the sharp red of differences
    kind = "png" if picture.mode == "P" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"


def confusion(entry: Entry, named: bool) -> str:
    """The matrix, each row in per cent of the true pixels of a class."""
    names = list(entry.scores["iou"])
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    body = ""
    for name, row in zip(names, entry.scores["confusion"], strict=True):
        total, cells = sum(row), ""
        for predicted, count in zip(names, row, strict=True):
            part = count / total if total else 0.0
            colour = f"background:rgba(var(--mark),{part:.3f})" + (";color:#fff" if part > 0.55 else "")
            hover = escape(f"{name} taken for {predicted}: {count:,} pixels", quote=True)
            text = "&ndash;" if not total else "" if not count else f"{100 * part:.1f}"
            cells += f'<td style="{colour}" title="{hover}">{text}</td>'
        body += f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'
    title = f"<h3>{escape(entry.label)}</h3>" if named else ""
    note = "<p class='soft'>Rows: the truth. Columns: the prediction. Per cent of the row's pixels.</p>"
    table = f'<table class="matrix"><thead><tr><td></td>{heads}</tr></thead><tbody>{body}</tbody></table>'
    return title + note + wide(f"Confusion matrix of {entry.label}", table)


def run_section(entries: list[Entry], evaluation: dict[str, str]) -> str:
    facts = [run_facts(entry) for entry in entries]
    heads = "".join(f'<th scope="col">{escape(entry.label)}</th>' for entry in entries)
    body = ""
    for name in facts[0]:
        cells = "".join(f"<td>{escape(fact[name])}</td>" for fact in facts)
        body += f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'
    table = f'<table class="facts"><thead><tr><td></td>{heads}</tr></thead><tbody>{body}</tbody></table>'
    lines = "".join(f'<tr><th scope="row">{escape(k)}</th><td>{escape(v)}</td></tr>' for k, v in evaluation.items())
    details = "".join(
        f"<details><summary>All settings of {escape(entry.label)}</summary>"
        f"<pre>{escape(json.dumps({key: entry.meta[key] for key in ('config', 'args')}, indent=1))}</pre></details>"
        for entry in entries
    )
    scored = f'<h3>This report</h3><table class="facts"><tbody>{lines}</tbody></table>'
    return wide("Runs", table) + details + wide("This report", scored)


def run_facts(entry: Entry) -> dict[str, str]:
    """How a checkpoint came about, in words."""
    meta, args, machine = entry.meta, entry.meta["args"], entry.meta.get("environment") or {}
    data = meta["data"]
    counts = ", ".join(f"{len(names)} {split}" for split, names in data["splits"].items())
    size = "the images' own size" if not data["image_size"] else "{} x {} pixels".format(*data["image_size"])
    crop = " in windows of {} x {}".format(*args["crop"]) if args.get("crop") else ""
    epochs = len(meta.get("history") or [])
    seconds = meta.get("seconds")
    weights = meta.get("encoder_weights")
    return {
        "checkpoint": entry.path,
        "model": f"{' '.join(str(v) for v in meta['config'].values() if isinstance(v, str))}, "
        f"{entry.parameters:,} parameters",
        "command": meta.get("command") or "unknown",
        "data": f"{data['root']} ({data['layout']}, {data['task']}): {counts} images",
        "size": size + crop,
        "recipe": f"{epochs} epochs, batch {args.get('batch_size')}, learning rate {args.get('lr')}",
        "seed": str(args.get("seed")),
        "encoder weights": "none: trained from random numbers" if not weights else in_words(weights),
        "training time": "unknown" if seconds is None else duration(seconds),
        "hardware": "unknown" if not machine else hardware_of(machine),
        "software": f"torch {machine.get('torch')}, Python {machine.get('python')}",
    }


def hardware_of(machine: dict) -> str:
    ranks, threads = machine["ranks"], machine["threads"]
    processes = f"{ranks} process{'es' if ranks > 1 else ''}"
    return f"{machine['processor']}, {processes} of {threads} thread{'s' if threads > 1 else ''}"


def in_words(value: object) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {in_words(item)}" for key, item in value.items())
    return ", ".join(map(in_words, value)) if isinstance(value, list) else str(value)


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def marked(values: list[float | None], best: Callable = max) -> list[tuple[float | None, str]]:
    """Each value with " best" if several are there and this one alone is the best."""
    present = [value for value in values if value is not None]
    alone = len(values) > 1 and bool(present) and present.count(best(present)) == 1
    return [(value, " best" if alone and value == best(present) else "") for value in values]


def bar(value: float | None, mark: str) -> str:
    width = 0 if value is None else 100 * value
    return f'<div class="bar{mark}"><span>{shown(value)}</span><i><b style="width:{width:.1f}%"></b></i></div>'


def shown(value: float | None) -> str:
    return "absent" if value is None else f"{value:.4f}"


def swatch(colour: Sequence[int] | str) -> str:
    code = colour if isinstance(colour, str) else "#{:02x}{:02x}{:02x}".format(*colour)
    return f'<span class="swatch" style="background:{code}"></span>'


def wide(name: str, html: str) -> str:
    """What may be wider than a phone: scrolled by itself, by keys too."""
    return f'<div class="wide" role="region" tabindex="0" aria-label="{escape(name, quote=True)}">{html}</div>'
