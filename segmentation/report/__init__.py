"""The report of one checkpoint, or of several side by side: report.html, its pictures as PNG, its tables as CSV."""

import csv
import io
import re
from html import escape
from pathlib import Path

from ..files import write_atomically
from .curves import STYLE
from .page import page
from .sections import class_section, confusion, curve_section, example_section, run_section, score_section
from .tables import Entry, Example, class_table, image_table, pictures_of, score_table

PICTURES = "report_pictures"  # the folder of PNG files; those of an earlier report are removed from it


def write_report(
    out: Path, entries: list[Entry], examples: dict[str, list[Example]], *, where: str, evaluation: dict[str, str]
) -> None:
    """Write report.html, three CSV files and a folder of PNG files.

    examples: heading -> what stands below it. where: the split in words. evaluation: facts for the last section.
    OSError if a file cannot be written.
    """
    classes, palette = entries[0].meta["classes"], entries[0].meta["palette"]
    write_table(out / "scores.csv", score_table(entries))
    write_table(out / "scores_by_class.csv", class_table(entries))
    write_table(out / "scores_by_image.csv", image_table(entries))
    folder = out / PICTURES
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    for example in (example for listed in examples.values() for example in listed):
        name = plain(str(Path(example.name).with_suffix("")))
        for kind, picture in pictures_of(example, entries):
            picture.save(folder / f"{name}_{plain(kind)}.png")
    title = f"{' and '.join(entry.label for entry in entries)} on {where}"
    sections = {
        "Scores": score_section(entries),
        "Classes": class_section(entries, palette),
        "Curves": curve_section(entries),
        **{name: example_section(listed, entries, classes, palette) for name, listed in examples.items()},
        "Confusion": "".join(confusion(entry, len(entries) > 1) for entry in entries),
        "Runs": run_section(entries, evaluation),
    }
    links = "".join(f'<a href="#{plain(name)}">{escape(name)}</a>' for name in sections)
    body = f'<h1>{escape(title)}</h1><nav aria-label="Sections">{links}</nav><main>'
    body += "".join(f'<h2 id="{plain(name)}">{escape(name)}</h2>{html}' for name, html in sections.items())
    write_atomically(out / "report.html", page(title, STYLE, body + "</main>").encode())


def write_table(path: Path, rows: list[list]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_atomically(path, text.getvalue().encode())


def plain(text: str) -> str:
    """Letters, digits, dots and dashes only: for file names and anchors."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", text).strip("_")
