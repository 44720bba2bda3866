"""Bad data: each case ends with one message: which file, what is wrong, what to do."""

import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segmentation.data import cache
from segmentation.data.datasets import open_dataset
from segmentation.data.labels import parse_label_map
from segmentation.errors import BadInput

SIZE = (12, 16)
Damage = Callable[[Path], object]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path) -> Path:
    """A sound generic set of 16 pairs 00..15 with labels 0, 1, 2."""
    for folder in ("images", "masks"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for index in range(16):
        image(index).save(tmp_path / f"data/images/{index:02d}.png")
        mask(index).save(tmp_path / f"data/masks/{index:02d}.png")
    return tmp_path / "data"


def image(index: int, size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(index).integers(0, 256, (*size, 3), np.uint8))


def mask(index: int, classes: int = 3, size: tuple[int, int] = SIZE) -> Image.Image:
    stored = np.random.default_rng([index, 1]).integers(0, classes, size, np.uint8)
    stored.flat[:classes] = np.arange(classes)
    return Image.fromarray(stored)


def table(
    root: Path, text: str = "index,name,r,g,b\n0,a,0,0,0\n1,b,255,0,0\n2,c,0,255,0\n"
) -> None:
    (root / "classes.csv").write_text(text)


def truncate(path: Path, keep: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])


def tagged(root: Path, turn: int, size: tuple[int, int]) -> None:
    tag = Image.Exif()
    tag[274] = turn
    (root / "images/03.png").unlink()
    image(3, size).save(root / "images/03.jpg", exif=tag)


def with_values(root: Path, *values: int) -> None:
    """Declared labels 0..2, and mask 03 with these values in its first pixels."""
    table(root)
    stored = np.array(mask(3))
    stored.flat[: len(values)] = values
    Image.fromarray(stored).save(root / "masks/03.png")


def antialiased(root: Path) -> None:
    table(root)
    for path in (root / "masks").iterdir():
        stored = np.zeros((64, 64), np.uint8)
        stored[:, 32:] = 255
        stored[0] = np.arange(0, 256, 4)
        Image.fromarray(stored).save(path)
        image(int(path.stem), (64, 64)).save(root / "images" / path.name)


def colour_mask(root: Path, colour: tuple[int, int, int]) -> None:
    stored = np.zeros((*SIZE, 3), np.uint8)
    stored[:2, :3] = colour
    Image.fromarray(stored).save(root / "masks/03.png")


def requantised(root: Path) -> None:
    table(root)
    stored = Image.fromarray(np.array(mask(3)))
    stored.putpalette([255, 0, 0, 0, 0, 0, 0, 255, 0])
    stored.save(root / "masks/03.png")


def tall_header(root: Path) -> None:
    """A BMP that says 20000 x 10000 pixels: over the limit, whatever follows."""
    (root / "images/03.png").unlink()
    Image.new("L", (1, 1)).save(root / "images/03.bmp")
    content = bytearray((root / "images/03.bmp").read_bytes())
    content[18:26] = (20_000).to_bytes(4, "little") + (10_000).to_bytes(4, "little")
    (root / "images/03.bmp").write_bytes(content)


def tiff(root: Path, *, bands: int, bits: int) -> None:
    """A bare TIFF of many bands or bits, which Pillow does not write."""
    width, height = SIZE[1], SIZE[0]
    pixels = bytes(width * height * bands * bits // 8)
    extra = max(0, bands - 3)
    depths = 10 + 12 * 10 + 4
    entries = [
        (256, 3, 1, width),
        (257, 3, 1, height),
        (258, 3, bands, depths),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
    ]
    entries += [
        (273, 4, 1, depths + 4 * bands),
        (277, 3, 1, bands),
        (278, 3, 1, height),
        (279, 4, 1, len(pixels)),
    ]
    entries += (
        [(338, 3, extra, depths + 2 * bands if extra > 2 else 0)] if extra else [(339, 3, 1, 1)]
    )
    content = b"II*\0" + (8).to_bytes(4, "little") + len(entries).to_bytes(2, "little")
    for tag, kind, count, value in entries:
        parts = (tag.to_bytes(2, "little"), kind.to_bytes(2, "little"), count.to_bytes(4, "little"))
        content += b"".join(parts) + value.to_bytes(4, "little")
    content += bytes(4) + bits.to_bytes(2, "little") * bands + bytes(2 * bands) + pixels
    (root / "images/03.png").unlink()
    (root / "images/03.tif").write_bytes(content)


def sixteen_bit(root: Path) -> None:
    (root / "images/03.png").unlink()
    Image.fromarray(np.full(SIZE, 4000, np.uint16)).save(root / "images/03.tif")


def sixteen_bit_rgb_png(root: Path) -> None:
    """Pillow would cut 16-bit RGB to 8 bits without a word: only the header's depth differs."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 16, 12, 16, 2, 0, 0, 0))]
    chunks += [(b"IDAT", zlib.compress((b"\0" + bytes(6 * 16)) * 12)), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c))
        for kind, c in chunks
    ]
    (root / "images/03.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def lossy(root: Path, suffix: str, kind: str) -> None:
    (root / "masks/03.png").unlink()
    mask(3).save(root / f"masks/03{suffix}", kind)


def folder_instead(root: Path) -> None:
    (root / "images/03.png").unlink()
    (root / "images/03.png").mkdir()


def dangling(root: Path) -> None:
    (root / "images/03.png").unlink()
    (root / "images/03.png").symlink_to(root / "nowhere.png")


# One pair is bad, the rest is sound: id -> (damage, what the message must say).
# All can be left out by skip_bad.
ONE_BAD_PAIR: dict[str, tuple[Damage, str]] = {
    "image without mask": (
        lambda r: (r / "masks/03.png").unlink(),
        r"images/03.png: no mask masks/03.\*",
    ),
    "mask without image": (
        lambda r: (r / "images/03.png").unlink(),
        r"masks/03.png: no image images/03.\*",
    ),
    "stem is not a prefix": (
        lambda r: (r / "masks/03.png").rename(r / "masks/030.png"),
        r"images/03.png: no mask",
    ),
    "stem has its case": (
        lambda r: (r / "masks/03.png").rename(r / "masks/03A.png"),
        r"masks/03A.png: no image",
    ),
    "two images of one name": (
        lambda r: image(90).save(r / "images/03.bmp"),
        r"03.png: same name as images/03.bmp",
    ),
    "size mismatch": (
        lambda r: image(3, (12, 17)).save(r / "images/03.png"),
        r"17 x 12 .*03.png 16 x 12: export",
    ),
    "swapped size": (
        lambda r: image(3, (16, 12)).save(r / "images/03.png"),
        r"12 x 16 .*16 x 12: width and height",
    ),
    "truncated image": (
        lambda r: truncate(r / "images/03.png"),
        r"images/03.png: is truncated or damaged",
    ),
    "truncated mask": (
        lambda r: truncate(r / "masks/03.png", 0.8),
        r"masks/03.png: is truncated or damaged",
    ),
    "only a header": (
        lambda r: truncate(r / "images/03.png", 0.02),
        r"images/03.png: is not an image",
    ),
    "empty image": (
        lambda r: (r / "images/03.png").write_bytes(b""),
        r"images/03.png: is empty \(0 bytes\); copy",
    ),
    "empty mask": (
        lambda r: (r / "masks/03.png").write_bytes(b""),
        r"masks/03.png: is empty \(0 bytes\); copy",
    ),
    "text as image": (
        lambda r: (r / "images/03.png").write_text("<html>404"),
        r"images/03.png: is not an image",
    ),
    "Git LFS pointer": (
        lambda r: (r / "masks/03.png").write_text("version https://git-lfs"),
        r"masks/03.png: is not",
    ),
    "folder as image": (folder_instead, r"images/03.png: cannot be opened"),
    "dangling link": (dangling, r"images/03.png or masks/03.png: cannot be opened \(No such file"),
    "16-bit grey image": (
        sixteen_bit,
        r"images/03.tif: stores more than 8 bits .*save it as 8-bit RGB",
    ),
    "16-bit RGB image": (sixteen_bit_rgb_png, r"images/03.png: stores more than 8 bits"),
    "16-bit RGB TIFF": (
        lambda r: tiff(r, bands=3, bits=16),
        r"images/03.tif: stores more than 8 bits",
    ),
    "float image": (
        lambda r: Image.new("F", (16, 12)).save(sixteen_bit(r) or r / "images/03.tif"),
        "mode F",
    ),
    "five bands": (
        lambda r: tiff(r, bands=5, bits=8),
        r"images/03.tif: has 5 bands; save three of them",
    ),
    "over the pixel limit": (
        tall_header,
        r"images/03.bmp: has more than 178956970 pixels; cut it into tiles",
    ),
    "EXIF 6, mask not turned": (
        lambda r: tagged(r, 6, SIZE),
        r"images/03.jpg: has EXIF orientation 6.*without",
    ),
    "EXIF 3, sizes agree": (lambda r: tagged(r, 3, SIZE), r"images/03.jpg: has EXIF orientation 3"),
    "EXIF 2, mirrored": (lambda r: tagged(r, 2, SIZE), r"images/03.jpg: has EXIF orientation 2"),
    "EXIF 8, other size": (
        lambda r: tagged(r, 8, (10, 10)),
        r"images/03.jpg: has EXIF orientation 8",
    ),
    "JPEG mask": (
        lambda r: lossy(r, ".jpg", "JPEG"),
        r"masks/03.jpg: is a JPEG file; lossy .*as PNG",
    ),
    "JPEG mask named PNG": (lambda r: lossy(r, ".png", "JPEG"), r"masks/03.png: is a JPEG file"),
    "WebP mask": (lambda r: lossy(r, ".webp", "WEBP"), r"masks/03.webp: is a WEBP file"),
    "float mask": (
        lambda r: lossy(r, ".tif", "TIFF") or Image.new("F", (16, 12)).save(r / "masks/03.tif"),
        "mode F",
    ),
    "CMYK mask": (
        lambda r: lossy(r, ".tif", "TIFF") or Image.new("CMYK", (16, 12)).save(r / "masks/03.tif"),
        "CMYK",
    ),
    "label beyond 255": (
        lambda r: Image.fromarray(np.full(SIZE, 1000, np.uint16)).save(r / "masks/03.png"),
        r"masks/03.png: stores the label 1000 \(192 pixels",
    ),
    "colour mask without a table": (
        lambda r: colour_mask(r, (255, 0, 0)),
        r"03.png: is a colour mask; .*classes.csv",
    ),
    "unknown colour": (
        lambda r: table(r) or colour_mask(r, (9, 8, 7)),
        r"does not name: 9,8,7 \(6 pixels\); add",
    ),
    "requantised palette": (
        requantised,
        r"masks/03.png: has the colours of classes.csv at other indices",
    ),
    "undeclared value": (
        lambda r: with_values(r, 7),
        r"masks/03.png: .*7 \(1 pixels\): say --label-map 7=255",
    ),
    "undeclared values": (
        lambda r: with_values(r, 7, 9, 9),
        r"7 \(1 pixels\), 9 \(2 pixels\): .*7=255,9=255",
    ),
    "many undeclared values": (
        lambda r: with_values(r, *range(50, 90)),
        r"40 undeclared values 50..89 \(40 pixels",
    ),
}


@pytest.mark.parametrize("case", ONE_BAD_PAIR)
def test_one_bad_pair_is_named_and_can_be_left_out(root, case):
    damage, message = ONE_BAD_PAIR[case]
    damage(root)
    with pytest.raises(BadInput, match=message):
        open_dataset(str(root))
    data = open_dataset(str(root), skip_bad=True)
    kept = [name for names in data.splits.values() for name in names]
    assert len(kept) == 15
    assert "images/03.png" not in kept and any(
        re.search(message, sentence) for sentence in data.skipped
    )


def one_class(root: Path) -> None:
    for path in (root / "masks").iterdir():
        Image.new("L", SIZE[::-1], 0).save(path)


def stored_values(root: Path, low: int, high: int) -> None:
    for path in (root / "masks").iterdir():
        Image.fromarray(
            np.where(np.array(mask(int(path.stem), 2)), high, low).astype(np.uint8)
        ).save(path)


def only(root: Path, count: int) -> None:
    for folder in ("images", "masks"):
        for path in sorted((root / folder).iterdir())[count:]:
            path.unlink()


def empty(root: Path, *folders: str) -> None:
    for folder in folders:
        shutil.rmtree(root / folder)
        (root / folder).mkdir()


def given_splits(root: Path, *splits: str) -> None:
    for split in splits:
        (root / split).mkdir()
        shutil.copytree(root / "images", root / split / "images")
        shutil.copytree(root / "masks", root / split / "masks")
    shutil.rmtree(root / "images")
    shutil.rmtree(root / "masks")


# The whole set makes no sense: id -> (damage, options of open_dataset, what is said).
BAD_SETS: dict[str, tuple[Damage, dict, str]] = {
    "no folder": (lambda r: shutil.rmtree(r), {}, "no such folder; give --data"),
    "unknown layout": (
        lambda r: shutil.rmtree(r / "masks"),
        {},
        r"(?s)looked for.*CamVid.*generic.*classes.csv",
    ),
    "empty images": (lambda r: empty(r, "images"), {}, "images/: holds no images"),
    "empty masks": (lambda r: empty(r, "masks"), {}, "masks/: holds no images"),
    "both empty": (
        lambda r: empty(r, "images", "masks"),
        {"skip_bad": True},
        "masks/: holds no images",
    ),
    "one pair": (lambda r: only(r, 1), {}, "cannot be split into train and val"),
    "no common stem": (
        lambda r: [p.rename(p.with_stem(f"{int(p.stem) + 50}")) for p in (r / "masks").iterdir()],
        {},
        "no image has a mask of its name",
    ),
    "no good pair": (
        lambda r: [p.write_bytes(b"") for p in (r / "masks").iterdir()],
        {},
        ": 16 problems",
    ),
    "no train masks": (
        lambda r: given_splits(r, "train", "val") or shutil.rmtree(r / "train/masks"),
        {},
        "no image of train has a mask, and val/masks/ is val",
    ),
    "same files in two splits": (
        lambda r: given_splits(r, "train", "val"),
        {},
        r"00.png \(train\): the same file as",
    ),
    "nothing left": (
        lambda r: given_splits(r, "train", "val"),
        {"skip_bad": True},
        "nothing is left in train or val",
    ),
    "0 and 255": (lambda r: stored_values(r, 0, 255), {}, "masks/: .*--label-map 255=1"),
    "0 and 255, binary": (
        lambda r: stored_values(r, 0, 255),
        {"task": "binary"},
        "--label-map 255=1",
    ),
    "0 and 255 with a table": (
        lambda r: table(r) or stored_values(r, 0, 255),
        {},
        "--label-map 255=1",
    ),
    "0 and 15": (lambda r: stored_values(r, 0, 15), {}, "labels 0..15: say --label-map 15=1"),
    "one class": (one_class, {}, r"only the labels \[0\]"),
    "three labels, binary": (
        lambda r: None,
        {"task": "binary"},
        "masks go up to 2: say --label-map 2=1",
    ),
    "three classes, binary": (table, {"task": "binary"}, "needs two classes, this table has 3"),
    "unknown task": (lambda r: None, {"task": "panoptic"}, "multiclass or binary"),
    "image size 0": (lambda r: None, {"image_size": (0, 64)}, "--image-size 0 64: .*at least 32"),
    "table not numbers": (
        lambda r: table(r, "0,a,0,0,0\n1,b,red,0,0"),
        {},
        "cannot read the line '1,b,red",
    ),
    "table too short": (lambda r: table(r, "0,a\n1,b"), {}, "lines are index,name,r,g,b"),
    "table with a gap": (lambda r: table(r, "0,a,0,0,0\n2,b,1,1,1"), {}, "0, 1, ..., K-1"),
    "table of one class": (lambda r: table(r, "0,a,0,0,0"), {}, "K at least 2"),
    "table empty": (lambda r: table(r, ""), {}, "classes.csv: the indices"),
    "table repeats a colour": (
        lambda r: table(r, "0,a,0,0,0\n1,b,0,0,0"),
        {},
        "'1,b,0,0,0' repeats",
    ),
    "table over 255": (lambda r: table(r, "0,a,0,0,0\n1,b,0,256,0"), {}, "within 0..255"),
    "table in Latin-1": (
        lambda r: (r / "classes.csv").write_bytes(b"0,b\xe9ton,0,0,0"),
        {},
        "UTF-8",
    ),
    "half of the masks 0 and 255": (
        lambda r: (
            [mask(i, 2).point([0, 255] * 128).save(r / f"masks/{i:02d}.png") for i in range(8)]
            + [mask(i, 2).save(r / f"masks/{i:02d}.png") for i in range(8, 16)]
        ),
        {},
        "8 masks hold only 0 and 255, 8 only 0 and 1: .*--label-map 255=1",
    ),
    "stored file is gone": (
        lambda r: None,
        {"splits": {"train": ["images/77.png"]}},
        "images/77.png: in the stored",
    ),
}


@pytest.mark.parametrize("case", BAD_SETS)
def test_bad_set_is_refused(root, case):
    damage, options, message = BAD_SETS[case]
    damage(root)
    with pytest.raises(BadInput, match=message):
        open_dataset(str(root), **options)


@pytest.mark.parametrize(
    "text",
    ["", "255", "255=", "a=1", "256=1", "1=256", "-1=0", "9-3=1", "1=0,1=2", "0-9=0,5=1", "1=2=3"],
)
def test_label_map_nonsense(text):
    with pytest.raises(BadInput, match="--label-map"):
        parse_label_map(text)


def test_all_problems_stand_in_one_message_and_long_lists_are_cut(root):
    for damage, _ in (ONE_BAD_PAIR["truncated image"], ONE_BAD_PAIR["empty mask"]):
        damage(root)
    (root / "masks/07.png").unlink()
    image(8, (5, 5)).save(root / "images/08.png")
    with pytest.raises(BadInput) as caught:
        open_dataset(str(root))
    lines = str(caught.value).splitlines()
    assert len(lines) == 5 and "4 problems" in lines[0]
    assert {line.split(":")[0].strip() for line in lines[1:]} == {
        "images/03.png",
        "masks/03.png",
        "images/07.png",
        "images/08.png",
    }
    for index in range(100, 180):
        image(index).save(root / f"images/{index}.png")
    with pytest.raises(BadInput, match=r"\.\.\. and 34 more$") as caught:
        open_dataset(str(root))
    assert len(str(caught.value).splitlines()) == 52


@pytest.mark.parametrize("declared", [True, False])
def test_antialiased_masks_are_one_short_diagnosis_that_hides_nothing(root, declared):
    antialiased(root)
    if not declared:
        (root / "classes.csv").unlink()
    (root / "images/03.png").write_bytes(b"")
    with pytest.raises(BadInput, match="0-127=0,128-255=1") as caught:
        open_dataset(str(root))
    said = str(caught.value)
    assert "images/03.png: is empty" in said and len(said.splitlines()) <= 4
    (root / "images/03.png").unlink()
    (root / "masks/03.png").unlink()
    (root / "classes.csv").unlink(missing_ok=True)
    assert len(open_dataset(str(root), label_map=parse_label_map("0-127=0,128-255=1")).classes) == 2


def test_duplicates_leave_the_copy_that_is_not_scored_on(root):
    shutil.copy(root / "images/15.png", root / "images/00.png")  # 14 and 15 are the test set
    assert "images/00.png" in open_dataset(str(root), skip_bad=True).skipped[0]
    assert "images/15.png" in open_dataset(str(root), skip_bad=True).splits["test"]


def test_masks_of_0_and_255_beside_0_and_1_are_read_as_was_said(root):
    for index in range(16):
        stored = mask(index, 2)
        stored = stored.point([0, 255] * 128) if index < 8 else stored
        stored.save(root / f"masks/{index:02d}.png")
    as_class = open_dataset(str(root), label_map={255: 1})
    assert as_class.ignored_share("train") == 0
    ignored = open_dataset(str(root), label_map={255: 255})
    expected = np.mean([np.array(ignored.mask(name)) == 255 for name in ignored.splits["train"]])
    assert ignored.ignored_share("train") == pytest.approx(expected) and expected > 0


@pytest.mark.parametrize(
    ("file", "options"),
    [("x.tif", {}), ("x.gif", {}), ("x.png", {}), ("x.webp", {"lossless": True})],
)
@pytest.mark.parametrize("kind", ["images", "masks"])
def test_a_file_of_several_images_is_refused(root, kind, file, options):
    pages = [mask(index) for index in range(3)]
    target = root / kind / f"00{Path(file).suffix}"
    (root / kind / "00.png").unlink()
    pages[0].save(target, save_all=True, append_images=pages[1:], **options)
    with pytest.raises(BadInput, match=rf"{kind}/00\.\w+: holds 3 images; save one a file"):
        open_dataset(str(root))


def test_smaller_copies_inside_a_tiff_are_no_further_images(root):
    """Overviews, as geographic files have them, and a page of another kind."""
    (root / "images/00.png").unlink()
    first, overview = image(0), image(0).resize((4, 3))
    overview.encoderinfo = {"tiffinfo": {254: 1}}
    first.save(root / "images/00.tif", save_all=True, append_images=[overview])
    with Image.open(root / "images/00.tif") as file:
        assert file.n_frames == 2
    data = open_dataset(str(root))
    assert (data.image("images/00.tif") == np.asarray(image(0))).all()


def test_large_but_allowed_images_pass_without_a_warning(root, monkeypatch, recwarn):
    # 192 pixels: above the warning, below the error at twice that.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150)
    open_dataset(str(root))
    assert not recwarn.list


def test_unwritable_cache_is_said(root, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(
        BadInput, match=r"cannot write the cache \(Not a directory\).*XDG_CACHE_HOME"
    ):
        open_dataset(str(root))


FULL_DISK = """
import resource, signal, sys
from segmentation.data.datasets import open_dataset
from segmentation.errors import BadInput
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
# The kernel refuses writes beyond 400 bytes, as a full disk does.
resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))
try:
    open_dataset(sys.argv[1])
except BadInput as error:
    sys.exit(f"refused: {error}")
"""


def test_full_disk_leaves_nothing_half_written(root, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", FULL_DISK, str(root)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "cannot write the cache" in result.stderr and "free some space" in result.stderr
    entries = list((tmp_path / "cache/segmentation").iterdir())
    assert all(cache.load_record(entry) for entry in entries)
    open_dataset(str(root))
