"""Layouts, splits, mask modes, label maps, the cache: what must hold for good data."""

import io
import os
import pickle
import shutil
import struct
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from segmentation.data import datasets, scenes
from segmentation.data.datasets import open_dataset
from segmentation.data.labels import parse_label_map
from segmentation.data.splits import split_names
from segmentation.errors import BadInput

PALETTE = [[0, 0, 0], [200, 10, 10], [10, 200, 10], [10, 10, 200]]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "segmentation"


def picture(seed: int, height: int = 12, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def labels(seed: int, classes: int, height: int = 12, width: int = 16) -> np.ndarray:
    mask = np.random.default_rng([seed, 1]).integers(0, classes, (height, width), np.uint8)
    mask.flat[:classes] = np.arange(classes)
    return mask


def palette_image(mask: np.ndarray) -> Image.Image:
    image = Image.fromarray(mask, "L").copy()
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    return image


def write_pairs(
    images: Path, masks: Path, count: int, classes: int, suffix: str = ".png", first: int = 0
) -> None:
    images.mkdir(parents=True, exist_ok=True)
    masks.mkdir(parents=True, exist_ok=True)
    for index in range(first, first + count):
        Image.fromarray(picture(index)).save(images / f"{index:03d}{suffix}")
        palette_image(labels(index, classes)).save(masks / f"{index:03d}.png")


@pytest.mark.parametrize("outer", ["", "classes_dataset/"])
def test_drone_five_classes_with_and_without_the_outer_folder(tmp_path, outer):
    base = tmp_path / "data" / f"{outer}classes_dataset"
    write_pairs(base / "original_images", base / "label_images_semantic", 10, 5)
    data = open_dataset(str(tmp_path / "data"))
    assert (data.layout, data.classes) == (
        "drone",
        ["obstacles", "water", "nature", "moving", "landable"],
    )
    assert data.palette[1] == [14, 135, 204]
    assert data.splits["test"] == [f"{outer}classes_dataset/original_images/009.png"]
    # Palette indices, not colours.
    assert np.array_equal(data.mask(data.splits["test"][0]), labels(9, 5))
    with pytest.raises(BadInput, match="leave out --task binary"):
        open_dataset(str(tmp_path / "data"), task="binary")
    assert open_dataset(str(base)).classes == data.classes  # pointed at the inner folder itself


def test_drone_archive_with_both_sets(tmp_path):
    for name, masks, classes in (
        ("classes", "label_images_semantic", 5),
        ("binary", "images_semantic", 2),
    ):
        base = tmp_path / "data" / f"{name}_dataset" / f"{name}_dataset"
        write_pairs(base / "original_images", base / masks, 9, classes)
    assert open_dataset(str(tmp_path / "data")).layout == "drone"
    data = open_dataset(str(tmp_path / "data"), task="binary")
    assert (data.layout, data.classes) == ("drone binary", ["obstacles", "landable"])
    assert set(np.unique(data.mask(data.splits["val"][0]))) == {0, 1}


def test_drone_originals_are_grouped(tmp_path):
    base = tmp_path / "data" / "dataset" / "semantic_drone_dataset"
    write_pairs(base / "original_images", base / "label_images_semantic", 2, 24, ".jpg")
    # By hand from the table.
    five = [0, 4, 2, 2, 4, 1, 0, 1, 2, 4, 0, 0, 0, 0, 0, 3, 3, 3, 3, 2, 2, 0, 0, 0]
    two = [0, 1, 1, 1, 1, 0, 0, 0, 0, 1, *[0] * 14]
    for task, groups in (("multiclass", five), ("binary", two)):
        data = open_dataset(str(tmp_path / "data"), task=task)
        (name,) = data.splits["val"]
        stored = labels(int(Path(name).stem), 24)
        assert np.array_equal(data.mask(name), np.array(groups)[stored])
        assert data.pixel_counts["val"] == np.bincount(np.array(groups)[stored].ravel()).tolist()


def test_camvid_ignores_void_and_may_lack_a_test_set(tmp_path):
    for split, count in (("train", 3), ("val", 2)):
        write_pairs(
            tmp_path / "cam" / split,
            tmp_path / "cam" / f"{split}annot",
            count,
            12,
            first=10 * count,
        )
    data = open_dataset(str(tmp_path / "cam"))
    assert (data.layout, len(data.classes), data.classes[10]) == ("camvid", 11, "bicyclist")
    assert {split: len(names) for split, names in data.splits.items()} == {
        "train": 3,
        "val": 2,
        "test": 0,
    }
    stored = labels(20, 12)
    assert np.array_equal(data.mask("val/020.png"), np.where(stored == 11, 255, stored))
    void = sum((labels(index, 12) == 11).sum() for index in (20, 21))
    assert sum(data.pixel_counts["val"]) == 2 * 12 * 16 - void
    write_pairs(tmp_path / "cam/test", tmp_path / "cam/testannot", 1, 12, first=90)
    assert open_dataset(str(tmp_path / "cam")).splits["test"] == ["test/090.png"]


def test_generic_with_given_splits_and_with_singular_capital_names(tmp_path):
    for split, first in (("train", 0), ("val", 10), ("test", 20)):
        write_pairs(
            tmp_path / "data" / split / "images",
            tmp_path / "data" / split / "masks",
            2,
            3,
            first=first,
        )
    data = open_dataset(str(tmp_path / "data"))
    assert data.splits["val"] == ["val/images/010.png", "val/images/011.png"]
    assert data.classes == ["0", "1", "2"]
    write_pairs(tmp_path / "other" / "Image", tmp_path / "other" / "Mask", 9, 2, ".JPG")
    assert open_dataset(str(tmp_path / "other"), task="binary").splits["test"] == ["Image/008.JPG"]


def test_splits_are_the_last_eighth_and_four_to_one():
    names = [f"{index:03d}" for index in range(400)]
    splits = split_names(names[::-1], seed=0)
    assert splits["test"] == names[350:]
    assert (len(splits["train"]), len(splits["val"])) == (280, 70)
    assert sorted(splits["train"] + splits["val"]) == names[:350]
    assert split_names(names, 0) == splits != split_names(names, 1)
    assert split_names(names, 1)["test"] == splits["test"]


def test_pairs_by_exact_stem(tmp_path):
    images, masks = tmp_path / "data/images", tmp_path / "data/masks"
    write_pairs(images, masks, 0, 2)
    for index, stem in enumerate(["1", "10", "11", "1.1"]):
        Image.fromarray(picture(index)).save(images / f"{stem}.JPG", "PNG")
        Image.fromarray(labels(index, 2)).save(masks / f"{stem}.png")
    data = open_dataset(str(tmp_path / "data"))
    for index, stem in enumerate(["1", "10", "11", "1.1"]):
        assert np.array_equal(data.image(f"images/{stem}.JPG"), picture(index))
        assert np.array_equal(data.mask(f"images/{stem}.JPG"), labels(index, 2))


def four_bit_grey(mask: np.ndarray) -> bytes:
    """A PNG of 4-bit grey, written by hand: Pillow writes none, and reads label 1 as 17."""
    rows = b"".join(b"\0" + bytes(row[::2] << 4 | row[1::2]) for row in mask)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", mask.shape[1], mask.shape[0], 4, 0, 0, 0, 0))]
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c))
        for kind, c in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_every_mask_mode_reads_to_the_same_labels(tmp_path):
    mask = labels(0, 4)
    colour = np.array(PALETTE, np.uint8)[mask]
    alpha = np.full((*mask.shape, 1), 255, np.uint8)
    files = {
        "L.png": Image.fromarray(mask),
        "P.png": palette_image(mask),
        "LA.png": Image.fromarray(np.stack([mask, alpha[..., 0]], -1), "LA"),
        "I16.png": Image.fromarray(mask.astype(np.uint16)),
        "I.tif": Image.fromarray(mask.astype(np.int32)),
        "RGB.png": Image.fromarray(colour),
        "RGBA.png": Image.fromarray(np.concatenate([colour, alpha], -1)),
        "L.bmp": Image.fromarray(mask),
        "P.gif": palette_image(mask),
    }
    (tmp_path / "data/images").mkdir(parents=True)
    (tmp_path / "data/masks").mkdir()
    for index, (file, image) in enumerate(files.items()):
        image.save(tmp_path / "data/masks" / f"{index}{file}")
        Image.fromarray(picture(index)).save(
            tmp_path / "data/images" / f"{index}{file[: file.index('.')]}.png"
        )
    (tmp_path / "data/masks/grey4.png").write_bytes(four_bit_grey(mask))
    Image.fromarray(picture(99)).save(tmp_path / "data/images/grey4.png")
    rows = [f"{index},class {index},{r},{g},{b}" for index, (r, g, b) in enumerate(PALETTE)]
    (tmp_path / "data/classes.csv").write_text("\n".join(["index,name,r,g,b", *rows]))
    data = open_dataset(str(tmp_path / "data"))
    assert data.classes[3] == "class 3" and data.palette == PALETTE
    for name in (name for names in data.splits.values() for name in names):
        assert np.array_equal(data.mask(name), mask), name


def test_one_bit_masks_are_zero_and_one(tmp_path):
    write_pairs(tmp_path / "data/images", tmp_path / "data/masks", 3, 2)
    mask = labels(7, 2)
    for file in (tmp_path / "data/masks").iterdir():
        Image.fromarray(mask * 255).convert("1").save(file)
    data = open_dataset(str(tmp_path / "data"), task="binary")
    assert np.array_equal(data.mask("images/000.png"), mask)


def test_ignored_colour_row(tmp_path):
    write_pairs(tmp_path / "data/images", tmp_path / "data/masks", 2, 2)
    table = np.array([[0, 0, 0], [255, 0, 0], [9, 9, 9]], np.uint8)
    for file in (tmp_path / "data/masks").iterdir():
        Image.fromarray(table[labels(3, 3)]).save(file)
    (tmp_path / "data/classes.csv").write_text("0,ground,0,0,0\n1,roof,255,0,0\n255,void,9,9,9\n")
    data = open_dataset(str(tmp_path / "data"), task="binary")
    assert data.classes == ["ground", "roof"]
    assert np.array_equal(
        data.mask("images/000.png"), np.where(labels(3, 3) == 2, 255, labels(3, 3))
    )


@pytest.mark.parametrize("mode", ["L", "P", "1", "LA", "RGBA", "CMYK", "RGB"])
def test_eight_bit_images_become_rgb(tmp_path, mode):
    write_pairs(tmp_path / "data/images", tmp_path / "data/masks", 2, 2)
    image = Image.fromarray(picture(50)).convert(mode)
    path = tmp_path / "data/images" / ("002.tif" if mode == "CMYK" else "002.png")
    image.save(path)
    Image.fromarray(labels(2, 2)).save(tmp_path / "data/masks/002.png")
    read = open_dataset(str(tmp_path / "data")).image(f"images/{path.name}")
    assert read.shape == (12, 16, 3) and read.dtype == np.uint8
    assert np.array_equal(read, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("turn", [5, 6, 7, 8])
def test_exif_rotation_follows_the_mask(tmp_path, turn):
    write_pairs(tmp_path / "data/images", tmp_path / "data/masks", 2, 2)
    tag = Image.Exif()
    tag[274] = turn
    stored = Image.fromarray(np.kron(picture(5, 16, 12), np.ones((8, 8, 1), np.uint8)))
    stored.save(tmp_path / "data/images/002.jpg", exif=tag, quality=95)
    Image.fromarray(np.kron(labels(5, 2), np.ones((8, 8), np.uint8))).save(
        tmp_path / "data/masks/002.png"
    )
    data = open_dataset(str(tmp_path / "data"))
    upright = ImageOps.exif_transpose(Image.open(tmp_path / "data/images/002.jpg"))
    assert np.array_equal(data.image("images/002.jpg"), np.asarray(upright))


def test_label_map_comes_before_everything(tmp_path):
    write_pairs(tmp_path / "data/images", tmp_path / "data/masks", 4, 2)
    for index in range(4):
        Image.fromarray(labels(index, 2) * 255).save(tmp_path / f"data/masks/{index:03d}.png")
    with pytest.raises(BadInput, match="--label-map 255=1"):
        open_dataset(str(tmp_path / "data"), task="binary")
    data = open_dataset(str(tmp_path / "data"), task="binary", label_map={255: 1})
    assert np.array_equal(data.mask("images/000.png"), labels(0, 2)) and len(data.classes) == 2
    soft = np.clip(
        labels(0, 2) * 255 + np.random.default_rng(0).integers(-90, 90, (12, 16)), 0, 255
    ).astype(np.uint8)
    Image.fromarray(soft).save(tmp_path / "data/masks/000.png")
    data = open_dataset(str(tmp_path / "data"), label_map=parse_label_map("0-127=0,128-255=1"))
    assert np.array_equal(data.mask("images/000.png"), labels(0, 2))


def test_parse_label_map():
    assert parse_label_map("255=1, 3-5=0") == {255: 1, 3: 0, 4: 0, 5: 0}
    assert len(parse_label_map("0-127=0,128-255=1")) == 256


def test_image_size_resizes_images_and_leaves_masks(tmp_path):
    images, masks = tmp_path / "data/images", tmp_path / "data/masks"
    write_pairs(images, masks, 0, 2)
    stripes = np.zeros((128, 96, 3), np.uint8)
    stripes[:, ::2] = 200  # one pixel wide: anything but an area average aliases
    for stem in "ab":
        Image.fromarray(stripes + ord(stem) % 2).save(images / f"{stem}.png")
        Image.fromarray(labels(0, 2, 128, 96)).save(masks / f"{stem}.png")
    data = open_dataset(str(tmp_path / "data"), image_size=(64, 32))
    (name,) = data.splits["train"]
    assert data.image(name).shape == (64, 32, 3) and data.mask(name).shape == (128, 96)
    assert abs(data.image(name).astype(int) - 100)[:, 2:-2].max() <= 20


def test_cache_is_mapped_keyed_and_quick(tmp_path, cache, monkeypatch):
    write_pairs(tmp_path / "data/images", tmp_path / "data/masks", 8, 3)
    first = open_dataset(str(tmp_path / "data"))
    assert isinstance(first.image("images/000.png"), np.memmap) and isinstance(
        first.mask("images/000.png"), np.memmap
    )
    assert not list(cache.glob("new-*"))
    before = sorted(cache.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", lambda *_: pytest.fail("a warm cache decodes nothing"))
        assert open_dataset(str(tmp_path / "data")) == first
    assert sorted(cache.iterdir()) == before
    Image.fromarray(picture(77)).save(tmp_path / "data/images/000.png")
    os.utime(tmp_path / "data/images/000.png", ns=(1, time.time_ns() + 10**9))
    assert np.array_equal(open_dataset(str(tmp_path / "data")).image("images/000.png"), picture(77))
    other = open_dataset(str(tmp_path / "data"), label_map={2: 255})
    assert other.classes == ["0", "1"] and 2 in first.mask("images/001.png")


@pytest.mark.parametrize("damage", ["array.npy", "record.json"])
def test_damaged_cache_entries_are_made_again(tmp_path, cache, damage):
    write_pairs(tmp_path / "data/images", tmp_path / "data/masks", 4, 3)
    open_dataset(str(tmp_path / "data"))
    for file in cache.glob(f"*/{damage}"):
        file.write_bytes(file.read_bytes()[:20])
    data = open_dataset(str(tmp_path / "data"))
    assert np.array_equal(data.image("images/001.png"), picture(1))


def test_stored_splits_are_used_as_they_are(tmp_path):
    write_pairs(tmp_path / "data/images", tmp_path / "data/masks", 16, 3)
    first = open_dataset(str(tmp_path / "data"), seed=3)
    stream = io.BytesIO()
    torch.save(first.describe(), stream)
    stream.seek(0)
    stored = torch.load(stream, weights_only=True)
    # Would change every split.
    write_pairs(tmp_path / "data/images", tmp_path / "data/masks", 9, 3, first=100)
    (tmp_path / "data/images/999.png").write_bytes(b"")
    stored["data"] = stored.pop("root")
    assert stored.pop("layout") == "generic"
    assert stored.pop("pixels") == first.pixel_counts
    data = open_dataset(**stored)
    assert any("1 images in images/" in note for note in data.notes)
    assert replace(data, notes=first.notes) == first
    (tmp_path / "data/images/002.png").unlink()
    with pytest.raises(BadInput, match=r"images/002.png: in the stored (train|val) split"):
        open_dataset(**stored)


def test_a_reopened_set_has_the_names_of_its_own_classes(tmp_path):
    """Other names, or the same in another order, are refused though every file is where it was."""
    write_pairs(tmp_path / "data/images", tmp_path / "data/masks", 16, 2)
    table = tmp_path / "data/classes.csv"
    table.write_text("0,sky,1,1,1\n1,road,2,2,2\n")
    data = open_dataset(str(tmp_path / "data"))
    meta = {"data": data.describe(), "classes": data.classes, "palette": data.palette}
    assert datasets.reopen_dataset(meta).classes == ["sky", "road"]
    table.write_text("0,road,2,2,2\n1,sky,1,1,1\n")
    with pytest.raises(BadInput, match="2 classes road, sky, the checkpoint knows 2: sky, road"):
        datasets.reopen_dataset(meta)


def test_a_reopened_set_counts_the_checkpoints_classes(tmp_path):
    write_pairs(tmp_path / "data/images", tmp_path / "data/masks", 16, 3)
    data = open_dataset(str(tmp_path / "data"))
    meta = {
        "data": data.describe(),
        "classes": [*data.classes, "3"],
        "palette": [*data.palette, [1, 2, 3]],
    }
    again = datasets.reopen_dataset(meta)  # as if a mask with label 3 were gone
    assert again.classes == ["0", "1", "2", "3"] and again.palette[3] == [1, 2, 3]
    assert again.pixel_counts == {"test": [*data.pixel_counts["test"], 0]}


def test_skip_bad_leaves_out_and_records(tmp_path):
    write_pairs(tmp_path / "data/images", tmp_path / "data/masks", 16, 3)
    (tmp_path / "data/images/003.png").write_bytes(b"")
    (tmp_path / "data/masks/005.png").unlink()
    data = open_dataset(str(tmp_path / "data"), skip_bad=True)
    names = [name for names in data.splits.values() for name in names]
    assert len(names) == 14 and "images/003.png" not in names
    assert [sentence.split(":")[0] for sentence in data.skipped] == [
        "images/005.png",
        "images/003.png",
    ]


def test_data_set_travels_to_spawned_workers(tmp_path):
    write_pairs(tmp_path / "data/images", tmp_path / "data/masks", 4, 3)
    data = pickle.loads(pickle.dumps(open_dataset(str(tmp_path / "data"))))
    assert np.array_equal(data.image("images/000.png"), picture(0))


def test_scenes(monkeypatch):
    drawn = []

    def render(seed, split, index, size):
        drawn.append((seed, split, index))
        return picture(index, *size), np.uint8(np.arange(size[0] * size[1]).reshape(size) % 24)

    monkeypatch.setattr(scenes, "render", render)
    monkeypatch.setattr(scenes, "IMAGES_PER_SPLIT", {"train": 3, "val": 2, "test": 1})
    data = open_dataset("scenes", image_size=(32, 48))
    assert data.splits["train"] == ["train/0000", "train/0001", "train/0002"]
    assert np.array_equal(data.image("val/0001"), picture(1, 32, 48))
    assert data.mask("val/0001")[0, :6].tolist() == [0, 4, 2, 2, 4, 1]
    assert data.pixel_counts["test"] == [10 * 64, 2 * 64, 5 * 64, 4 * 64, 3 * 64]
    binary = open_dataset("scenes", image_size=(32, 48), task="binary", splits=data.splits)
    assert len(drawn) == 6 and binary.mask("val/0001")[0, :6].tolist() == [0, 1, 1, 1, 1, 0]
    assert open_dataset("scenes", seed=1).image_size == (256, 256) and len(drawn) == 12


def test_scenes_are_drawn_again_when_the_renderer_changes(tmp_path, monkeypatch):
    drawn = []

    def render(seed, split, index, size):
        drawn.append(split)
        return picture(index, *size), np.zeros(size, np.uint8)

    renderer = Path(shutil.copy(scenes.__file__, tmp_path))
    monkeypatch.setattr(scenes, "__file__", str(renderer))
    monkeypatch.setattr(scenes, "render", render)
    monkeypatch.setattr(scenes, "IMAGES_PER_SPLIT", {"train": 1, "val": 1, "test": 1})
    for _ in range(2):
        open_dataset("scenes", image_size=(32, 32))
    assert len(drawn) == 3
    renderer.write_text("")
    open_dataset("scenes", image_size=(32, 32))
    assert len(drawn) == 6


def test_real_scenes_have_exact_masks_of_their_size(monkeypatch):
    monkeypatch.setattr(scenes, "IMAGES_PER_SPLIT", {"train": 1, "val": 1, "test": 1})
    data = open_dataset("scenes", image_size=(64, 96))
    image, ids = scenes.render(0, "train", 0, (64, 96))
    assert np.array_equal(data.image("train/0000"), image)
    assert data.mask("train/0000").shape == ids.shape == (64, 96)
    assert sum(data.pixel_counts["train"]) == 64 * 96
