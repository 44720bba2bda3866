"""Training stopped at any moment ends as if it never was: the same weights, bit for bit."""

import csv
import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from child_processes import MEASURED, ROOT, SIGNALS, Kill, is_equal, run_in_child
from conftest import run_script

from segmentation.checkpoint import read_checkpoint, save_checkpoint
from segmentation.data.datasets import open_dataset
from segmentation.data.samples import EpochOrder, TrainingSamples
from segmentation.training.clock import Clock

pytestmark = pytest.mark.usefixtures("small_models")

KILL = signal.SIGKILL
# Dropout of both kinds, augmented samples, an epoch of 5 steps and 4 images to score.
FLAGS = "--batch-size 4 --augment 4 --image-size 32 32 --drop-path 0.1 --dropout 0.1".split()
FLAGS += "--encoder-weights none --device cpu --workers 0".split()
EPOCHS = 3
MOMENTS = {
    "step": 5,
    "update": 5,
    "evaluation": 4,
    "epoch": 1,
    "save": 2,
    "half": 3,
    "flush": 3,
    "rename": 3,
}


def train(data: Path, out: Path, *more: object, kill: Kill | None = None, **limits) -> int:
    arguments = ("--data", data, *FLAGS, "--epochs", EPOCHS, "--out", out, *more)
    return run_in_child("train", arguments, kill, **limits)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert train(tiny_folder, out) == 0
    return out


def assert_same_run(out: Path, other: Path) -> None:
    """last.pt with optimizer, position and history, best.pt with its scores, history.csv."""
    for name in ("last.pt", "best.pt"):
        one, two = read_checkpoint(out / name), read_checkpoint(other / name)
        assert one.keys() == two.keys()
        for key in one.keys() - set(MEASURED):
            assert is_equal(one[key], two[key]), (name, key)
    assert rows(out) == rows(other) != []


def rows(out: Path) -> list[dict]:
    with open(out / "history.csv") as file:
        return [{k: v for k, v in row.items() if k not in MEASURED} for row in csv.DictReader(file)]


@pytest.mark.slow
def test_killed_at_twenty_moments(tiny_folder: Path, tmp_path: Path):
    """One run, killed twenty times in a row, each time elsewhere and by one of four signals."""
    long = ("--epochs", 10)
    assert train(tiny_folder, tmp_path / "undisturbed", *long) == 0
    draw = random.Random(4)
    deaths = []
    while True:
        moment = draw.choice(list(MOMENTS))
        kill = Kill(draw.choice([KILL, *SIGNALS]), moment, draw.randint(1, MOMENTS[moment]))
        saving = draw.choice([(), ("--save-every", 1e-9)])
        code = train(tiny_folder, tmp_path / "run", "--resume", *long, *saving, kill=kill)
        if code == 0:
            break
        assert code == (-KILL if kill.signal == KILL else 99), kill
        deaths.append(kill)
        if len(deaths) == 20:
            assert train(tiny_folder, tmp_path / "run", "--resume", *long) == 0
            break
    assert len(deaths) == 20
    assert_same_run(tmp_path / "run", tmp_path / "undisturbed")
    assert not list((tmp_path / "run").glob(".*.writing"))


@pytest.mark.parametrize("moment", ["data", "model", "step"])
@pytest.mark.parametrize("number", [*(set(SIGNALS) - {signal.SIGINT})])
def test_a_signal_before_the_first_step_is_not_lost(
    tiny_folder, undisturbed, tmp_path, moment, number
):
    """It waits for the first step, and nothing but what was done is saved."""
    assert train(tiny_folder, tmp_path / "run", kill=Kill(number, moment)) == 99
    state = read_checkpoint(tmp_path / "run" / "last.pt")["resume"]["progress"]
    assert (state["epoch"], state["step"]) == (0, 1)


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM, signal.SIGHUP])
def test_of_signals_ignored_by_the_parent_only_nohups_is_ignored(number):
    """run_oar.sh has USR2 ignored for torchrun, whose ranks inherit it."""
    handlers = {each: signal.getsignal(each) for each in SIGNALS}
    try:
        signal.signal(number, signal.SIG_IGN)
        clock = Clock()
        signal.raise_signal(number)
        assert clock.signalled == (number != signal.SIGHUP)
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)


def test_an_interrupt_before_the_first_step_ends_at_once(tiny_folder: Path, tmp_path: Path):
    said = tmp_path / "said"
    kill = Kill(signal.SIGINT, "data")
    assert train(tiny_folder, tmp_path / "run", kill=kill, output=said) == 1
    assert said.read_text().splitlines()[-1] == "interrupted"
    assert not list((tmp_path / "run").glob("*.pt"))


def test_a_second_training_in_a_folder_is_refused_until_the_first_ends(
    tiny_folder: Path, tmp_path: Path
):
    """A killed run leaves the lock's file, not the lock: that of the first test here is resumed."""
    out, said = tmp_path / "run", tmp_path / "said"
    out.mkdir()
    with open(out / ".lock", "w") as held:
        fcntl.lockf(held, fcntl.LOCK_EX)
        assert train(tiny_folder, out, output=said) == 2
    assert f"{out}: another training is under way there" in said.read_text()
    assert [file.name for file in out.iterdir()] == [".lock"]
    assert train(tiny_folder, out, "--epochs", 1) == 0


@pytest.mark.parametrize("spell", [os.path.relpath, lambda path: path.with_name("b")])
def test_a_run_goes_on_where_its_data_lie_now(
    tiny_folder: Path, undisturbed: Path, tmp_path: Path, spell: Callable
):
    data = Path(shutil.copytree(tiny_folder, tmp_path / "a"))
    out = tmp_path / "run"
    assert train(data, out, kill=Kill(signal.SIGTERM, "step", 3)) == 99
    now = spell(data)
    if not Path(now).exists():
        data.rename(now)
    moved = Path(shutil.move(out, tmp_path / "moved"))
    assert train(now, moved, "--resume") == 0
    one, two = (read_checkpoint(run / "last.pt")["model"] for run in (moved, undisturbed))
    assert is_equal(one, two) and rows(moved) == rows(undisturbed)
    lost = sorted(Path(now).glob("masks/*"))[0]
    lost.unlink()
    assert train(now, moved, "--resume", "--epochs", 9) == 2


def test_killed_before_the_first_save_starts_fresh(
    tiny_folder: Path, undisturbed: Path, tmp_path: Path
):
    assert train(tiny_folder, tmp_path / "run", "--resume", kill=Kill(KILL, "update", 2)) == -KILL
    assert not (tmp_path / "run" / "last.pt").exists()
    assert train(tiny_folder, tmp_path / "run", "--resume") == 0
    assert_same_run(tmp_path / "run", undisturbed)


def test_a_killed_writer_leaves_nothing_for_good(tiny_folder: Path, tmp_path: Path):
    out = tmp_path / "run"
    for moment in ("half", "flush", "rename"):
        flags = ("--resume", "--save-every", 1e-9)
        assert train(tiny_folder, out, *flags, kill=Kill(KILL, moment, 2)) == -KILL
        assert len(list(out.glob(".*.writing"))) == 1
    assert train(tiny_folder, out, "--resume", kill=Kill(signal.SIGTERM, "step")) == 99
    assert not list(out.glob(".*.writing"))


def test_saves_inside_an_epoch(tiny_folder: Path, tmp_path: Path):
    assert train(tiny_folder, tmp_path, "--save-every", 1e-9, kill=Kill(KILL, "update", 4)) == -KILL
    assert read_checkpoint(tmp_path / "last.pt")["resume"]["progress"]["step"] == 3


def test_a_finished_run_resumed_ends_with_0_and_changes_nothing(tiny_folder, undisturbed, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    (out / "history.csv").unlink()  # rebuilt from the checkpoint
    assert train(tiny_folder, out, "--resume") == 0
    assert_same_run(out, undisturbed)
    assert (out / "last.pt").read_bytes() == (undisturbed / "last.pt").read_bytes()


def test_a_held_folder_is_refused_and_torchrun_restarting_implies_resume(
    tiny_folder, undisturbed, tmp_path
):
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    assert train(tiny_folder, out, output=tmp_path / "said") == 2
    assert "already holds a run (last.pt): add --resume" in (tmp_path / "said").read_text()
    assert train(tiny_folder, out, environment={"TORCHELASTIC_RESTART_COUNT": "1"}) == 0
    assert train(tiny_folder, out, "--resume", "--lr", 0.5, output=tmp_path / "said") == 2
    assert "--lr 0.5 (was 0.001)" in (tmp_path / "said").read_text()
    assert_same_run(out, undisturbed)


def test_other_names_of_classes_are_refused(tiny_folder: Path, undisturbed: Path, tmp_path: Path):
    data, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(tiny_folder, data)
    shutil.copytree(undisturbed, out)
    checkpoint = read_checkpoint(out / "last.pt")
    checkpoint["data"]["root"] = checkpoint["args"]["data"] = str(data)
    save_checkpoint(out / "last.pt", checkpoint)
    (data / "classes.csv").write_text("0,sky,1,1,1\n1,tree,2,2,2\n2,road,3,3,3\n")
    assert train(data, out, "--resume", output=tmp_path / "said") == 2
    assert "last.pt was trained with the classes 0, 1, 2, the data have sky, tree, road" in (
        tmp_path / "said"
    ).read_text().replace("\n", " ")


def test_workers_change_no_bit(tiny_folder: Path, undisturbed: Path, tmp_path: Path):
    assert train(tiny_folder, tmp_path / "run", "--workers", 2) == 0
    assert_same_run(tmp_path / "run", undisturbed)


def test_more_epochs_later(tiny_folder: Path, undisturbed: Path, tmp_path: Path):
    assert train(tiny_folder, tmp_path / "run", "--epochs", 1) == 0
    assert train(tiny_folder, tmp_path / "run", "--resume") == 0
    assert_same_run(tmp_path / "run", undisturbed)


def test_training_scores_of_an_epoch_stopped_inside(tiny_folder, undisturbed, tmp_path):
    """What was counted before the stop is in last.pt, and counts once."""
    out = tmp_path / "run"
    assert train(tiny_folder, out, kill=Kill(signal.SIGTERM, "step", 3)) == 99
    counted = read_checkpoint(out / "last.pt")["resume"]["confusion"]
    assert 0 < counted.sum() <= 3 * 4 * 32 * 32
    assert train(tiny_folder, out, "--resume") == 0
    assert_same_run(out, undisturbed)
    assert all(0 < float(row["train_miou"]) <= float(row["train_mpa"]) for row in rows(out))


def test_a_run_of_before_there_were_training_scores_goes_on(tiny_folder, undisturbed, tmp_path):
    assert train(tiny_folder, tmp_path, "--epochs", 1) == 0
    saved = read_checkpoint(tmp_path / "last.pt")
    del saved["resume"]["confusion"]
    for name in ("train_miou", "train_mpa"):
        del saved["history"][0][name]
    save_checkpoint(tmp_path / "last.pt", saved)
    assert train(tiny_folder, tmp_path, "--resume") == 0
    (first, *others), (_, *expected) = rows(tmp_path), rows(undisturbed)
    assert first["train_miou"] == first["train_mpa"] == "" and others == expected
    assert run_script("evaluate", tmp_path / "last.pt", "--out", tmp_path / "report") == 0


def test_out_of_time_is_done(tiny_folder: Path, tmp_path: Path):
    """The limit ends a run with 0, resuming adds nothing, a longer limit does."""
    arguments = ("--data", tiny_folder, *FLAGS, "--epochs", 10_000, "--out", tmp_path)
    assert run_in_child("train", (*arguments, "--max-minutes", 0.05)) == 0
    first = read_checkpoint(tmp_path / "last.pt")
    # The start is not counted: it is as long as the machine makes it. Nor is the last epoch.
    before_the_last = [row["seconds"] for row in first["history"][:-1]]
    assert sum(before_the_last) < 3
    assert first["seconds"] > 2
    assert run_in_child("train", (*arguments, "--max-minutes", 0.05, "--resume")) == 0
    assert is_equal(read_checkpoint(tmp_path / "last.pt")["model"], first["model"])
    longer = first["seconds"] / 60 + 0.02
    assert run_in_child("train", (*arguments, "--max-minutes", longer, "--resume")) == 0
    assert read_checkpoint(tmp_path / "last.pt")["epoch"] > first["epoch"]


def test_a_limit_that_the_start_uses_up_is_refused(tiny_folder: Path, tmp_path: Path, capsys):
    """Weights without a step of training are no result."""
    flags = ("--data", tiny_folder, *FLAGS, "--out", tmp_path)
    assert run_script("train", *flags, "--max-minutes", 1e-6) == 2
    assert "--max-minutes 1e-06 leaves no time between the start" in capsys.readouterr().err
    assert not (tmp_path / "last.pt").exists()
    assert run_script("train", *flags, "--epochs", 1) == 0


def test_resume_keeps_the_precision_unless_told_otherwise(
    tiny_folder: Path, tmp_path: Path, monkeypatch
):
    """A limit that is added fits the recipe, which takes bfloat16, but not within a run."""
    monkeypatch.setattr("segmentation.training.pace.has_bfloat16", lambda device: True)
    flags = ("--data", tiny_folder, *FLAGS, "--recipe", "fast", "--out", tmp_path)
    assert run_script("train", *flags, "--epochs", 1) == 0
    assert run_script("train", *flags, "--epochs", 2, "--max-minutes", 60, "--resume") == 0
    saved = read_checkpoint(tmp_path / "last.pt")
    assert saved["epoch"] == 2 and not saved["args"]["amp"]
    assert run_script("train", *flags, "--epochs", 3, "--amp", "--resume") == 0
    assert read_checkpoint(tmp_path / "last.pt")["args"]["amp"]


@pytest.mark.parametrize(("flags", "saved_at"), [((), (1, 0)), (("--save-every", 1e-9), (1, 2))])
def test_a_loss_that_is_no_number_names_the_files(
    tiny_folder: Path, tmp_path: Path, monkeypatch, flags, saved_at
):
    """Those of the very batch; the last good checkpoint stays, of an epoch or a step before."""
    from segmentation import recipes

    class Poisoned(recipes.TverskyLoss):
        steps = 0

        def forward(self, logits, target):
            Poisoned.steps += target.shape[-1] == 32  # not where a step's memory is measured
            return super().forward(logits, target) * (float("nan") if Poisoned.steps == 8 else 1)

    monkeypatch.setattr(recipes, "TverskyLoss", Poisoned)
    recipe = replace(recipes.RECIPES["deck"], augment=4)
    data = open_dataset(str(tiny_folder))
    samples = TrainingSamples(data, "train", recipe, crop=(32, 32), seed=0)
    order = EpochOrder(len(samples), 4, seed=0)
    order.set_epoch(1)
    files = ", ".join(samples[key]["name"] for key in list(order)[2])
    with pytest.raises(RuntimeError, match=f"the loss is nan on {files}: look at"):
        run_script("train", "--data", tiny_folder, *FLAGS, "--epochs", 3, *flags, "--out", tmp_path)
    saved = read_checkpoint(tmp_path / "last.pt")
    assert (saved["epoch"], saved["resume"]["progress"]["step"]) == saved_at
    assert all(bool(weight.isfinite().all()) for weight in saved["model"].values())


def test_weights_that_are_no_numbers_are_not_saved(tiny_folder: Path, tmp_path: Path, monkeypatch):
    """A finite loss with a gradient that is not: nothing of it reaches last.pt."""
    from segmentation import recipes

    steps = 0
    step = recipes.torch.optim.Adam.step

    def poisoned(self, *args, **kwargs):
        nonlocal steps
        steps += 1
        if steps == 10:  # the last of the second epoch: no later loss tells
            next(p for p in self.param_groups[0]["params"] if p.grad is not None).grad.fill_(
                float("nan")
            )
        return step(self, *args, **kwargs)

    monkeypatch.setattr(recipes.torch.optim.Adam, "step", poisoned)
    with pytest.raises(RuntimeError, match="weights are no longer numbers at epoch 3"):
        run_script("train", "--data", tiny_folder, *FLAGS, "--epochs", 3, "--out", tmp_path)
    assert read_checkpoint(tmp_path / "last.pt")["epoch"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("to", ["torchrun", "ranks"])
@pytest.mark.parametrize("number", SIGNALS)
def test_under_torchrun(tiny_folder: Path, tmp_path: Path, number: int, to: str):
    """Two ranks with sample processes, signalled by way of torchrun or each itself.

    A marker, code 0 of every rank, and with --resume the weights of two undisturbed ranks.
    """
    if number == signal.SIGINT and to == "ranks":
        pytest.skip("the same handler as the others")
    more = "--workers 1 --epochs 20 --augment 0 --resume".split()
    arguments = ["--data", tiny_folder, *FLAGS, *more]
    started = launch(*arguments, "--out", tmp_path / "run")
    wait_for(
        lambda: (
            (tmp_path / "run" / "history.csv").exists() and (tmp_path / "run" / "last.pt").exists()
        )
    )
    children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
    for process in [started.pid] if to == "torchrun" else children:
        os.kill(int(process), number)
    said, _ = started.communicate(timeout=120)
    assert "interrupted in epoch" in said
    assert "failed (exitcode" not in said
    # torchrun ends with its own signal's exception.
    assert started.returncode == (1 if to == "torchrun" else 0)
    assert (tmp_path / "run" / "interrupted").exists()
    if to == "ranks" and number == signal.SIGUSR2:
        for out in ("run", "other"):
            assert launch(*arguments, "--out", tmp_path / out).wait(240) == 0
            assert not (tmp_path / out / "interrupted").exists()
        one, two = (read_checkpoint(tmp_path / out / "last.pt") for out in ("run", "other"))
        assert is_equal(one["model"], two["model"])
        assert is_equal(one["resume"], two["resume"])
        assert is_equal(one["history"], two["history"])


def launch(*arguments: object) -> subprocess.Popen:
    """train.py on two ranks."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command.append("--signals-to-handle=SIGTERM,SIGINT,SIGUSR2,SIGHUP")
    command += ["train.py", *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)
