"""Data sets as archives unpack: recognised, paired, and equal to the pixel to what was drawn."""

import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from PIL import Image

from evaluate import find_images
from segmentation.data.datasets import SegmentationDataset, open_dataset
from segmentation.errors import BadInput

SIZE = (12, 16)
SPLITS = {"train": 4, "val": 2, "test": 2}
COLOURS = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0], [0, 0, 200]], np.uint8)
Save = Callable[[np.ndarray, Path], None]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def drawn(seed: int, classes: int = 4) -> np.ndarray:
    mask = np.random.default_rng([seed, 1]).integers(0, classes, SIZE, np.uint8)
    mask.flat[:classes] = np.arange(classes)
    return mask


def grey(mask: np.ndarray, path: Path) -> None:
    Image.fromarray(mask).save(path)


def palette(mask: np.ndarray, path: Path) -> None:
    image = Image.fromarray(mask)
    image.putpalette(COLOURS.ravel().tolist())
    image.save(path)


def colour(mask: np.ndarray, path: Path) -> None:
    Image.fromarray(COLOURS[mask]).save(path)


def three_channels(mask: np.ndarray, path: Path) -> None:
    Image.fromarray(np.stack([mask] * 3, -1)).save(path)


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def write(
    root: Path, image: str, mask: str, names: list[str], save: Save = grey, classes: int = 4
) -> dict[str, np.ndarray]:
    """Pairs at these patterns, {} being the name; returns image -> what was drawn."""
    result = {}
    for name in names:
        seed = crc32((image + name).encode())
        picture(root / image.format(name), seed)
        (root / mask.format(name)).parent.mkdir(parents=True, exist_ok=True)
        result[image.format(name)] = drawn(seed, classes)
        save(result[image.format(name)], root / mask.format(name))
    return result


def numbers(count: int = 8, first: int = 0) -> list[str]:
    return [f"{index:03d}" for index in range(first, first + count)]


def each_split(
    root: Path,
    image: str,
    mask: str,
    words: str = "train val test",
    save: Save = grey,
    classes: int = 4,
) -> dict[str, np.ndarray]:
    """As `write`, with {split} in the patterns."""
    result = {}
    for index, word in enumerate(words.split()):
        places = [pattern.replace("{split}", word) for pattern in (image, mask)]
        names = numbers(list(SPLITS.values())[index], 10 * index)
        result |= write(root, *places, names, save, classes)
    return result


def check(root: Path, expected: dict[str, np.ndarray], **options: object) -> SegmentationDataset:
    """Every drawn pair is there, and equal to the pixel."""
    data = open_dataset(str(root), **options)
    assert sorted(name for names in data.splits.values() for name in names) == sorted(expected)
    for name, mask in expected.items():
        assert np.array_equal(data.mask(name), mask), name
    assert data.notes
    return data


def counts(data: SegmentationDataset) -> dict[str, int]:
    return {split: len(names) for split, names in data.splits.items()}


FOLDERS = [
    ("images", "masks"),
    ("Images", "Labels"),
    ("imgs", "masks"),
    ("img", "label"),
    ("data/imgs", "data/masks"),
    ("JPEGImages", "SegmentationClass"),
    ("JPEGImages", "SegmentationClassPNG"),
    ("images", "annotations"),
    ("images", "annotations/trimaps"),
    ("images", "gt"),
    ("images", "annot"),
    ("image", "ground_truth"),
    ("images_png", "masks_png"),
    ("Original_Images", "Segmentation_Masks"),
    ("semantic segmentation dataset/Tile 1/images", "semantic segmentation dataset/Tile 1/masks"),
    ("top", "gts_for_participants"),
]


@pytest.mark.parametrize(("images", "masks"), FOLDERS)
def test_usual_names_of_two_folders(tmp_path, images, masks):
    root = tmp_path / "data"
    check(root, write(root, f"{images}/{{}}.jpg", f"{masks}/{{}}.png", numbers()))


SPLIT_FOLDERS = [
    ("{split}/images", "{split}/masks", "train val test"),
    ("{split}/Images", "{split}/Labels", "Train Val Test"),
    ("{split}/images", "{split}/gt", "training validation testing"),
    ("{split}/img", "{split}/annotations", "train valid test"),
    ("images/{split}", "masks/{split}", "train val test"),
    ("img_dir/{split}", "ann_dir/{split}", "train val test"),
    ("outer/images/{split}", "outer/labels/{split}", "train valid test"),
    ("{split}", "{split}annot", "train val test"),
    ("{split}", "{split}_labels", "train val test"),
    ("{split}", "{split}_masks", "train val test"),
    ("{split}_images", "{split}_masks", "train val test"),
    ("{split}/Urban/images_png", "{split}/Urban/masks_png", "Train Val Test"),
    ("{split}/{split}/Rural/images_png", "{split}/{split}/Rural/masks_png", "Train Val Test"),
    ("{split}/image_2", "{split}/semantic", "training val testing"),
    ("{split}/{split}-org-img", "{split}/{split}-label-img", "train val test"),
    ("bdd/images/10k/{split}", "bdd/labels/sem_seg/masks/{split}", "train val test"),
    ("images/{split}2017", "stuffthingmaps/{split}2017", "train val test"),
]


@pytest.mark.parametrize(("images", "masks", "words"), SPLIT_FOLDERS)
def test_usual_names_of_splits(tmp_path, images, masks, words):
    root = tmp_path / "data"
    expected = each_split(root, f"{images}/{{}}.png", f"{masks}/{{}}.png", words)
    assert counts(check(root, expected)) == SPLITS


ADDED = [
    ("images/{}.jpg", "masks/{}_mask.png"),
    ("images/{}.jpg", "masks/{}_mask.gif"),
    ("images/{}.jpg", "masks/{}.jpg.png"),
    ("images/{}.png", "labels/{}_L.png"),
    ("images/{}.png", "labels/{}_P.png"),
    ("images/{}.png", "masks/{}_lab.png"),
    ("images/{}.png", "masks/{}_anything at all.png"),
    ("images/{}.png", "masks/manual-{}.png"),
    ("images/img_{}.png", "masks/mask_{}.png"),
    ("images/{}_sat.jpg", "masks/{}_mask.png"),
    ("{}.jpg", "{}_mask.png"),
    ("{}_sat.jpg", "{}_mask.png"),
    ("images/{}.jpg", "images/{}_mask.png"),
    ("segmentation labels/{}.jpg", "segmentation labels/{}_mask.png"),
    ("segmentation labels/train/{}.jpg", "segmentation labels/train_masks/{}.png"),
    ("kaggle_3m/TCGA/TCGA_{}.tif", "kaggle_3m/TCGA/TCGA_{}_mask.tif"),
    (
        "ISIC_Task1-2_Training_Input/ISIC_{}.jpg",
        "ISIC_Task1_Training_GroundTruth/ISIC_{}_segmentation.png",
    ),
]


@pytest.mark.parametrize(("image", "mask"), ADDED)
def test_what_is_added_to_the_names_of_all_masks(tmp_path, image, mask):
    root = tmp_path / "data"
    check(root, write(root, image, mask, [*numbers(8, 1), "11", "1"]))


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("frames/{}.jpg", "frame_labels/{}.png"),  # a word that all frames have
        ("images/{}.jpg", "masks/{}.png"),
    ],
)
def test_folders_of_scenes_pair_whole(tmp_path, images, masks):
    root = tmp_path / "data"
    names = [f"{place}/{index}" for place in ("creek", "park-1") for index in range(4)]
    check(root, write(root, images, masks, names))


def test_masks_of_one_folder_or_of_several_pair_by_their_names(tmp_path):
    names = [f"{place}{index}" for place in ("a", "park") for index in range(4)]
    expected = write(tmp_path / "1", "images/{}.jpg", "masks/{}.png", names)
    (tmp_path / "2").mkdir()
    for name in names:
        mask = tmp_path / "1/masks" / f"{name}.png"
        place = tmp_path / "2/masks" / name[:-1]
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(mask, place)
    shutil.copytree(tmp_path / "1/images", tmp_path / "2/images")
    check(tmp_path / "2", expected)


@pytest.mark.parametrize("masks", ["masks/{}", "masks_{}", "v{}/labels"])
def test_two_masks_of_one_image_are_refused(tmp_path, masks):
    root = tmp_path / "data"
    for kind in ("car", "sky"):
        write(root, "images/{}.png", f"{masks.format(kind)}/{{}}.png", numbers())
    first, second = (f"{masks.format(kind)}/000.png" for kind in ("car", "sky"))
    with pytest.raises(BadInput, match=f"{second}: same name as {first}; keep one of them"):
        open_dataset(str(root))


def test_letters_as_macos_writes_them(tmp_path):
    root = tmp_path / "data"
    names = [f"M\u00fcll {index}" for index in range(8)]
    expected = write(root, "images/{}.png", "masks/{}.png", names)
    for name in names:
        mask = root / f"masks/{name}.png"
        mask.rename(mask.with_name(unicodedata.normalize("NFD", mask.name)))
    check(root, expected)


LINES = {
    "names": "{name}",
    "paths": "images/{name}.jpg",
    "image and mask": "images/{name}.jpg masks/{name}_label.png",
    "with a comma": "images/{name}.jpg,masks/{name}_label.png",
    "columns": "{name} 1 2 1",
    "blank lines": "{name}\n\n",
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES.keys())
def test_lists_of_splits(tmp_path, line):
    root = tmp_path / "data"
    expected = write(root, "images/{}.jpg", "masks/{}_label.png", numbers(9))
    listed = {"train": numbers(4), "val": numbers(1, 4), "test": numbers(2, 5)}
    for split, names in listed.items():
        (root / f"{split}.txt").write_text("\n".join(line.format(name=name) for name in names))
    for name in numbers(2, 7):
        del expected[f"images/{name}.jpg"]
    data = check(root, expected)
    for split, names in listed.items():
        assert data.splits[split] == [f"images/{name}.jpg" for name in names]
    assert any("2 images in images/, 2 images in masks/" in note for note in data.notes)


def test_a_listed_name_may_have_spaces(tmp_path):
    root = tmp_path / "data"
    expected = write(root, "images/{}.jpg", "masks/{}.png", ["b", "b 2", "c"])
    (root / "train.txt").write_text("b\nc")
    (root / "val.txt").write_text("b 2")
    assert check(root, expected).splits["val"] == ["images/b 2.jpg"]


def test_lists_tell_sequences_apart(tmp_path):
    root = tmp_path / "data"
    names = [f"seq{sequence}/frame_{index}" for sequence in (1, 2) for index in range(4)]
    expected = write(root, "JPEGImages/{}.jpg", "SegmentationClass/{}.png", names)
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(names[:6]))
    (lists / "val.txt").write_text("\n".join(names[6:]))
    assert counts(check(root, expected)) == {"train": 6, "val": 2, "test": 0}


def test_a_list_of_other_names_is_said_to_be_unread(tmp_path):
    root = tmp_path / "data"
    expected = write(root, "images/{}.jpg", "masks/{}.png", numbers())
    (root / "val.txt").write_text("x\ny\n")
    assert "val.txt names none of the images, and is not read" in check(root, expected).notes


def test_a_set_named_after_a_split_says_the_way_out(tmp_path):
    root = tmp_path / "data"
    expected = write(root, "Test_Site/images/{}.png", "Test_Site/masks/{}.png", numbers())
    with pytest.raises(BadInput, match=r"Test_Site/masks/ is val or test .* the folder inside"):
        open_dataset(str(root))
    check(
        root / "Test_Site",
        {Path(name).relative_to("Test_Site").as_posix(): mask for name, mask in expected.items()},
    )


def test_a_set_with_train_alone_is_split_anew(tmp_path):
    root = tmp_path / "data"
    expected = write(root, "train/images/{}.png", "train/masks/{}.png", numbers(16))
    picture(root / "test/images/900.png", 900)
    data = check(root, expected)
    assert counts(data) == {"train": 11, "val": 3, "test": 2}
    assert any("1 images in test/images/" in note for note in data.notes)


def test_val_is_drawn_from_train_where_only_test_is_given(tmp_path):
    root = tmp_path / "data"
    expected = write(root, "train/{}_sat.jpg", "train/{}_mask.png", numbers(10))
    expected |= write(root, "test/{}_sat.jpg", "test/{}_mask.png", numbers(3, 20))
    picture(root / "valid/99_sat.jpg", 99)
    data = check(root, expected)
    assert counts(data) == {"train": 8, "val": 2, "test": 3}
    assert any("val" in note and "drawn from train" in note for note in data.notes)
    assert any("1 images in valid/" in note for note in data.notes)


def test_carvana(tmp_path):
    root = tmp_path / "data"
    expected = write(root, "train/{}.jpg", "train_masks/{}_mask.gif", numbers(16), palette, 2)
    for index in range(3):
        picture(root / f"test/{index}.jpg", index)
    data = check(root, expected, task="binary")
    assert any("3 images in test/" in note for note in data.notes)


def test_pascal_voc_reads_its_lists(tmp_path):
    root = tmp_path / "VOCdevkit"
    base = root / "VOC2012"
    place = "VOC2012/JPEGImages/{}.jpg", "VOC2012/SegmentationClass/{}.png"
    expected = write(root, *place, numbers(8), palette)
    for index in range(50, 55):  # photographs for other tasks
        picture(base / f"JPEGImages/{index:03d}.jpg", index)
    for index in range(8):
        picture(base / f"SegmentationObject/{index:03d}.png", index)
    lists = base / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("000\n003\n004\n005\n")
    (lists / "val.txt").write_text("001\n002\n006\n007\n")
    (lists / "trainval.txt").write_text("\n".join(numbers(8)))
    (base / "ImageSets/Main").mkdir()
    (base / "ImageSets/Main/val.txt").write_text("000\n050\n")
    data = check(root, expected)
    assert data.layout == "pascal voc"
    assert [Path(name).stem for name in data.splits["train"]] == ["000", "003", "004", "005"]
    assert counts(data) == {"train": 4, "val": 4, "test": 0}
    (lists / "val.txt").write_text("001\n002\n006\n007\n777\n")
    with pytest.raises(BadInput, match="777: listed"):
        open_dataset(str(root))


LABELMAP = """# label:color_rgb:parts:actions
background:0,0,0::
road:128,0,0::
tree:0,128,0::
water:0,0,200::
"""


@pytest.mark.parametrize("save", [colour, palette])
def test_cvat_segmentation_mask(tmp_path, save):
    root = tmp_path / "data"
    expected = write(root, "JPEGImages/{}.png", "SegmentationClass/{}.png", numbers(), save)
    write(root, "JPEGImages/{}.png", "SegmentationObject/{}.png", numbers(), save)
    (root / "labelmap.txt").write_text(LABELMAP)
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/default.txt").write_text("\n".join(numbers()))
    data = check(root, expected)
    assert data.classes == ["background", "road", "tree", "water"]
    assert data.palette == COLOURS.tolist()
    assert any("labelmap.txt" in note for note in data.notes)


def test_cvat_camvid_has_the_classes_of_its_table(tmp_path):
    root = tmp_path / "data"
    expected = each_split(root, "{split}/{}.png", "{split}annot/{}.png", save=colour)
    rows = ["0 0 0 background", "128 0 0 road", "0 128 0\t\tbig tree", "0 0 200 water"]
    (root / "label_colors.txt").write_text("\n".join(rows))
    (root / "train.txt").write_text("/train/000.png /trainannot/000.png\n")
    data = check(root, expected)
    assert data.classes == ["background", "road", "big tree", "water"] and counts(data) == SPLITS
    other = tmp_path / "default"
    expected = write(other, "default/{}.png", "defaultannot/{}.png", numbers(), colour)
    (other / "label_colors.txt").write_text("\n".join(rows))
    check(other, expected)


def test_camvid_without_a_table_says_what_it_is_taken_for(tmp_path):
    root = tmp_path / "data"
    each_split(root, "{split}/{}.png", "{split}annot/{}.png", classes=3)
    data = open_dataset(str(root))
    assert data.classes[0] == "sky"
    assert any("11 classes" in note and "classes.csv" in note for note in data.notes)
    (root / "classes.csv").write_text("0,a,1,1,1\n1,b,2,2,2\n2,c,3,3,3\n")
    assert open_dataset(str(root)).classes == ["a", "b", "c"]


def test_camvid_of_kaggle_and_of_fast_ai(tmp_path):
    root = tmp_path / "kaggle"
    patterns = "CamVid/{split}/{}.png", "CamVid/{split}_labels/{}_L.png"
    expected = each_split(root, *patterns, save=colour)
    rows = ["name,r,g,b", "Sky,0,0,0", "Road,128,0,0", "Tree,0,128,0", "Car,0,0,200"]
    (root / "CamVid/class_dict.csv").write_text("\n".join(rows))
    data = check(root, expected)
    assert data.classes == ["Sky", "Road", "Tree", "Car"] and counts(data) == SPLITS
    root = tmp_path / "fastai"
    expected = write(root, "camvid/images/{}.png", "camvid/labels/{}_P.png", numbers())
    (root / "camvid/codes.txt").write_text("Animal\nArchway\nBicyclist\nVoid\n")
    (root / "camvid/valid.txt").write_text("001.png\n005.png\n")
    data = check(root, expected)
    assert data.classes == ["Animal", "Archway", "Bicyclist", "Void"]
    assert data.splits["val"] == ["camvid/images/001.png", "camvid/images/005.png"]
    assert counts(data) == {"train": 6, "val": 2, "test": 0}


TRAIN_CLASSES = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]


@pytest.mark.parametrize("outer", ["", "{}_trainvaltest/"])
@pytest.mark.parametrize("train_ids", [True, False])
def test_cityscapes(tmp_path, outer, train_ids):
    """Its names and ids as cityscapesScripts list them."""
    root = tmp_path / "data"
    expected = {}
    for split, count in SPLITS.items():
        for index in range(count):
            town = f"{split}/town{index % 2}/town_{index:06d}_000019"
            name = f"{outer.format('leftImg8bit')}leftImg8bit/{town}_leftImg8bit.png"
            fine = root / f"{outer.format('gtFine')}gtFine/{town}_gtFine_"
            picture(root / name, crc32(town.encode()))
            ids = drawn(index, 34)
            fine.parent.mkdir(parents=True, exist_ok=True)
            grey(ids, Path(f"{fine}labelIds.png"))
            grey(ids, Path(f"{fine}instanceIds.png"))
            colour(ids % 4, Path(f"{fine}color.png"))
            Path(f"{fine}polygons.json").write_text("{}")
            expected[name] = np.full(SIZE, 255, np.uint8)
            for label, stored in enumerate(TRAIN_CLASSES):
                expected[name][ids == stored] = label
            if train_ids:  # these may be the user's own, and are taken before labelIds
                expected[name][expected[name] == 3] = 4
                grey(expected[name], Path(f"{fine}labelTrainIds.png"))
    data = check(root, expected)
    assert (data.layout, counts(data)) == ("cityscapes", SPLITS)
    assert (len(data.classes), data.classes[0], data.classes[18]) == (19, "road", "bicycle")


@pytest.mark.parametrize("named", [True, False])
def test_ade20k(tmp_path, named):
    root = tmp_path / "data"
    base = "ADEChallengeData2016"
    expected = {}
    for split, word, count in (("training", "train", 6), ("validation", "val", 3)):
        patterns = f"{base}/images/{split}/{{}}.jpg", f"{base}/annotations/{split}/{{}}.png"
        names = [f"ADE_{word}_{index:08d}" for index in range(count)]
        expected |= write(root, *patterns, names, classes=151)
    if named:
        rows = [f"{index}\t0.1\t1\t1\t1\tthing {index}, other name" for index in range(1, 151)]
        (root / base / "objectInfo150.txt").write_text(
            "\n".join(["Idx\tRatio\tTrain\tVal\tStuff\tName", *rows])
        )
    reduced = {name: np.where(mask == 0, 255, mask - 1) for name, mask in expected.items()}
    data = check(root, reduced)
    assert (data.layout, len(data.classes)) == ("ade20k", 150)
    assert data.classes[149] == ("thing 150, other name" if named else "149")
    assert any("0 is ignored" in note for note in data.notes)


def test_roboflow(tmp_path):
    root = tmp_path / "data"
    patterns = "{split}/{}_jpg.rf.0f3c.jpg", "{split}/{}_jpg.rf.0f3c_mask.png"
    expected = each_split(root, *patterns, "train valid test")
    for split in ("train", "valid", "test"):
        rows = ["Pixel Value, Class", "0, unlabeled", "1, cat", "2, dog", "3, a bird"]
        (root / split / "_classes.csv").write_text("\n".join(rows))
    (root / "README.roboflow.txt").write_text("a text")
    data = check(root, expected)
    assert data.classes == ["unlabeled", "cat", "dog", "a bird"] and counts(data) == SPLITS
    assert len(data.notes) == 1 and "_classes.csv" in data.notes[0]
    (root / "test/_classes.csv").write_text("Pixel Value, Class\n0, cat\n1, dog\n")
    with pytest.raises(BadInput, match=r"_classes.csv differ: keep one"):
        open_dataset(str(root))


def test_of_several_folders_of_masks_the_plainest_is_taken(tmp_path):
    root = tmp_path / "data_semantics"
    patterns = "training/image_2/{}_10.png", "training/semantic/{}_10.png"
    expected = write(root, *patterns, numbers(16))
    for other in ("semantic_rgb", "instance"):
        write(root / "training", "x/{}.png", f"{other}/{{}}_10.png", numbers(16))
    shutil.rmtree(root / "training/x")
    data = check(root, expected)
    assert any("16 images in training/semantic_rgb/" in note for note in data.notes)


def test_labelme2voc(tmp_path):
    root = tmp_path / "data"
    expected = write(root, "JPEGImages/{}.jpg", "SegmentationClass/{}.png", numbers(), palette)
    for index in range(8):
        (root / f"SegmentationClass/{index:03d}.npy").write_bytes(b"")
        picture(root / f"SegmentationClassVisualization/{index:03d}.jpg", index)
    (root / "class_names.txt").write_text("_background_\na\nb\nc\n")
    data = check(root, expected)
    assert data.classes == ["_background_", "a", "b", "c"]
    assert any("8 .npy" in note for note in data.notes)


@pytest.mark.parametrize("save", [grey, palette, three_channels])
def test_ids_in_any_kind_of_file(tmp_path, save):
    root = tmp_path / "data"
    check(root, write(root, "images/{}.png", "masks/{}.png", numbers(), save))


def test_black_and_white_in_three_channels_says_the_way_out(tmp_path):
    root = tmp_path / "data"
    expected = write(
        root,
        "images/{}.png",
        "masks/{}.png",
        numbers(),
        lambda mask, path: three_channels(mask * 255, path),
        2,
    )
    with pytest.raises(BadInput, match="--label-map 255=1"):
        open_dataset(str(root))
    check(root, expected, label_map={255: 1}, task="binary")


def test_what_systems_leave_is_no_data(tmp_path):
    root = tmp_path / "data"
    expected = write(root, "set/images/{}.png", "set/masks/{}.png", numbers())
    write(root, "__MACOSX/set/images/._{}.png", "__MACOSX/set/masks/._{}.png", numbers())
    for place in ("set/images/._000.png", "set/.DS_Store", "set/images/Thumbs.db", ".git/a.png"):
        (root / place).parent.mkdir(exist_ok=True)
        (root / place).write_bytes(b"\0\5\26\7")
    data = check(root, expected)
    assert len(data.notes) == 1


def test_subfolders_are_read_or_counted(tmp_path):
    root = tmp_path / "data"
    expected = write(root, "images/{}.png", "masks/{}.png", numbers())
    expected |= write(root, "images/2024/{}.png", "masks/2024/{}.png", numbers(16))
    data = check(root, expected)
    assert len(data.notes) == 1
    for index in range(5):
        picture(root / f"images/2025/{index}.png", index)
    data = check(root, expected)
    assert any("5 images in images/2025/" in note for note in data.notes)


def test_files_of_other_endings_are_named(tmp_path):
    root = tmp_path / "data"
    expected = write(root, "images/{}.png", "masks/{}.png", numbers())
    (root / "images/009.heic").write_bytes(b"heic")
    assert any("1 .heic" in note for note in check(root, expected).notes)
    grey(drawn(9), root / "masks/009.png")
    with pytest.raises(BadInput, match=r"no image images/009.\* \(images/009.heic is not read"):
        open_dataset(str(root))


def test_of_a_set_and_its_copy_in_splits_one_is_read(tmp_path):
    root = tmp_path / "data"
    expected = write(root, "images/{}.png", "masks/{}.png", numbers())
    each_split(root, "{split}/images/{}.png", "{split}/masks/{}.png")
    data = check(root, expected)
    assert any("4 images in train/images/" in note for note in data.notes)


def test_an_unknown_folder_gets_the_nearest_match(tmp_path):
    root = tmp_path / "data"
    write(root, "images/{}.png", "painted/{}.png", numbers())
    (root / "broken.json").write_text("{")
    (root / "list.json").write_text("[]")
    with pytest.raises(BadInput, match=r"masks/ is not there; .* rename it: painted/\."):
        open_dataset(str(root))


def test_names_without_anything_in_common_are_two_lines(tmp_path):
    root = tmp_path / "data"
    write(root, "images/{}.png", "masks/x.png", numbers())
    with pytest.raises(BadInput, match="no image has a mask of its name") as caught:
        open_dataset(str(root))
    assert len(str(caught.value).splitlines()) == 2


def test_folders_of_one_kind_each(tmp_path):
    root = tmp_path / "data"
    expected = write(root, "benign/benign ({}).png", "benign/benign ({})_mask.png", numbers())
    expected |= write(root, "malignant/m ({}).png", "malignant/m ({})_mask.png", numbers())
    assert len(check(root, expected).notes) == 1


def test_a_number_is_no_part_of_another(tmp_path):
    root = tmp_path / "data"
    for image, mask in (("1", "11"), ("2", "12"), ("3", "13")):
        write(root, "images/{}.png", f"masks/{mask}.png", [image])
    with pytest.raises(BadInput, match="no image has a mask of its name"):
        open_dataset(str(root))


def test_palettes_that_contradict_each_other_stop_the_run(tmp_path):
    root = tmp_path / "data"
    write(root, "images/{}.png", "masks/{}.png", numbers(), palette)
    image = Image.fromarray(drawn(1))
    image.putpalette(COLOURS[::-1].ravel().tolist())
    image.save(root / "masks/005.png")
    for _ in range(2):  # read, then from the cache
        with pytest.raises(BadInput, match=r"index \d is #\w{6} in the palette .*classes.csv"):
            open_dataset(str(root))
    rows = ["0,a,0,0,0", "1,b,128,0,0", "2,c,9,9,9", "3,d,8,8,8"]
    (root / "classes.csv").write_text("\n".join(rows))  # lacks the colours of two
    with pytest.raises(
        BadInput, match=r"005\.png: has the colours of classes.csv at other indices"
    ):
        open_dataset(str(root))


@pytest.mark.parametrize("classes", [43, 60])
def test_many_classes_beside_a_large_one_are_sound(tmp_path, classes):
    root = tmp_path / "data"

    def mostly_background(mask: np.ndarray, path: Path) -> None:
        grey(np.kron(mask, np.eye(12, dtype=np.uint8)[:1]), path)

    for index in range(8):
        picture(root / f"images/{index}.png", index)
        image = Image.open(root / f"images/{index}.png").resize((16 * 12, 12))
        image.save(root / f"images/{index}.png")
        (root / "masks").mkdir(exist_ok=True)
        mostly_background(drawn(index, classes), root / f"masks/{index}.png")
    assert len(open_dataset(str(root)).classes) == classes


def test_photographs_are_no_masks(tmp_path):
    root = tmp_path / "data"
    write(root, "images/{}.png", "masks/{}.png", numbers(), classes=190)
    with pytest.raises(BadInput, match=r"190 different values: are these labels.*classes.csv"):
        open_dataset(str(root))


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_drone_sets_are_told_apart_by_their_labels(tmp_path, ending):
    root = tmp_path / "data"
    patterns = f"original_images/{{}}.{ending}", "label_images_semantic/{}.png"
    write(root, *patterns, numbers(), classes=24)
    assert open_dataset(str(root)).layout == "drone original"
    root = tmp_path / "few"
    write(root, *patterns, numbers(), classes=5)
    if ending == "jpg":
        assert open_dataset(str(root)).layout == "drone original"
        return
    with pytest.raises(BadInput, match="classes_dataset/ or semantic_drone_dataset/"):
        open_dataset(str(root))
    (tmp_path / "semantic_drone_dataset").mkdir()
    root = root.rename(tmp_path / "semantic_drone_dataset/few")
    assert open_dataset(str(root)).layout == "drone original"


def test_prediction_counts_what_it_does_not_read(tmp_path, capsys):
    for index in range(3):
        picture(tmp_path / f"{index}.png", index)
        picture(tmp_path / f"2024/{index}.png", index)
        (tmp_path / f"._{index}.png").write_bytes(b"\0\5\26\7")
        (tmp_path / f"{index}.heic").write_bytes(b"heic")
    assert [path.name for path in find_images(tmp_path)] == ["0.png", "1.png", "2.png"]
    said = capsys.readouterr().out
    assert "6 files are not read" in said
    assert "3 .heic files" in said and "3 images in 2024/" in said
