"""Annotations as they are drawn: labelme's JSON beside images, COCO's JSON with polygons.

Pillow paints them into masks in the order of the file: a later shape covers an earlier one, an
outline belongs to its shape, and what no shape covers is class 0, "background".
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from ..metrics import IGNORED
from .names import File, read_name, stem_of
from .problems import Unreadable

LINE_WIDTH = 10  # pixels, as labelme draws
POINT_RADIUS = 5
LABELS = {"background": 0, "_background_": 0, "__ignore__": IGNORED}  # the last two of labelme
# The kinds of shapes, and how many points one has at least.
POINTS = {"point": 1, "line": 2, "linestrip": 2, "circle": 2, "rectangle": 2, "polygon": 3}

Points = list[tuple[float, float]]  # x, y in pixels
Shape = tuple[Any, str, Points]  # class, or its label; kind; points


class Drawing(NamedTuple):
    """The shapes drawn on one image, in the order of their file."""

    file: str
    size: tuple[int, int]  # width, height
    shapes: list[Shape]


def paint(drawing: Drawing) -> np.ndarray:
    """The mask of a drawing, uint8 H x W."""
    mask = Image.new("L", drawing.size)
    draw = ImageDraw.Draw(mask)
    for label, kind, points in drawing.shapes:
        if kind == "polygon":
            draw.polygon(points, label, label)
        elif kind == "rectangle":
            corners = np.sort(points, axis=0)
            draw.rectangle(corners.ravel().tolist(), label, label)
        elif kind in ("line", "linestrip"):
            draw.line(points, label, LINE_WIDTH)
        else:
            (x, y), end = points[0], points[-1]
            radius = math.dist((x, y), end) if kind == "circle" else POINT_RADIUS
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), label, label)
    return np.asarray(mask)


def read_drawings(
    root: Path,
    names: list[str],
    images: list[File],
    problems: list[str],
) -> tuple[str, list[str], dict[str, Drawing]]:
    """COCO or labelme, its classes, image -> what is drawn on it. Adds a problem for each bad one.

    names: all files below the root.
    """
    contents = {}
    for name in names:
        if name.endswith(".json"):
            try:
                contents[name] = json.loads((root / name).read_bytes())
                contents[name].pop("imageData", None)  # labelme's copy of the image
            except (OSError, ValueError, AttributeError):
                problems.append(f"{name}: cannot be read as a JSON object; export it again")
    kind, key, read = "coco", "categories", _coco
    if not any(key in content for content in contents.values()):
        kind, key, read = "labelme", "shapes", _labelme
    files = [name for name in contents if key in contents[name]]
    files = [name for name in files if "instances" in name] or files  # COCO has other files too
    sketches: list[tuple[str, Drawing]] = []
    classes: list[str] = []
    for file in files:
        try:
            sketches += read(file, contents[file], classes)
        except (KeyError, TypeError, ValueError) as error:
            problems.append(f"{file}: is not as {kind} writes it ({error!r}); export it again")
    classes = sorted(classes) if kind == "labelme" else classes
    classes = ["background", *dict.fromkeys(name for name in classes if name not in LABELS)]
    labels = {name: label for label, name in enumerate(classes)} | LABELS

    by_stem = defaultdict(list)
    for image in images:
        by_stem[image.stem].append(image)
    drawings: dict[str, Drawing] = {}
    folders = set()
    for name, sketch in sketches:
        try:
            image = _image_of(sketch.file, name, by_stem[stem_of(name)])
            if image.name in drawings:
                raise Unreadable(f"is drawn in {drawings[image.name].file} too; keep one of them")
            shapes = [(labels[label], *_checked(label, *rest)) for label, *rest in sketch.shapes]
        except Unreadable as reason:
            problems.append(f"{sketch.file}: {name} {reason}")
            continue
        drawings[image.name] = sketch._replace(shapes=shapes)
        folders.add(image.folder)
    problems += [
        f"{image.name}: nothing readable is drawn on it; draw it, or remove it"
        for image in images
        if image.folder in folders and image.name not in drawings
    ]
    return kind, classes, drawings


def _labelme(
    file: str,
    content: dict[str, Any],
    classes: list[str],
) -> Iterator[tuple[str, Drawing]]:
    """The name of the image of a labelme file, and what is drawn on it. Adds to the classes."""
    shapes = []
    for shape in content["shapes"]:
        kind = (shape.get("shape_type") or "polygon").replace("oriented_rectangle", "polygon")
        shapes.append((shape["label"], kind, [(x, y) for x, y in shape["points"]]))
        classes.append(shape["label"])
    yield file, Drawing(file, (content["imageWidth"], content["imageHeight"]), shapes)


def _coco(
    file: str,
    content: dict[str, Any],
    classes: list[str],
) -> Iterator[tuple[str, Drawing]]:
    """The name of each image of a COCO file, and what is drawn on it. Adds to the classes."""
    names = {each["id"]: each["name"] for each in content["categories"]}
    classes += [names[key] for key in sorted(names)]
    shapes = defaultdict(list)
    for each in content["annotations"]:
        parts = each.get("segmentation")
        kind = "RLE mask" if isinstance(parts, dict) else "polygon" if parts else "box"
        for flat in parts if kind == "polygon" else [[]]:
            points = list(zip(flat[::2], flat[1::2], strict=True))
            shapes[each["image_id"]].append((names[each["category_id"]], kind, points))
    for each in content["images"]:
        name = each["file_name"].replace("\\", "/")
        yield name, Drawing(file, (each["width"], each["height"]), shapes[each["id"]])


def _image_of(file: str, name: str, images: list[File]) -> File:
    """Of the images of its stem the one that a file calls by a name. Unreadable if it is not one.

    Its path ends so, else it is of the split that the file says, else in the same folder.
    """
    said = read_name(f"{stem_of(file)}/").split

    def fits(image: File) -> tuple[bool, ...]:
        return image.name.endswith(name), image.split == said, file.startswith(f"{image.folder}/")

    best = [image for image in images if fits(image) == max(map(fits, images))]
    if len(best) != 1:
        raise Unreadable("is there more than once" if best else "is not there: add the image")
    return best[0]


def _checked(label: str, kind: str, points: Points) -> tuple[str, Points]:
    """Kind and points of a shape. Unreadable if it cannot be painted."""
    if kind not in POINTS:
        raise Unreadable(f"has a shape of {label} that is a {kind}: export it as polygons")
    if len(points) < POINTS[kind] or not np.isfinite(points).all():
        raise Unreadable(f"has a {kind} of {label} that lacks points: draw it again")
    return kind, points
