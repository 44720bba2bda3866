"""train.py, started as users start it, trains alike however it is executed.

An epoch is one step of an odd batch here, so that history.csv lists what every step gave.
"""

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from benchmarks.parity import distance

from segmentation.checkpoint import read_checkpoint

ROOT = Path(__file__).resolve().parents[1]
TORCHRUN = "-m torch.distributed.run --standalone --nproc_per_node=2"
FLAGS = "--device cpu --encoder-weights none --workers 0 --image-size 32 32 "
FLAGS += "--augment 8 --batch-size 15 --epochs 2"  # 24 samples an epoch: one step of 7 + 8
MODELS = {
    "segformer": "--model segformer --drop-path 0.1 --dropout 0.1",
    "unet": "--model unet --recipe fast",
}
COLUMNS = ("train_loss", "val_loss", "val_miou", "val_mpa", "lr", "train_miou", "train_mpa")
# Ranks add the same float32 numbers in another order. A mistake is over one of these bars tenfold.
LOSS = 5e-5  # relative: roundings of 6e-8, and what Adam makes of those in gradients near 0
SCORE = 2e-3  # a few of 5120 pixels or more, whose two best classes are equal but for rounding
MOMENT = 1e-2  # where a ReLU's input rounds to the other side of 0, a gradient begins or ends
BUFFERS = 1e-4  # means of features, which rounding moves and never cuts


@pytest.fixture(scope="module")
def run(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """(model, further flags, ranks) -> the folder of such a run, one thread a process."""

    @cache
    def train(model: str, further: str = "", ranks: int = 1) -> Path:
        out = tmp_path_factory.mktemp(model)
        start = f"{TORCHRUN if ranks == 2 else ''} train.py {FLAGS} {MODELS[model]} {further}"
        subprocess.run(
            [sys.executable, *start.split(), "--data", str(tiny_folder), "--out", str(out)],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            timeout=900,
            check=True,
        )
        return out

    return train


def history(out: Path) -> dict[str, list[float]]:
    """The columns of history.csv that no clock measured."""
    with open(out / "history.csv") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in COLUMNS}


def assert_same_training(found: Path, expected: Path) -> None:
    """Every step gave the same loss, gradient and statistics, every epoch the same scores.

    Weights are not compared: where the true gradient is 0, as a bias's before BatchNorm, Adam
    turns its rounding into steps as long as any.
    """
    lists, others = history(found), history(expected)
    assert lists["lr"] == others["lr"]
    for name in ("train_loss", "val_loss"):
        assert lists[name] == pytest.approx(others[name], rel=LOSS)
    for name in ("val_miou", "val_mpa", "train_miou", "train_mpa"):
        assert lists[name] == pytest.approx(others[name], abs=SCORE)
    one, two = (read_checkpoint(out / "last.pt") for out in (found, expected))
    assert distance(moments(one), moments(two)) <= MOMENT
    assert distance(buffers(one), buffers(two)) <= BUFFERS


def moments(checkpoint: dict) -> dict:
    """The optimizer's running mean of gradients, by the parameter's place in the model."""
    state = checkpoint["resume"]["optimizer"]["state"]
    return {place: entry["exp_avg"] for place, entry in state.items()}


def buffers(checkpoint: dict) -> dict:
    """BatchNorm's running means and variances."""
    return {name: value for name, value in checkpoint["model"].items() if "running_" in name}


@pytest.mark.slow
@pytest.mark.parametrize("model", ["segformer", "unet"])
def test_two_ranks_train_as_one_process(run, model):
    assert_same_training(run(model, ranks=2), run(model))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["fsdp", "pipeline"])
def test_two_ranks_that_share_a_model_train_as_one_process(run, way):
    assert_same_training(run("segformer", f"--parallel {way}", ranks=2), run("segformer"))


@pytest.mark.slow
def test_a_compiled_model_trains_as_any(run):
    assert_same_training(run("segformer", "--compile"), run("segformer"))
