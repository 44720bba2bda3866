"""train.py and evaluate.py from end to end, on a tiny folder."""

import csv
import json
import re
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from child_processes import Kill, is_equal, run_in_child
from conftest import run_script
from PIL import Image
from torch._dynamo.utils import counters

from segmentation import ConfusionMatrix, ResNet18UNet, SegFormer, TverskyLoss, load_checkpoint
from segmentation.arguments import recipe_of, training_arguments
from segmentation.checkpoint import read_checkpoint
from segmentation.data import samples
from segmentation.data.datasets import open_dataset
from segmentation.data.transforms import transform_pair
from segmentation.hardware import code_version
from segmentation.recipes import RECIPES

pytestmark = pytest.mark.usefixtures("small_models")

FLAGS = "--encoder-weights none --epochs 3 --batch-size 8 --augment 8 --workers 0".split()


@pytest.fixture(scope="module", params=["segformer", "unet"])
def run(request: pytest.FixtureRequest, trained: Callable[[str], Path]) -> Path:
    """A finished run of three epochs."""
    return trained(request.param)


def test_a_run_leaves_what_it_says(run: Path):
    assert {"best.pt", "last.pt", "config.json", "history.csv", "samples.png"} <= {
        path.name for path in run.iterdir()
    }
    with open(run / "history.csv") as file:
        rows = list(csv.DictReader(file))
    columns = "epoch train_loss val_loss val_miou val_mpa lr seconds images_per_s"
    columns += " train_miou train_mpa"
    assert list(rows[0]) == columns.split()
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    config = json.loads((run / "config.json").read_text())
    assert config["classes"] == ["0", "1", "2"]
    assert config["environment"]["code"] == code_version()
    total = sum(weight.numel() for weight in load_checkpoint(run / "best.pt")[0].parameters())
    assert config["parameter_counts"] == {"total": total, "trained": total, "frozen": 0}


def test_samples_are_those_that_the_model_sees(tmp_path: Path, tiny_folder: Path, trained):
    """Eight of the first epoch's 24, four a row, each above its mask."""
    sheet = np.asarray(Image.open(trained("unet") / "samples.png"))
    assert sheet.shape == (2 * 2 * 40, 4 * 56, 3)
    data = open_dataset(str(tiny_folder), seed=3)
    recipe = replace(RECIPES["deck"], augment=8)
    seen = samples.TrainingSamples(data, "train", recipe, crop=None, seed=3)
    colours = np.zeros((256, 3), np.uint8)
    colours[:3] = data.palette
    assert not (np.array(data.palette) == 0).all(1).any()
    for number in range(8):
        sample = seen[0, 3 * number, 1]
        row, column = divmod(number, 4)
        pair = sheet[80 * row : 80 * (row + 1), 56 * column : 56 * (column + 1)]
        assert np.array_equal(pair[:40], sample["image"].permute(1, 2, 0))
        assert np.array_equal(pair[40:], colours[sample["mask"]])
    assert (sheet[40:42] == 0).all()  # ignored


def test_a_dry_run_measures_and_leaves_no_run(
    tmp_path: Path, tiny_folder: Path, trained, capsys: pytest.CaptureFixture
):
    flags = ("--data", tiny_folder, *FLAGS, "--model", "unet", "--lr", 0.002, "--seed", 3)
    flags = (*flags, "--out", tmp_path / "run")
    assert run_script("train", *flags, "--dry-run") == 0
    said = capsys.readouterr().out
    times = r"dry run: [\d.e-]+ s a step, [\d.e-]+ minutes an epoch of 3 steps"
    assert re.search(rf"{times}, .*; [\d.]+ GiB of memory", said)
    assert "epoch 1/3" not in said
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"samples.png"}
    assert run_script("train", *flags) == 0  # not refused, and as if nothing had been
    one, other = (read_checkpoint(out / "last.pt") for out in (tmp_path / "run", trained("unet")))
    assert is_equal(one["model"], other["model"]) and is_equal(one["history"], other["history"])


def test_a_dry_run_of_a_run_that_goes_on_changes_none_of_it(
    tmp_path: Path, tiny_folder: Path, trained
):
    out = tmp_path / "run"
    shutil.copytree(trained("unet"), out)
    flags = ("--data", tiny_folder, *FLAGS, "--model", "unet", "--lr", 0.002, "--seed", 3)
    assert run_script("train", *flags, "--out", out, "--dry-run") == 2  # as the real one would be
    assert run_script("train", *flags, "--out", out, "--dry-run", "--resume") == 0
    for file in trained("unet").iterdir():
        assert (out / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("flags", ["--model unet --recipe fast", "--amp"])
def test_training_scores_are_those_of_the_batches_own_predictions(
    tmp_path: Path, tiny_folder: Path, monkeypatch, flags: str
):
    """Of an epoch, each pixel as the model in training predicted it, before its step."""
    seen = ConfusionMatrix(3)
    original = TverskyLoss.forward

    def noted(self, logits, target):
        if target.shape[1:] != (64, 64):  # where a step's memory is measured
            seen.update(logits.argmax(1), target)
        return original(self, logits, target)

    monkeypatch.setattr(TverskyLoss, "forward", noted)
    paths = ("--data", tiny_folder, "--out", tmp_path / "run")
    assert run_script("train", *paths, *FLAGS, "--epochs", 1, *flags.split()) == 0
    [row] = read_checkpoint(tmp_path / "run" / "last.pt")["history"]
    scores = seen.scores()
    assert (row["train_miou"], row["train_mpa"]) == (scores["miou"], scores["mpa"])


def test_evaluation_repeats_validation_exactly(run: Path, tmp_path: Path):
    flags = ("--split", "val", "--json", tmp_path / "scores.json")
    assert run_script("evaluate", run / "best.pt", *flags) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    keys = "loss miou mpa pixel_accuracy fwiou image_miou image_mpa iou accuracy confusion images"
    assert list(scores) == keys.split()
    with open(run / "history.csv") as file:
        best = max(csv.DictReader(file), key=lambda row: float(row["val_miou"]))
    assert scores["miou"] == float(best["val_miou"])
    assert scores["mpa"] == float(best["val_mpa"])
    assert scores["loss"] == pytest.approx(float(best["val_loss"]), abs=1e-7)
    assert sum(map(sum, scores["confusion"])) == 5 * 38 * 56
    assert len(scores["images"]) == 5


def test_a_checkpoint_says_everything_about_itself(run: Path):
    model, meta = load_checkpoint(run / "best.pt")
    assert model(torch.rand(1, 3, 40, 50)).shape == (1, 3, 40, 50)
    assert {
        "config",
        "classes",
        "palette",
        "data",
        "args",
        "command",
        "environment",
        "history",
        "scores",
    } <= set(meta)
    splits = meta["data"]["splits"]
    assert not set(splits["train"]) & (set(splits["val"]) | set(splits["test"]))


def test_the_model_learns(run: Path):
    with open(run / "history.csv") as file:
        losses = [float(row["train_loss"]) for row in csv.DictReader(file)]
    assert losses[2] < losses[0]


def test_frozen_encoder_keeps_weights_and_statistics(tmp_path: Path, tiny_folder: Path, capsys):
    flags = ("--model", "unet", "--freeze-encoder", *FLAGS, "--out", tmp_path / "a")
    assert run_script("train", "--data", tiny_folder, *flags) == 0
    torch.manual_seed(0)
    model = ResNet18UNet(3)
    start = model.state_dict()
    trained = load_checkpoint(tmp_path / "a" / "last.pt")[0].state_dict()
    for name, value in start.items():
        if name.startswith("encoder."):
            assert torch.equal(value, trained[name]), name
    assert not torch.equal(start["classify.weight"], trained["classify.weight"])
    total, frozen = (
        sum(weight.numel() for weight in part.parameters()) for part in (model, model.encoder)
    )
    words = f"{total:,} parameters, {total - frozen:,} trained, {frozen:,} frozen"
    assert f"ResNet18UNet, {words}; 3 steps" in capsys.readouterr().out
    assert run_script("evaluate", tmp_path / "a" / "best.pt", "--out", tmp_path / "report") == 0
    words = f"total: {total}; trained: {total - frozen}; frozen: {frozen}"
    assert words in (tmp_path / "report" / "report.html").read_text()


@pytest.mark.parametrize("flag", ["--amp", pytest.param("--compile", marks=pytest.mark.slow)])
def test_a_faster_step_trains_alike(tmp_path: Path, tiny_folder: Path, flag: str):
    flags = ("--data", tiny_folder, *FLAGS, "--epochs", 1)
    counters["stats"].clear()
    for out, extra in (("plain", ()), ("faster", (flag,))):
        assert run_script("train", *flags, *extra, "--out", tmp_path / out) == 0
    plain, faster = (read_checkpoint(tmp_path / out / "last.pt") for out in ("plain", "faster"))
    losses = [run["history"][0]["train_loss"] for run in (plain, faster)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02 if flag == "--amp" else 1e-3)
    assert losses[0] != losses[1] if flag == "--amp" else counters["stats"]["unique_graphs"] > 0
    assert plain["model"].keys() == faster["model"].keys()
    assert {value.dtype for value in faster["model"].values()} == {torch.float32, torch.int64}


def test_validation_is_not_compiled(tmp_path: Path, tiny_folder: Path, monkeypatch):
    """Its images have many sizes, and each would be compiled anew."""
    for_training: list[bool] = []
    original = torch.nn.Module.compile

    def backend(graph, inputs):
        for_training.append(torch.is_grad_enabled())
        return graph.forward

    def compiled(module, **options):
        original(module, backend=backend, **options)

    monkeypatch.setattr(torch.nn.Module, "compile", compiled)
    flags = ("--data", tiny_folder, *FLAGS, "--epochs", 1, "--model", "unet", "--compile")
    assert run_script("train", *flags, "--out", tmp_path / "run") == 0
    assert for_training and all(for_training)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--data DIR", (32, 1e-3, 600)),
        ("--data DIR --recipe fast", (8, 2e-3, 3000)),
        ("--data DIR --recipe fast --model unet", (8, 4e-3, 3000)),
        ("--recipe fast --model unet --lr 0.1 --augment 0", (8, 0.1, 0)),
    ],
)
def test_a_recipe_has_its_own_defaults_and_a_flag_wins(flags, expected, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", *flags.split()])
    args = training_arguments("")
    assert (args.batch_size, args.lr, args.augment) == expected


@pytest.mark.parametrize(
    ("flags", "encoder_lr", "alpha", "coarse"),
    [
        ("--recipe fast", 0.1, 0.5, (0.0, 0.5)),
        ("--recipe fast --encoder-lr 0.3 --alpha 0.4", 0.3, 0.4, (0.0, 0.5)),
        ("--recipe fast --encoder-weights none", 1.0, 0.3, (0.4, 0.8)),
        ("--recipe fast --encoder-weights none --init best.pt", 0.1, 0.5, (0.0, 0.5)),
        ("--recipe fast --model uformer --encoder-weights none none", 1.0, 0.3, (0.4, 0.8)),
        ("--recipe fast --data scenes", 1.0, 0.3, (0.4, 0.8)),
        ("--recipe deck", 1.0, 0.3, (0.0, 0.0)),
    ],
)
def test_a_trained_start_has_its_own_defaults(flags, encoder_lr, alpha, coarse, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--data", "DIR", *flags.split()])
    recipe = recipe_of(training_arguments(""))
    assert (recipe.encoder_lr, recipe.alpha, recipe.coarse) == (encoder_lr, alpha, coarse)


def test_a_recipes_scales_are_those_of_its_samples(tmp_path, tiny_folder, monkeypatch):
    scales: list[float] = []

    def noted(image, mask, augmentation, crop):
        scales.append(augmentation.scale)
        return transform_pair(image, mask, augmentation, crop)

    monkeypatch.setattr(samples, "transform_pair", noted)
    row = replace(RECIPES["fast"], coarse=(0.0, 0.0))
    monkeypatch.setitem(RECIPES, "fast", row)
    flags = "--encoder-weights none --epochs 1 --augment 0 --batch-size 8 --workers 0 --crop 32 32"
    paths = ("--data", tiny_folder, "--out", tmp_path / "run")
    assert run_script("train", *paths, "--recipe", "fast", *flags.split()) == 0
    lowest, highest = row.scales
    assert len(scales) >= 16 and lowest <= min(scales) < 1 < max(scales) <= highest


@pytest.mark.slow
def test_the_fast_recipe_resumes_bit_for_bit_and_grows_its_samples(
    tmp_path: Path, tiny_folder: Path
):
    flags = ["--data", tiny_folder, *"--recipe fast --encoder-weights none".split()]
    flags += "--image-size 128 128 --epochs 4 --augment 0 --batch-size 8 --workers 0".split()
    sizes: list[int] = []
    original = SegFormer.forward

    def noted(model, image, keys=None):
        if model.training:
            sizes.append(image.shape[-1])
        return original(model, image, keys)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SegFormer, "forward", noted)
        patch.setattr("train.step_memory", lambda *_, **__: 0.0)  # which calls it too
        assert run_script("train", *flags, "--out", tmp_path / "noted") == 0
        assert sizes == [32] * 4 + [64] * 3 + [128]  # 8 steps: a quarter until 0.4, half until 0.8
    # One thread, as the next.
    assert run_in_child("train", (*flags, "--out", tmp_path / "a")) == 0
    arguments = (*flags, "--out", tmp_path / "b")
    assert run_in_child("train", arguments, Kill(signal.SIGTERM, "step", 6)) == 99
    assert run_in_child("train", (*arguments, "--resume")) == 0
    one, two = (read_checkpoint(tmp_path / run / "last.pt") for run in ("a", "b"))
    assert is_equal(one["model"], two["model"]) and is_equal(one["resume"], two["resume"])
    assert one["history"][-1]["lr"] < 2e-3 / 4


def test_fit_all_trains_on_val_too_and_the_last_weights_are_the_result(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    flags = "--fit-all --recipe fast --encoder-weights none --epochs 2 --batch-size 8 --augment 8"
    files = []
    for model in ("unet", "segformer"):
        out = tmp_path / model
        paths = ("--model", model, "--data", tiny_folder, "--out", out, "--workers", 0)
        assert run_script("train", *paths, *flags.split()) == 0
        best, last = (read_checkpoint(out / name) for name in ("best.pt", "last.pt"))
        assert is_equal(best["model"], last["model"])
        files.append(out / "best.pt")
    counts = {split: len(names) for split, names in last["data"]["splits"].items()}
    assert counts == {"train": 21, "val": 0, "test": 3}
    said = capsys.readouterr().out
    assert "done" in said and "the last weights" in said and "val loss" not in said
    with open(out / "history.csv") as file:
        history = list(csv.DictReader(file))
    assert [row["val_miou"] for row in history] == ["", ""] and float(history[1]["train_miou"]) > 0

    assert run_script("evaluate", files[1]) == 0
    assert run_script("evaluate", files[1], "--split", "val") == 2
    assert "val split is empty: its images were trained on (--fit-all)" in capsys.readouterr().err
    assert run_script("ensemble", *files, "--search") == 2
    assert run_script("ensemble", *files, "--out", tmp_path / "uformer.pt") == 0
    assert "they are equal" in capsys.readouterr().out
    assert read_checkpoint(tmp_path / "uformer.pt")["config"]["weights"] == [[0.5], [0.5]]


def test_fit_all_is_refused_with_a_schedule_that_needs_val(tmp_path: Path):
    assert run_script("train", "--fit-all", "--out", tmp_path / "run") == 2
    assert not (tmp_path / "run").exists()
