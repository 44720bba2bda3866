"""The report of one checkpoint or of several side by side: report.html, PNG and CSV files."""

import re
from html import escape
from itertools import chain
from pathlib import Path
from string import Template

from ..files import write_atomically, write_csv
from . import sections
from .curves import CURVE_STYLE
from .pictures import Example
from .tables import Entry, class_table, image_table, score_table

PICTURES = "report_pictures"  # the folder of PNG files; a new report removes older ones
TEMPLATE = Path(__file__).with_name("template.html")


def write_report(
    out: Path,
    entries: list[Entry],
    examples: dict[str, list[Example]],
    *,
    where: str,
    evaluation: dict[str, str],
) -> None:
    """Write report.html, three CSV files and a folder of PNG files.

    examples: heading -> the examples below it.
    where: the data set and split in words, for the title.
    evaluation: name -> fact about this evaluation, for the last section.
    OSError if a file cannot be written.
    """
    scores, classes = score_table(entries), class_table(entries)
    write_csv(out / "scores.csv", scores)
    write_csv(out / "scores_by_class.csv", classes)
    write_csv(out / "scores_by_image.csv", image_table(entries))
    labels = [entry.label for entry in entries]
    write_pictures(out / PICTURES, examples, labels)

    contents = {
        "Scores": sections.score_section(scores, entries),
        "Classes": sections.class_section(classes, entries),
        "Curves": sections.curve_section(entries),
        **{name: sections.example_section(each, entries) for name, each in examples.items()},
        "Confusion": sections.confusion_section(entries),
        "Runs": sections.run_section(entries, evaluation),
    }

    links, body = "", ""
    for heading, html in contents.items():
        links += f'<a href="#{slug(heading)}">{escape(heading)}</a>\n'
        body += f'<h2 id="{slug(heading)}">{escape(heading)}</h2>\n{html}\n'
    page = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(f"{' and '.join(labels)} on {where}"),
        curve_style=CURVE_STYLE,
        links=links,
        sections=body,
    )
    write_atomically(out / "report.html", page)


def write_pictures(folder: Path, examples: dict[str, list[Example]], labels: list[str]) -> None:
    """One PNG for each picture, named by the image, the kind of picture and the model."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    for example in chain(*examples.values()):
        stem = Path(example.name).with_suffix("")
        for picture in example.pictures:
            model = "" if picture.model is None or len(labels) == 1 else labels[picture.model]
            name = slug(f"{stem} {picture.kind} {model}")
            picture.image.save(folder / f"{name}.png")


def slug(text: str) -> str:
    """Letters, digits, dots and dashes only, for file names and anchors."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", text).strip("_")
