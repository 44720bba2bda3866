"""evaluate.py: scores of several checkpoints, images without masks, what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_script
from PIL import Image

from segmentation.checkpoint import read_checkpoint, save_checkpoint
from segmentation.data.layouts import find_layout
from segmentation.evaluation.inference import Prediction, predict_labels, predict_strips
from segmentation.metrics import ConfusionMatrix
from segmentation.report.pictures import (
    UNSCORED,
    WRONG,
    error_map,
    overlay,
    palette_image,
    thumbnail,
)

pytestmark = pytest.mark.usefixtures("small_models")

FLAGS = "--encoder-weights none --epochs 2 --batch-size 8 --augment 8 --workers 0".split()


def train(out: Path, folder: Path, *flags: object) -> Path:
    assert run_script("train", "--data", folder, *FLAGS, "--out", out, *flags) == 0
    return out / "best.pt"


@pytest.fixture(scope="module", params=["own size", "32 x 48"])
def checkpoint(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_folder: Path,
    trained: Callable[[str], Path],
) -> Path:
    """One that was trained on the images as they are, and one on resized images."""
    if request.param == "own size":
        return trained("segformer") / "best.pt"
    out = tmp_path_factory.mktemp("runs") / "resized"
    return train(out, tiny_folder, "--image-size", 32, 48)


@pytest.fixture
def colourful(tmp_path: Path) -> Path:
    """Three good images in other modes than RGB."""
    folder = tmp_path / "images"
    folder.mkdir()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8))
    noise.convert("L").save(folder / "grey.png")
    noise.convert("RGBA").save(folder / "alpha.PNG")
    noise.quantize(16).save(folder / "palette.gif")
    (folder / "notes.txt").write_text("not an image")
    return folder


def test_flips_average_all_views_or_the_mirror_image_alone(checkpoint: Path, tmp_path: Path):
    losses, file = set(), tmp_path / "scores.json"
    for flags in ((), ("--flips", "horizontal"), ("--flips",)):
        assert run_script("evaluate", checkpoint, *flags, "--json", file) == 0
        losses.add(json.loads(file.read_text())["loss"])
    assert len(losses) == 3
    assert run_script("evaluate", checkpoint, "--flips", "all", "--json", file) == 0
    assert json.loads(file.read_text())["loss"] in losses
    assert run_script("evaluate", checkpoint, "--flips", "vertical") == 2


def test_amp_scores_as_the_training_with_amp_validated(tmp_path: Path, tiny_folder: Path):
    best, file = train(tmp_path / "run", tiny_folder, "--amp"), tmp_path / "scores.json"
    scores = []
    for flags in (("--amp",), ()):
        assert run_script("evaluate", best, "--split", "val", *flags, "--json", file) == 0
        scores.append(json.loads(file.read_text()))
    checkpoint = read_checkpoint(best)
    assert scores[0] == checkpoint["scores"]
    assert scores[0]["loss"] == checkpoint["history"][checkpoint["epoch"] - 1]["val_loss"]
    assert scores[1]["loss"] != scores[0]["loss"]


@pytest.mark.parametrize(
    "flags", [(), ("--tile", 32, "--flips"), ("--flips", "horizontal"), ("--amp",)]
)
def test_scores_of_the_written_labels_are_the_printed_scores(
    checkpoint: Path, tiny_folder: Path, tmp_path: Path, flags: tuple
):
    names = read_checkpoint(checkpoint)["data"]["splits"]["test"]
    (tmp_path / "images").mkdir()
    for name in names:
        shutil.copy(tiny_folder / name, tmp_path / "images")
    images = ("--images", tmp_path / "images", "--out", tmp_path)
    assert run_script("evaluate", checkpoint, *flags, "--json", tmp_path / "scores.json") == 0
    assert run_script("evaluate", checkpoint, *flags, *images) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    classes = list(scores["iou"])
    matrix = ConfusionMatrix(len(classes))
    for name in names:
        pair = [
            Image.open(tmp_path / "labels" / Path(name).name),
            Image.open(tiny_folder / "masks" / Path(name).name),
        ]
        assert pair[0].mode == "P"
        matrix.update(*(torch.from_numpy(np.array(picture, np.int64))[None] for picture in pair))
    assert matrix.matrix.tolist() == scores["confusion"]
    assert {key: scores[key] for key in ("miou", "mpa", "iou")} == {
        key: matrix.scores(classes)[key] for key in ("miou", "mpa", "iou")
    }


def test_images_of_any_mode_become_labels_overlay_and_confidence(
    checkpoint: Path, colourful: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    assert run_script("evaluate", checkpoint, "--images", colourful, "--out", tmp_path / "out") == 0
    meta = read_checkpoint(checkpoint)
    device, left, *lines = capsys.readouterr().out.splitlines()
    assert device.startswith("device: cpu, ") and "not read" in left
    assert [line.split()[:2] for line in lines] == [
        ["1/3", "alpha.PNG"],
        ["2/3", "grey.png"],
        ["3/3", "palette.gif"],
    ]
    for name in ("alpha", "grey", "palette"):
        files = {
            kind: Image.open(tmp_path / "out" / kind / f"{name}.png")
            for kind in ("labels", "overlay")
        }
        labels = np.array(files["labels"])
        assert files["labels"].size == files["overlay"].size == (70, 50)
        assert set(np.unique(labels)) <= {0, 1, 2}
        colours = np.array(files["labels"].convert("RGB"))
        assert (colours == np.array(meta["palette"], np.uint8)[labels]).all()
        confidence = Image.open(tmp_path / "out" / "confidence" / f"{name}.png")
        assert confidence.mode == "L" and confidence.size == (70, 50)
        assert np.array(confidence).min() >= 255 // 3  # the largest of three probabilities


def test_shares_in_the_line_are_those_of_the_labels_and_one_class_is_warned_of(
    checkpoint: Path, colourful: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    run_script("evaluate", checkpoint, "--images", colourful, "--out", tmp_path)
    lines = capsys.readouterr().out.splitlines()[2:]
    labels = np.array(Image.open(tmp_path / "labels" / "grey.png"))
    for index in np.unique(labels):
        share = (labels == index).mean()
        assert share < 0.0005 or f" {index} {share:.1%}" in lines[1]
    assert ("warning" in lines[1]) == (np.bincount(labels.ravel()).max() > 0.999 * labels.size)
    sure = read_checkpoint(checkpoint)
    last = [key for key in sure["model"] if key.endswith("bias")][-1]
    sure["model"][last] = torch.tensor([0.0, 1e4, 0.0])
    save_checkpoint(tmp_path / "sure.pt", sure)
    images = ("--images", colourful, "--out", tmp_path)
    assert run_script("evaluate", tmp_path / "sure.pt", *images) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert len(lines) == 3 and all(
        line.endswith("1 100.0%  warning: 1 is more than 99.9% of the pixels") for line in lines
    )


def test_bad_images_are_named_and_the_others_predicted(
    checkpoint: Path, colourful: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    (colourful / "broken.jpg").write_bytes(b"\xff\xd8nothing")
    (colourful / "grey.jpg").write_bytes((colourful / "grey.png").read_bytes())
    Image.fromarray(np.zeros((40, 40), np.uint16)).save(colourful / "deep.png")
    assert run_script("evaluate", checkpoint, "--images", colourful, "--out", tmp_path / "out") == 2
    said = capsys.readouterr()
    assert "left out: broken.jpg is" in said.out
    assert "left out: deep.png stores more than 8 bits" in said.out
    assert said.err.count("\n") == 1
    assert "3 of 6 images left out: broken.jpg, deep.png, grey.png" in said.err
    written = (tmp_path / "out" / "labels").iterdir()
    assert {path.stem for path in written} == {"alpha", "grey", "palette"}


def test_what_cannot_be_done_is_said_in_one_line(
    checkpoint: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for flags, reason in (
        (("--images", tmp_path / "empty", "--out", tmp_path), "holds no images"),
        (("--images", tmp_path / "gone", "--out", tmp_path), "cannot be listed"),
        (("--images", tiny_folder / "images", "--out", tmp_path / "file"), "cannot be written"),
        (("--out", tmp_path / "file" / "deeper"), "cannot be written"),
    ):
        assert run_script("evaluate", checkpoint, *flags) == 2
        error = capsys.readouterr().err
        assert reason in error and error.count("\n") == 1
    images = ("--images", tiny_folder / "images")
    assert run_script("evaluate", checkpoint, *images) == 2
    assert "--images needs --out" in capsys.readouterr().err
    images += ("--out", tmp_path)
    for flags in ((checkpoint, *images), (*images, "--split", "all"), (*images, "--data", ".")):
        assert run_script("evaluate", checkpoint, *flags) == 2
        assert "takes one checkpoint, and neither" in capsys.readouterr().err
    for flags in (("--split", "val"), ("--out", tmp_path), ("--tile", 64), ("--amp",), images[:2]):
        assert run_script("evaluate", checkpoint, "--export", tmp_path / "a.pt2", *flags) == 2
        assert "no other flag" in capsys.readouterr().err
    assert run_script("evaluate", checkpoint, "--export", "") == 2
    assert run_script("evaluate", checkpoint, "--json", checkpoint) == 2
    assert "--json would replace the checkpoint" in capsys.readouterr().err


def test_predictions_are_not_read_as_masks(checkpoint: Path, tiny_folder: Path, tmp_path: Path):
    for split in ("train", "val"):
        shutil.copytree(tiny_folder, tmp_path / split)
    test = tmp_path / "test"
    shutil.copytree(tiny_folder / "images", test / "images")
    images = ("--images", test / "images", "--out", test)
    assert run_script("evaluate", checkpoint, *images) == 0
    assert not find_layout(tmp_path, "multiclass").splits["test"]


def test_only_checkpoints_of_the_same_classes_and_images_are_compared(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    for name, change, reason in (
        ("split", lambda meta: meta["data"]["splits"]["test"].pop(), "has other test images than"),
        ("masks", lambda meta: meta["data"].update(label_map={2: 1}), "has other test images than"),
        ("names", lambda meta: meta.update(classes=["a", "b", "c"]), "has other classes than"),
    ):
        other = read_checkpoint(checkpoint)
        change(other)
        save_checkpoint(tmp_path / f"{name}.pt", other)
        assert run_script("evaluate", checkpoint, tmp_path / f"{name}.pt") == 2
        error = capsys.readouterr().err
        assert reason in error and error.count("\n") == 1


def test_several_checkpoints_give_the_scores_of_each(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    last = checkpoint.with_name("last.pt")
    assert run_script("evaluate", checkpoint, "--json", tmp_path / "one.json") == 0
    assert run_script("evaluate", checkpoint, last, "--json", tmp_path / "both.json") == 0
    both = json.loads((tmp_path / "both.json").read_text())
    assert list(both) == [str(checkpoint), str(last)]
    assert both[str(checkpoint)] == json.loads((tmp_path / "one.json").read_text())
    header, _, second = capsys.readouterr().out.splitlines()[-3:]
    matrix = np.array(both[str(last)]["confusion"])
    rarest = matrix.sum(1).argmin()
    assert header.split() == ["mIoU", "mPA", f"{rarest}:", "recall", "precision"]
    expected = [
        both[str(last)]["miou"],
        both[str(last)]["mpa"],
        matrix[rarest, rarest] / matrix[rarest].sum(),
    ]
    assert second.split()[1:4] == [f"{value:.4f}" for value in expected]
    predicted = matrix[:, rarest].sum()
    assert second.split()[4] == (
        f"{matrix[rarest, rarest] / predicted:.4f}" if predicted else "absent"
    )


def test_labels_and_confidence_are_those_of_the_strips():
    model = torch.nn.Conv2d(3, 4, 3, padding=1)
    image = np.random.default_rng(1).integers(0, 256, (60, 90, 3), np.uint8)
    labels, confidence = predict_labels(model, image, (70, 101), Prediction())
    whole = torch.cat(
        [strip for _, strip in predict_strips(model, image, output_size=(70, 101))], dim=1
    )
    assert (labels == whole.argmax(0).numpy()).all()
    assert np.abs(confidence / 255 - whole.amax(0).numpy()).max() < 0.5001 / 255


def test_palette_images_keep_every_index_and_colour():
    labels = np.array([[0, 1, 2], [2, 1, 255]], np.uint8)
    palette = [[10, 20, 30], [200, 100, 0], [0, 0, 255]]
    image = palette_image(labels, palette)
    assert (np.array(image) == labels).all()
    assert np.array(image.convert("RGB")).tolist()[1] == [[0, 0, 255], [200, 100, 0], [0, 0, 0]]
    assert palette_image(labels, [[0, 0, 0], *palette[1:]]).convert("RGB").getpixel((2, 1)) == (
        255,
        255,
        255,
    )


def test_the_error_map_marks_wrong_and_unscored_pixels_and_no_others():
    truth, prediction = np.array([[0, 1, 255, 1]], np.uint8), np.array([[0, 0, 1, 1]], np.uint8)
    image = Image.new("RGB", (4, 1), (100, 100, 100))
    palette = [[1, 1, 1], [2, 2, 2]]
    marked = error_map(image, palette_image(truth, palette), palette_image(prediction, palette))
    pixels = [marked.getpixel((x, 0)) for x in range(4)]
    assert pixels[1] == WRONG and pixels[2] == UNSCORED
    assert pixels[0] == pixels[3] and len(set(pixels[0])) == 1
    half = overlay(image, palette_image(truth, [[0, 0, 0], [200, 200, 200]]))
    assert half.getpixel((0, 0)) == (50, 50, 50) and half.getpixel((1, 0)) == (150, 150, 150)


def test_pictures_for_a_report_are_bounded_and_labels_stay_labels():
    labels = palette_image(
        np.random.default_rng(0).choice([0, 7], (400, 600)).astype(np.uint8), [[9, 9, 9]] * 8
    )
    small = thumbnail(labels, (4000, 6000))
    assert small.size == (800, 533) and small.mode == "P" and set(np.unique(small)) == {0, 7}
    assert thumbnail(Image.new("RGB", (30, 20)), (40, 60)).size == (60, 40)
