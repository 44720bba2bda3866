"""Annotations as they are drawn: labelme's JSON beside images, COCO's JSON with polygons.

Pillow paints them into masks in the order of the file: a later shape covers an earlier one, an
outline belongs to its shape, and what no shape covers is class 0, "background".
"""

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from ..metrics import IGNORED
from .names import File, read_name, stem_of
from .problems import Unreadable

# The kinds of shapes, and how many points one has at least.
POINTS = {
    "polygon": 3,
    "oriented_rectangle": 3,
    "rectangle": 2,
    "circle": 2,
    "line": 2,
    "linestrip": 2,
    "point": 1,
}
LINE_WIDTH = 10  # pixels, as labelme draws
POINT_RADIUS = 5
NO_CLASSES = {"_background_": 0, "__ignore__": IGNORED}  # labelme's words

Points = list[tuple[float, float]]  # x, y in pixels
Shape = tuple[Any, str, Points]  # class, or its label; kind; points


class Drawing(NamedTuple):
    """The shapes drawn on one image, in the order of their file."""

    file: str
    size: tuple[int, int]  # width, height
    shapes: list[Shape]


Named = list[tuple[str, Drawing]]  # the name of an image, and what is drawn on it


def paint(drawing: Drawing) -> np.ndarray:
    """The mask of a drawing, uint8 H x W."""
    mask = Image.new("L", drawing.size)
    draw = ImageDraw.Draw(mask)
    for label, kind, points in drawing.shapes:
        (x, y), (last_x, last_y) = points[0], points[-1]
        if kind == "rectangle":
            left, right = sorted((x, last_x))
            top, bottom = sorted((y, last_y))
            draw.rectangle((left, top, right, bottom), label, label)
        elif kind in ("circle", "point"):
            radius = math.hypot(last_x - x, last_y - y) if kind == "circle" else POINT_RADIUS
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), label, label)
        elif kind in ("line", "linestrip"):
            draw.line(points, label, LINE_WIDTH)
        else:
            draw.polygon(points, label, label)
    return np.asarray(mask)


def read_drawings(
    root: Path,
    sheets: list[str],
    images: list[File],
    problems: list[str],
) -> tuple[str, list[str], dict[str, Drawing]]:
    """COCO or labelme, its classes, image -> what is drawn on it. Adds a problem for each bad one.

    sheets: all JSON files below the root.
    """
    contents = {}
    broken = []
    for sheet in sheets:
        try:
            contents[sheet] = json.loads((root / sheet).read_bytes())
            contents[sheet].pop("imageData", None)  # labelme's copy of the image
        except (OSError, ValueError, AttributeError):
            broken.append(f"{sheet}: cannot be read as a JSON object; copy or export it again")
    kind, read = "coco", _coco
    found = [sheet for sheet in contents if "annotations" in contents[sheet]]
    found = [sheet for sheet in found if "instances" in sheet] or found
    if not found:
        kind, read = "labelme", _labelme
        found = [sheet for sheet in contents if "shapes" in contents[sheet]]
    names: list[str] = []
    drawn = []
    for sheet in found:
        try:
            classes, drawings = read(sheet, contents[sheet])
        except (KeyError, TypeError, ValueError) as error:
            broken.append(f"{sheet}: is not as {kind} writes it ({error!r}); export it again")
        else:
            names += classes
            drawn += drawings
    names = sorted(names) if kind == "labelme" else names
    names = list(dict.fromkeys(["background", *names]))
    names = [name for name in names if name not in NO_CLASSES]
    labels = {name: label for label, name in enumerate(names)} | NO_CLASSES

    by_stem = defaultdict(list)
    for image in images:
        by_stem[image.stem].append(image)
    result: dict[str, Drawing] = {}
    folders = set()
    for name, drawing in drawn:
        try:
            image = _find(by_stem[stem_of(name)], drawing.file, name)
            if image.name in result:
                raise Unreadable(f"is drawn in {result[image.name].file} too; keep one of them")
            for shape in drawing.shapes:
                _check(*shape)
        except Unreadable as reason:
            broken.append(f"{drawing.file}: {name} {reason}")
            continue
        folders.add(image.folder)
        shapes = [(labels[label], kind, points) for label, kind, points in drawing.shapes]
        result[image.name] = drawing._replace(shapes=shapes)
    for file in images:
        if file.folder in folders and file.name not in result:
            broken.append(f"{file.name}: nothing readable is drawn on it; draw it, or remove it")
    problems += broken if drawn else []
    return kind, names, result


def _labelme(sheet: str, content: dict[str, Any]) -> tuple[list[str], Named]:
    """The classes of a labelme file, and what is drawn on its image."""
    shapes = [
        (shape["label"], shape.get("shape_type") or "polygon", [(x, y) for x, y in shape["points"]])
        for shape in content["shapes"]
    ]
    size = content["imageWidth"], content["imageHeight"]
    return [shape["label"] for shape in content["shapes"]], [
        (stem_of(sheet), Drawing(sheet, size, shapes))
    ]


def _coco(sheet: str, content: dict[str, Any]) -> tuple[list[str], Named]:
    """The classes of a COCO file in the order of their ids, and what is drawn on its images."""
    classes = {each["id"]: each["name"] for each in content["categories"]}
    shapes = defaultdict(list)
    for each in content["annotations"]:
        parts = each.get("segmentation") or {}
        kind = "polygon" if isinstance(parts, list) else "RLE mask" if parts else "box"
        for flat in parts if kind == "polygon" else [[]]:
            points = list(zip(flat[::2], flat[1::2], strict=True))
            shapes[each["image_id"]].append((classes[each["category_id"]], kind, points))
    drawings = [
        (
            each["file_name"].replace("\\", "/"),
            Drawing(sheet, (each["width"], each["height"]), shapes[each["id"]]),
        )
        for each in content["images"]
    ]
    return [classes[key] for key in sorted(classes)], drawings


def _find(found: list[File], sheet: str, name: str) -> File:
    """Of the images of this stem the one that a COCO file means. Unreadable if it is not one.

    It is the one whose path ends so, or that of the same split, or in the same folder.
    """
    said = read_name(f"{sheet[:-5]}/")
    for fits in (
        [image for image in found if f"/{image.name}".endswith(f"/{name}")],
        [image for image in found if image.split == said.split],
        [image for image in found if sheet.startswith(f"{image.folder}/")],
    ):
        found = [image for image in found if image in fits] or found
    if len(found) != 1:
        raise Unreadable("is there more than once" if found else "is not there: add the image")
    return found[0]


def _check(label: str, kind: str, points: Points) -> None:
    """Unreadable if a shape cannot be painted."""
    if kind not in POINTS:
        raise Unreadable(f"has a shape of {label} that is a {kind}: export it as polygons")
    if len(points) < POINTS[kind] or not np.isfinite(points).all():
        raise Unreadable(f"has a {kind} of {label} that lacks points: draw it again")
