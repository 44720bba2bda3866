"""What --recipe fast makes of a time limit: measured, said, stored, and less than any flag."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import run_script

from segmentation.arguments import recipe_of, training_arguments
from segmentation.checkpoint import load_checkpoint
from segmentation.losses import TverskyCrossEntropy
from segmentation.models import build_model
from segmentation.recipes import LONGER, PASSES, RECIPES, recipe_for
from segmentation.training import pace

pytestmark = pytest.mark.usefixtures("small_models")

FAST = RECIPES["fast"]
FLAGS = (
    "--recipe fast --device cpu --workers 0 --encoder-weights none --image-size 32 32 "
    "--batch-size 4 --augment 0 --max-minutes 60"
).split()


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The machine is as fast as the one number in this list says: passes in an hour."""
    wanted = [PASSES[1]]

    def speed(*_: object) -> float:
        return wanted[0] * pace.FEWEST / 3600 * 32 * 32

    monkeypatch.setattr(pace, "pixels_a_second", speed)
    return wanted


def test_a_row_stays_for_minutes_and_takes_all_of_longer_for_an_evening():
    assert pace.for_time(FAST, 0.1) == pace.for_time(FAST, PASSES[0]) == FAST
    longest = replace(FAST, **LONGER, batch_size=16)
    assert pace.for_time(FAST, PASSES[1]) == pace.for_time(FAST, 1e9) == longest
    half = pace.for_time(FAST, (PASSES[0] * PASSES[1]) ** 0.5)  # half way on a logarithmic scale
    assert half.drop_path == pytest.approx(0.05) and half.alpha == pytest.approx(0.4)
    assert half.coarse == pytest.approx((0.2, 0.55)) and half.batch_size == 16
    started = pace.for_time(recipe_for("fast", "segformer", "DIR", trained=True), 1e9)
    assert started.coarse == (0.0, 0.3) and started.encoder_lr == 0.1
    unet = pace.for_time(recipe_for("fast", "unet", "DIR"), 1e9)
    assert started.batch_size == unet.batch_size == 8  # larger ones are SegFormer's, from random


def test_what_was_measured_is_said_stored_and_kept_by_resume(
    tmp_path: Path, tiny_folder: Path, passes: list[float], capsys: pytest.CaptureFixture
):
    arguments = ["train", "--data", tiny_folder, *FLAGS, "--out", tmp_path / "run"]
    assert run_script(*arguments, "--alpha", 0.4, "--epochs", 1) == 0
    said = capsys.readouterr().out
    assert "80 passes over 300: alpha 0.4, beta 0.5, drop_path 0.1, dropout 0.1" in said
    model, meta = load_checkpoint(tmp_path / "run" / "last.pt")
    assert meta["recipe"]["scales"] == pytest.approx((0.76, 1.6)) and meta["recipe"]["augment"] == 0
    assert meta["loss"] == pytest.approx({"alpha": 0.4, "beta": 0.5})
    assert meta["config"]["drop_path"] == model.decoder.dropout.p == pytest.approx(0.1)
    assert model.encoder.stages[-1].blocks[-1].drop_path.p == pytest.approx(0.1)

    passes[0] = 1.0
    again = ("--resume", "--epochs", 2, "--beta", 0.7)  # a default, now said
    assert run_script(*arguments, "--alpha", 0.4, *again) == 0
    assert "passes over" not in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "run" / "last.pt")[1]["recipe"] == meta["recipe"] | {
        "epochs": 2
    }


def test_an_epoch_is_as_long_as_its_validation_is_cheap(
    tmp_path: Path, tiny_folder: Path, passes: list[float], capsys: pytest.CaptureFixture
):
    flags = ["--recipe", "fast", "--encoder-weights", "none", "--crop", 32, 32, "--workers", 0]
    flags += ["--max-minutes", 0.01, "--device", "cpu", "--batch-size", 4, "--dry-run"]
    assert run_script("train", "--data", tiny_folder, *flags, "--out", tmp_path / "run") == 0
    extra = pace.LEAST_SAMPLES - 16
    assert f"augment {extra}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "has", "amp"),
    [("", True, True), ("", False, False), ("--no-amp", True, False), ("--amp", False, True)],
)
def test_bfloat16_is_used_where_it_is_fast(
    flags: str,
    has: bool,
    amp: bool,
    tmp_path: Path,
    tiny_folder: Path,
    passes: list[float],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(pace, "has_bfloat16", lambda device: has)
    arguments = [
        "--data",
        tiny_folder,
        *FLAGS,
        *flags.split(),
        "--epochs",
        1,
        "--out",
        tmp_path / "run",
    ]
    assert run_script("train", *arguments) == 0
    assert load_checkpoint(tmp_path / "run" / "last.pt")[1]["args"]["amp"] is amp


@pytest.mark.parametrize("amp", [True, False])
def test_the_faster_precision_is_taken_where_both_can_be(amp: bool, monkeypatch):
    """On an H100 a SegFormer's step was faster in TF32."""
    monkeypatch.setattr(pace, "has_bfloat16", lambda device: True)
    monkeypatch.setattr(pace, "pixels_a_second", lambda *args: 2e6 if args[2] is amp else 1e6)
    monkeypatch.setattr(sys, "argv", ["train.py", "--recipe", "fast", "--max-minutes", "1"])
    args = training_arguments("")
    pace.fit_recipe(FAST, args, torch.nn.Linear(1, 1), images_of_60_by_80(val=0))
    assert args.amp is amp


@pytest.mark.parametrize("flags", ["--recipe deck --max-minutes 5", "--recipe fast --epochs 3"])
def test_without_a_time_limit_for_fast_the_row_is_used(flags: str, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--data", "DIR", *flags.split()])
    args = training_arguments("")
    assert not pace.fits_time(recipe_of(args), args)


def test_measuring_changes_nothing():
    config = {"model": "unet", "num_classes": 3}
    model = build_model(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    speed = pace.pixels_a_second(model, TverskyCrossEntropy(), False, (2, 32, 64))
    assert speed > 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("device", "ranks", "shape"),
    [("cpu", 1, pace.ON_A_CPU), ("meta", 1, (8, 60, 80)), ("meta", 2, (4, 60, 80))],
)
def test_a_device_that_small_steps_leave_idle_is_timed_on_whole_ones(
    device, ranks, shape, monkeypatch
):
    timed = []
    monkeypatch.setattr(pace, "world_size", lambda: ranks)
    monkeypatch.setattr(pace, "pixels_a_second", lambda *args: timed.append(args[-1]) or 1e6)
    monkeypatch.setattr(sys, "argv", ["train.py", "--recipe", "fast", "--max-minutes", "1"])
    monkeypatch.setattr(pace, "has_bfloat16", lambda device: False)
    model = torch.nn.Linear(1, 1, device=device)
    pace.fit_recipe(FAST, training_arguments(""), model, images_of_60_by_80(val=0))
    assert timed == [shape]


def test_windows_of_large_images_make_longer_epochs_and_time_is_kept_to_score(monkeypatch):
    """Scored are whole images: here each is as large as eight windows."""
    monkeypatch.setattr(pace, "pixels_a_second", lambda *_: 2 * 30 * 20)  # two windows a second
    flags = "train.py --recipe fast --max-minutes 1 --crop 30 20"
    monkeypatch.setattr(sys, "argv", flags.split())
    data = images_of_60_by_80(val=4)
    recipe, seconds = pace.fit_recipe(FAST, training_arguments(""), torch.nn.Linear(1, 1), data)
    assert recipe.augment == 4 * 8 * pace.SAMPLES_PER_SCORE - 1
    assert seconds == pytest.approx(4 * 8 / 2 / pace.SCORING_SPEEDUP)


def images_of_60_by_80(val: int) -> SimpleNamespace:
    return SimpleNamespace(
        splits={"train": ["a.png"], "val": ["b.png"] * val},
        pixel_counts={"train": [5, 5]},
        image=lambda name: np.zeros((60, 80, 3), np.uint8),
    )
