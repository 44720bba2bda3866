"""Training that is stopped at any moment ends as training that never was: the same weights, bit for bit on a CPU."""

import csv
import random
import shutil
import signal
from pathlib import Path

import pytest
from children import MEASURED, SIGNALS, Kill, is_equal, run_in_child
from conftest import run_script

from segmentation.checkpoint import read_checkpoint

KILL = signal.SIGKILL
# Dropout of both kinds, augmented samples, an epoch of 5 steps and 4 images to score.
FLAGS = ("--batch-size", 4, "--augment", 4, "--image-size", 32, 32, "--drop-path", 0.1, "--dropout", 0.1, "--workers", 0)
FLAGS = ("--encoder-weights", "none", "--device", "cpu", *FLAGS)
EPOCHS = 10
MOMENTS = {"step": 5, "update": 5, "evaluation": 4, "epoch": 1, "save": 2, "half": 3, "flush": 3, "rename": 3}


def train(data: Path, out: Path, *more: object, kill: Kill | None = None, **limits) -> int:
    arguments = ("--data", data, *FLAGS, "--epochs", EPOCHS, "--out", out, *more)
    return run_in_child("train", tuple(map(str, arguments)), kill, **limits)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert train(tiny_folder, out) == 0
    return out


def assert_same_run(out: Path, other: Path) -> None:
    """Weights, optimizer, scheduler, position and history of last.pt, weights and scores of best.pt, history.csv."""
    for name in ("last.pt", "best.pt"):
        one, two = read_checkpoint(out / name), read_checkpoint(other / name)
        assert one.keys() == two.keys()
        assert [key for key in one if key not in MEASURED and not is_equal(one[key], two[key])] == [], name
    assert rows(out) == rows(other)
    assert len(rows(out)) == EPOCHS


def rows(out: Path) -> list[dict]:
    with open(out / "history.csv") as file:
        return [{k: v for k, v in row.items() if k not in MEASURED} for row in csv.DictReader(file)]


def test_killed_at_twenty_moments(tiny_folder: Path, undisturbed: Path, tmp_path: Path):
    """One run, killed twenty times in a row, each time somewhere else and by one of four signals."""
    draw = random.Random(4)
    deaths = []
    while True:
        moment = draw.choice(list(MOMENTS))
        kill = Kill(draw.choice([KILL, *SIGNALS]), moment, draw.randint(1, MOMENTS[moment]))
        code = train(tiny_folder, tmp_path / "run", "--resume", *draw.choice([(), ("--save-every", 1e-9)]), kill=kill)
        if code == 0:
            break
        assert code == (-KILL if kill.signal == KILL else 99), kill
        deaths.append(kill)
        if len(deaths) == 20:
            assert train(tiny_folder, tmp_path / "run", "--resume") == 0
            break
    assert len(deaths) == 20
    assert_same_run(tmp_path / "run", undisturbed)
    assert not list((tmp_path / "run").glob(".*"))
