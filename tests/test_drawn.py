"""labelme's and COCO's annotations, painted; labelme's own function and pycocotools as oracles."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segmentation.data.datasets import open_dataset
from segmentation.data.drawn import Drawing, paint
from segmentation.errors import BadInput

HEIGHT, WIDTH = 40, 60


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def box(x: int, y: int, right: int, bottom: int) -> list[list[int]]:
    return [[x, y], [right, y], [right, bottom], [x, bottom]]


def labelme(path: Path, *shapes: tuple[str, str, list]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "version": "5.5.0",
        "flags": {},
        "shapes": [
            {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}}
            for label, kind, points in shapes
        ],
        "imagePath": path.with_suffix(".jpg").name,
        "imageData": "aGVsbG8=",
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
    }
    path.write_text(json.dumps(content))


def labelme_set(root: Path, images: str = "{}.jpg", sheets: str = "{}.json") -> np.ndarray:
    """Eight images with a dog over a cat; returns the mask that all have."""
    for index in range(8):
        picture(root / images.format(index), index)
        labelme(
            root / sheets.format(index),
            ("dog", "polygon", box(5, 5, 20, 20)),
            ("cat", "rectangle", [[30, 25], [10, 10]]),
        )
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[5:21, 5:21] = 2
    mask[10:26, 10:31] = 1  # drawn later; its corners are given from below
    return mask


PLACES = [
    ("{}.jpg", "{}.json"),
    ("set/images/{}.jpg", "set/images/{}.json"),
    ("images/{}.png", "labels/{}.json"),
]


@pytest.mark.parametrize(("images", "sheets"), PLACES)
def test_labelme_beside_the_images_or_in_a_folder(tmp_path, images, sheets):
    root = tmp_path / "data"
    mask = labelme_set(root, images, sheets)
    data = open_dataset(str(root))
    assert (data.layout, data.classes) == ("labelme", ["background", "cat", "dog"])
    assert sum(map(len, data.splits.values())) == 8
    for index in range(8):
        assert np.array_equal(data.mask(images.format(index)), mask)
    assert any("background" in note and ".json" in note for note in data.notes)


def test_labelme_in_splits_with_words_for_no_class(tmp_path):
    root = tmp_path / "data"
    for split, count in (("train", 3), ("val", 2)):
        for index in range(count):
            picture(root / split / f"{split}_{index}.jpg", 10 * len(split) + index)
            labelme(
                root / split / f"{split}_{index}.json",
                ("cat", "polygon", box(0, 0, 20, 20)),
                ("_background_", "polygon", box(5, 5, 8, 8)),
                ("__ignore__", "polygon", box(10, 10, 12, 12)),
            )
    data = open_dataset(str(root), task="binary")
    mask = data.mask("val/val_1.jpg")
    assert data.classes == ["background", "cat"] and len(data.splits["train"]) == 3
    assert (mask[6, 6], mask[11, 11], mask[9, 9], mask[30, 30]) == (0, 255, 1, 0)


def test_changed_drawings_are_painted_again(tmp_path):
    root = tmp_path / "data"
    labelme_set(root)
    open_dataset(str(root))
    labelme(root / "3.json", ("dog", "polygon", box(0, 0, 3, 3)), ("cat", "point", [[50, 30]]))
    assert open_dataset(str(root)).mask("3.jpg")[:5, :5].tolist() == [
        *[[2] * 4 + [0]] * 4,
        [0] * 5,
    ]


BAD_LABELME = {
    "image without drawing": (lambda r: (r / "3.json").unlink(), "3.jpg: nothing readable"),
    "drawing without image": (lambda r: (r / "3.jpg").unlink(), "3.json: .* is not there"),
    "broken": (lambda r: (r / "3.json").write_text('{"shapes": ['), "3.json: cannot be read"),
    "no size": (lambda r: (r / "3.json").write_text('{"shapes": []}'), "imageWidth"),
    "size unknown": (
        lambda r: (r / "3.json").write_text(
            '{"shapes": [], "imageWidth": null, "imageHeight": null}'
        ),
        "3.json: is not as labelme writes it",
    ),
    "two points": (
        lambda r: labelme(r / "3.json", ("dog", "polygon", [[1, 1], [2, 2]])),
        r"3.json: .* has a shape \(polygon, 2 points\)",
    ),
    "not finite": (
        lambda r: labelme(r / "3.json", ("dog", "point", [[float("nan"), 2]])),
        r"3.json: .* has a shape \(point, 1 points\)",
    ),
    "mask": (
        lambda r: labelme(r / "3.json", ("dog", "mask", [[1, 1], [2, 2]])),
        r"3.json: .* has a shape \(mask, 2 points\).* export it as a whole polygon",
    ),
    "other size": (
        lambda r: Image.new("RGB", (9, 9)).save(r / "3.jpg"),
        "3.jpg: 9 x 9 pixels, its mask 3.json 60 x 40",
    ),
}


@pytest.mark.parametrize("case", BAD_LABELME)
def test_a_bad_drawing_is_named_and_can_be_left_out(tmp_path, case):
    root = tmp_path / "data"
    labelme_set(root)
    damage, message = BAD_LABELME[case]
    damage(root)
    with pytest.raises(BadInput, match=message):
        open_dataset(str(root))
    data = open_dataset(str(root), skip_bad=True)
    assert sum(map(len, data.splits.values())) == 7


def flat(points: list[list[float]]) -> list[float]:
    return [part for point in points for part in point]


def coco(
    path: Path, names: list[str], first: int = 0, segmentation: object = None, **more: object
) -> None:
    """A file of these images, each with a dog over a cat."""
    annotations = []
    for index, _ in enumerate(names, first):
        for category, points in ((7, box(5, 5, 20, 20)), (3, box(10, 10, 30, 25))):
            parts = [flat(points), flat(box(50, 30, 52, 32))]
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": index,
                    "category_id": category,
                    "segmentation": parts,
                    "iscrowd": 0,
                }
            )
    if segmentation is not None:
        annotations[-1]["segmentation"] = segmentation
    images = [
        {"id": index, "file_name": name, "width": WIDTH, "height": HEIGHT}
        for index, name in enumerate(names, first)
    ]
    content = {
        "info": {},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        **more,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def coco_mask() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[5:21, 5:21] = 2
    mask[10:26, 10:31] = 1
    mask[30:33, 50:53] = 1
    return mask


def check_coco(root: Path, expected: dict[str, int]) -> None:
    data = open_dataset(str(root))
    assert (data.layout, data.classes) == ("coco", ["background", "cat", "dog"])
    assert {split: len(names) for split, names in data.splits.items()} == expected
    for name in (name for names in data.splits.values() for name in names):
        assert np.array_equal(data.mask(name), coco_mask()), name


def test_coco_of_roboflow(tmp_path):
    root = tmp_path / "data"
    for number, split in enumerate(("train", "valid", "test")):
        names = [f"{index}_jpg.rf.abc.jpg" for index in range(3)]  # the same in each split
        for index, name in enumerate(names):
            picture(root / split / name, 10 * number + index)
        coco(root / split / "_annotations.coco.json", names)
    check_coco(root, {"train": 3, "val": 3, "test": 3})


def test_coco_as_it_unpacks(tmp_path):
    root = tmp_path / "data"
    for number, split in enumerate(("train2017", "val2017")):
        names = [f"{10 * number + index:012d}.jpg" for index in range(4)]
        for index, name in enumerate(names):
            picture(root / split / name, 10 * number + index)
        for kind in ("instances", "person_keypoints", "captions"):
            coco(root / f"annotations/{kind}_{split}.json", names, 10 * number)
    check_coco(root, {"train": 4, "val": 4, "test": 0})


def test_coco_of_one_folder(tmp_path):
    names = [f"{index}.jpg" for index in range(8)]
    for index, name in enumerate(names):
        picture(tmp_path / f"cvat/images/{name}", index)
        picture(tmp_path / f"studio/images/{name}", index)
        picture(tmp_path / f"lists/images/{name}", index)
    coco(tmp_path / "cvat/annotations/instances_default.json", names)
    coco(tmp_path / "studio/result.json", [f"images\\{name}" for name in names])
    coco(tmp_path / "lists/instances_train.json", names[:5])
    coco(tmp_path / "lists/instances_val.json", names[5:])
    for name in ("cvat", "studio"):
        check_coco(tmp_path / name, {"train": 5, "val": 2, "test": 1})
    check_coco(tmp_path / "lists", {"train": 5, "val": 3, "test": 0})


BAD_COCO = {
    "RLE": ({"counts": "abc", "size": [40, 60]}, r"RLE mask, 0 points\) .* export"),
    "box": ([], r"box, 0 points\)"),
    "short": ([[1, 2, 3, 4]], r"polygon, 2 points\)"),
}


@pytest.mark.parametrize("case", BAD_COCO)
def test_what_coco_draws_otherwise_is_refused_by_name(tmp_path, case):
    root = tmp_path / "data"
    segmentation, message = BAD_COCO[case]
    names = [f"{index}.jpg" for index in range(8)]
    for index, name in enumerate(names):
        picture(root / "images" / name, index)
    coco(root / "coco.json", names, segmentation=segmentation)
    with pytest.raises(BadInput, match=rf"coco.json: 7.jpg has a shape \({message}"):
        open_dataset(str(root))
    assert "images/7.jpg" not in open_dataset(str(root), skip_bad=True).pairs


def test_shapes_by_hand():
    shapes = [
        (1, "circle", [(20, 20), (25, 20)]),
        (2, "line", [(30, 5), (50, 5)]),
        (3, "point", [(50, 30)]),
    ]
    mask = paint(Drawing("", "", (WIDTH, HEIGHT), shapes))
    rows, columns = np.nonzero(mask == 1)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (15, 25, 15, 25)
    assert (mask[20, 15:26] == 1).all() and mask[15, 15] == 0
    assert (mask[1:10, 31:50] == 2).all() and mask[12, 40] == 0  # ten pixels wide
    assert (mask[30, 45:56] == 3).all() and (mask == 3).sum() == (mask == 1).sum()
    assert np.array_equal(paint(Drawing("", "", (2, 3), [])), np.zeros((3, 2)))


def shapes() -> list[tuple[str, list[list[float]]]]:
    """Shapes of all kinds, some partly outside of the image, some with a shared border."""
    random = np.random.default_rng(0)
    result = [("polygon", box(5, 5, 20, 20)), ("polygon", box(20, 5, 40, 20))]
    for _ in range(20):
        corners = random.integers(3, 9)
        angles = np.sort(random.uniform(0, 2 * np.pi, corners))
        radius = random.uniform(3, 35, corners)  # beyond the border
        points = np.stack([30 + radius * np.cos(angles), 20 + radius * np.sin(angles)], 1)
        result.append(("polygon", points.tolist()))
        for kind, count in (("circle", 2), ("rectangle", 2), ("line", 2), ("linestrip", 4)):
            points = random.uniform((-10, -10), (WIDTH + 10, HEIGHT + 10), (count, 2))
            result.append((kind, points.tolist()))
        result.append(("point", random.uniform((0, 0), (WIDTH, HEIGHT), (1, 2)).tolist()))
    return result


def painted(kind: str, points: list[list[float]]) -> np.ndarray:
    shape = 1, kind, [(x, y) for x, y in points]
    return paint(Drawing("", "", (WIDTH, HEIGHT), [shape])) == 1


def test_shapes_are_those_of_labelme():
    oracle = pytest.importorskip("labelme.utils.shape").shape_to_mask
    for kind, points in shapes():
        ordered = np.sort(points, axis=0).tolist() if kind == "rectangle" else points
        expected = oracle((HEIGHT, WIDTH), ordered, kind)
        assert np.array_equal(painted(kind, points), expected), (kind, points)


def test_polygons_differ_from_cocos_only_at_their_outline():
    """COCO counts the pixels whose centre a polygon covers; Pillow paints its outline too."""
    oracle = pytest.importorskip("pycocotools.mask")
    for kind, points in shapes():
        if kind == "polygon":
            codes = oracle.frPyObjects([flat(points)], HEIGHT, WIDTH)
            expected = oracle.decode(oracle.merge(codes)) == 1
            assert not ((painted(kind, points) != expected) & ~near(points)).any()


def near(points: list[list[float]]) -> np.ndarray:
    """Where the outline is closer than 1.5 pixels."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    result = np.zeros((HEIGHT, WIDTH), bool)
    for (x1, y1), (x2, y2) in zip(points, [*points[1:], points[0]], strict=True):
        length = (x2 - x1) ** 2 + (y2 - y1) ** 2 or 1
        along = np.clip(((x - x1) * (x2 - x1) + (y - y1) * (y2 - y1)) / length, 0, 1)
        far = np.hypot(x - x1 - along * (x2 - x1), y - y1 - along * (y2 - y1))
        result |= far < 1.5
    return result
