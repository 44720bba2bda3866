"""What befalls people: odd names, odd sizes, turned photographs, models of one class."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_script
from PIL import Image
from torch import nn

from segmentation import ResNet18UNet, SegFormer, predict
from segmentation.errors import BadInput
from segmentation.models import build_model
from segmentation.models.mix_transformer import VARIANTS

pytestmark = pytest.mark.usefixtures("small_models")

FLAGS = "--model unet --encoder-weights none --epochs 1 --batch-size 8 --augment 0 --workers 0"
FLAGS = FLAGS.split()


def copied(tiny_folder: Path, to: Path, names: list[bytes], change=lambda image: image) -> Path:
    """The pairs of the tiny folder under other names, given in bytes without the ending."""
    for kind in ("images", "masks"):
        (to / kind).mkdir(parents=True)
        for name, file in zip(names, sorted((tiny_folder / kind).iterdir()), strict=False):
            with Image.open(file) as image:
                change(image).save(os.fsdecode(os.fsencode(to / kind) + b"/" + name + b".png"))
    return to


def test_names_in_any_encoding_are_trained_reported_and_predicted(
    tiny_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture
):
    """Bytes that are no UTF-8, and letters that the output's encoding lacks."""
    names = [b"b\xe9ton%d" % n if n % 2 else "日本".encode() + b"%d" % n for n in range(24)]
    data = copied(tiny_folder, tmp_path / "data", names)
    run = tmp_path / "run"
    assert run_script("train", "--data", data, *FLAGS, "--out", run) == 0
    report = ("--out", tmp_path / "report", "--json", tmp_path / "scores.json", "--split", "all")
    assert run_script("evaluate", run / "best.pt", *report) == 0
    # Which images are shown depends on the scores; half of the names are these.
    assert re.search(r"日本\d", (tmp_path / "report/report.html").read_text("utf-8"))
    assert "b\\udce9ton1" in (tmp_path / "report/scores_by_image.csv").read_text("utf-8")
    images = ("--images", data / "images", "--out", tmp_path / "out")
    assert run_script("evaluate", run / "best.pt", *images) == 0
    assert len(list((tmp_path / "out/labels").iterdir())) == 24


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(56, 40), (40, 40)])
def test_a_photograph_without_a_mask_is_turned_upright(
    trained, tmp_path: Path, orientation: int, size: tuple[int, int]
):
    pixels = np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), np.uint8)
    turns = [[], [0], [3], [1], [5], [2], [6], [4]]  # of Image.Transpose, which the tag undoes
    upright = Image.fromarray(pixels)
    stored = upright
    for turn in turns[orientation - 1]:
        stored = stored.transpose(Image.Transpose(turn))
    exif = Image.Exif()
    exif[274] = orientation
    folders = {}
    for name, image, more in (("up", upright, {}), ("turned", stored, {"exif": exif})):
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / "a.png", **more)
        out = tmp_path / f"{name}-out"
        assert (
            run_script(
                "evaluate", trained("unet") / "best.pt", "--images", tmp_path / name, "--out", out
            )
            == 0
        )
        folders[name] = np.array(Image.open(out / "labels/a.png"))
    assert (folders["up"] == folders["turned"]).all()


@pytest.mark.parametrize("flags", [[], ["--crop", 16, 16]])
def test_samples_below_32_pixels_are_refused_and_a_crop_pads(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, flags: list
):
    small = copied(
        tiny_folder,
        tmp_path / "data",
        [b"%02d" % n for n in range(24)],
        lambda im: im.crop((0, 0, 33, 20)),
    )
    command = ("--data", small, *FLAGS, "--out", tmp_path / "run")
    assert run_script("train", *command, *flags) == 2
    assert "are too small: use --crop 32 32, which pads" in capsys.readouterr().err
    assert run_script("train", *command, "--crop", 32, 32) == 0


def test_the_share_of_ignored_pixels_is_printed_and_much_is_warned_of(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    for label, warned in (("2=255", False), ("0=255,1=0,2=1", True)):
        flags = ("--label-map", label, "--dry-run", "--out", tmp_path / label)
        assert run_script("train", "--data", tiny_folder, *FLAGS, *flags) == 0
        said = capsys.readouterr().out
        assert "of all pixels ignored" in said and ("warning: so much" in said) == warned


def test_advice_on_labels_names_every_value_it_touches(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    grey = np.array([0, 127, 255, *[255] * 253], np.uint8)
    data = copied(
        tiny_folder,
        tmp_path / "data",
        [b"%02d" % n for n in range(24)],
        lambda im: im if im.mode == "RGB" else Image.fromarray(grey[np.array(im)]),
    )
    assert run_script("train", "--data", data, *FLAGS, "--out", tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert "--label-map 127=1" in said and "255 is ignored: if it is a class, add ,255=2" in said


@pytest.mark.parametrize("model", [ResNet18UNet, SegFormer])
def test_a_model_of_one_class_is_refused(model):
    with pytest.raises(ValueError, match="one class: a softmax needs two or more"):
        model(1)


def test_a_configuration_or_a_published_model_of_one_class_is_refused(tmp_path: Path):
    with pytest.raises(BadInput, match="a softmax needs two or more"):
        build_model({"model": "unet", "num_classes": 1})
    transformers = pytest.importorskip("transformers")
    channels, depths = VARIANTS["b0"]
    sizes = {"hidden_sizes": [*channels], "depths": [*depths], "decoder_hidden_size": 256}
    config = transformers.SegformerConfig(num_labels=1, **sizes)
    transformers.SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "one")
    with pytest.raises(BadInput, match="has one class"):
        SegFormer.from_huggingface(tmp_path / "one")


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (torch.rand(1, 3, 40, 40) * 255, "divide by 255"),
        (torch.rand(1, 3, 40, 40) - 0.5, "do not normalise"),
        (torch.full((1, 3, 40, 40), torch.nan), r"in \[0, 1\]"),
        (torch.full((1, 3, 40, 40), torch.inf), r"in \[0, 1\]"),
    ],
)
def test_predict_refuses_what_is_no_image(image: torch.Tensor, why: str):
    with pytest.raises(BadInput, match=why):
        predict(nn.Conv2d(3, 2, 1), image)


def test_predict_refuses_a_model_of_one_class():
    with pytest.raises(BadInput, match="two classes or more"):
        predict(nn.Conv2d(3, 1, 1), torch.rand(1, 3, 40, 40))
