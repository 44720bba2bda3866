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
    image: str  # as the file calls it
    size: tuple[int, int]  # width, height
    shapes: list[Shape]


def paint(drawing: Drawing) -> np.ndarray:
    """The mask of a drawing, uint8 H x W. Unreadable if it has shapes that cannot be painted."""
    mask = Image.new("L", drawing.size)
    draw = ImageDraw.Draw(mask)
    for label, kind, points in drawing.shapes:
        if len(points) < POINTS.get(kind, math.inf) or not np.isfinite(points).all():
            raise Unreadable(
                f"{drawing.image} has a shape ({kind}, {len(points)} points) that is not painted: "
                "export it as a whole polygon"
            )
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
    contents: dict[str, dict[str, Any]] = {}
    broken = []
    for name in names:
        if name.endswith(".json"):
            try:
                content = json.loads((root / name).read_bytes())
            except (OSError, ValueError):
                broken.append(f"{name}: cannot be read as JSON; export it again, or remove it")
                continue
            if isinstance(content, dict):
                content.pop("imageData", None)  # labelme's copy of the image
                contents[name] = content
    kind, read = "coco", _coco
    files = [name for name in contents if "categories" in contents[name]]
    files = [name for name in files if "instances" in name] or files  # beside keypoints and stuff
    if not files:
        kind, read = "labelme", _labelme
        files = [name for name in contents if "shapes" in contents[name]]
    if files:
        problems += broken
    classes: list[str] = []
    sketches: list[Drawing] = []
    for file in files:
        try:
            sketches += read(file, contents[file], classes)
        except (KeyError, TypeError, ValueError) as error:
            problems.append(f"{file}: is not as {kind} writes it ({error!r}); export it again")
    if kind == "labelme":
        classes.sort()
    classes = ["background", *dict.fromkeys(name for name in classes if name not in LABELS)]
    labels = {name: label for label, name in enumerate(classes)} | LABELS

    by_stem = defaultdict(list)
    for image in images:
        by_stem[image.stem].append(image)
    drawings: dict[str, Drawing] = {}
    folders = set()
    for sketch in sketches:
        try:
            image = _image_of(sketch, by_stem[stem_of(sketch.image)])
            if image.name in drawings:
                raise Unreadable(f"is drawn in {drawings[image.name].file} too; keep one of them")
        except Unreadable as reason:
            problems.append(f"{sketch.file}: {sketch.image} {reason}")
            continue
        shapes = [(labels[name], kind, points) for name, kind, points in sketch.shapes]
        drawings[image.name] = sketch._replace(shapes=shapes)
        folders.add(image.folder)
    problems += [
        f"{image.name}: nothing readable is drawn on it; draw it, or remove it"
        for image in images
        if image.folder in folders and image.name not in drawings
    ]
    return kind, classes, drawings


def _labelme(file: str, content: dict[str, Any], classes: list[str]) -> Iterator[Drawing]:
    """What is drawn in a labelme file. Adds to the classes."""
    shapes = []
    for shape in content["shapes"]:
        kind = (shape.get("shape_type") or "polygon").replace("oriented_rectangle", "polygon")
        shapes.append((shape["label"], kind, [(float(x), float(y)) for x, y in shape["points"]]))
        classes.append(shape["label"])
    size = int(content["imageWidth"]), int(content["imageHeight"])
    yield Drawing(file, file, size, shapes)


def _coco(file: str, content: dict[str, Any], classes: list[str]) -> Iterator[Drawing]:
    """What is drawn on each image of a COCO file. Adds to the classes in the order of their ids."""
    names = {each["id"]: each["name"] for each in content["categories"]}
    classes += [names[key] for key in sorted(names)]
    shapes = defaultdict(list)
    for each in content["annotations"]:
        parts = each.get("segmentation")
        kind = "RLE mask" if isinstance(parts, dict) else "polygon" if parts else "box"
        for flat in parts if kind == "polygon" else [[]]:
            numbers = list(map(float, flat))
            points = list(zip(numbers[::2], numbers[1::2], strict=True))
            shapes[each["image_id"]].append((names[each["category_id"]], kind, points))
    for each in content["images"]:
        name = each["file_name"].replace("\\", "/")
        size = int(each["width"]), int(each["height"])
        yield Drawing(file, name, size, shapes[each["id"]])


def _image_of(drawing: Drawing, images: list[File]) -> File:
    """Of the images of its stem the one that a drawing is of. Unreadable unless it is one.

    It is the one whose path ends as the file says; or that of the split
    which the file's name says; or that beside the file.
    """
    said = read_name(f"{stem_of(drawing.file)}/").split

    def fits(image: File) -> tuple[bool, ...]:
        beside = drawing.file.startswith(f"{image.folder}/")
        return image.name.endswith(drawing.image), image.split == said, beside

    best = [image for image in images if fits(image) == max(map(fits, images))]
    if len(best) != 1:
        raise Unreadable("is there more than once" if best else "is not there: add the image")
    return best[0]
