"""Checkpoints: whole or not at all, whatever befalls writer or disk; reading runs no code."""

import os
import pickle
import random
import shutil
import subprocess
import time
import zipfile
from pathlib import Path

import pytest
import torch
from child_processes import context, is_equal, run_in_child

from segmentation import ResNet18UNet, SegFormer, load_checkpoint
from segmentation.checkpoint import FORMAT, read_checkpoint, save_checkpoint
from segmentation.errors import BadInput
from segmentation.files import write_atomically
from segmentation.training.progress import Progress

CONFIG = {"model": "segformer", "num_classes": 3}
FLAGS = "--encoder-weights none --device cpu --workers 0 --image-size 32 32".split()
FLAGS += "--batch-size 4 --augment 0".split()


def checkpoint_of(model: torch.nn.Module, **changes: object) -> dict:
    return {"model": model.state_dict(), "config": CONFIG, "classes": ["a", "b", "c"], **changes}


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return SegFormer(3).eval()


def test_what_is_saved_is_what_is_loaded(model: torch.nn.Module, tmp_path: Path):
    save_checkpoint(tmp_path / "a.pt", checkpoint_of(model, args={"lr": 0.1, "crop": None}))
    loaded, meta = load_checkpoint(tmp_path / "a.pt")
    assert is_equal(loaded.state_dict(), model.state_dict())
    assert not loaded.training
    assert meta == {
        "format": FORMAT,
        "config": CONFIG | {"norm_eps": 1e-6},
        "classes": ["a", "b", "c"],
        "args": {"lr": 0.1, "crop": None},
    }


def test_a_checkpoint_of_format_1_is_read_as_one_of_format_2(model, tmp_path: Path):
    """What a score needs stood among args, the state of a run under other names."""
    state = {"lr": 0.1, "epoch": 1, "step": 3, "loss_sum": 1.5, "best": 0.4, "started": 7.0}
    state |= {"time_up": 2.0, "history": [{"epoch": 1}]}
    old = {"format": 1, "args": {"alpha": 0.2, "beta": 0.8}, "history": state["history"]}
    old["resume"] = {"optimizer": {}, "scheduler": {}, "state": state, "seconds": 9.0}
    save_checkpoint(tmp_path / "old.pt", checkpoint_of(model, **old))
    found = read_checkpoint(tmp_path / "old.pt")
    assert (found["format"], found["loss"]) == (FORMAT, {"alpha": 0.2, "beta": 0.8})
    progress = Progress(**found["resume"]["progress"], history=found["history"])
    assert (progress.lr, progress.step, progress.best_miou) == (0.1, 3, 0.4)
    assert (progress.epoch_began, progress.limit_reached) == (7.0, 2.0)
    assert progress.history == [{"epoch": 1}]


class Hostile:
    """A pickle that runs a command when it is read."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


def hostile_pickle(path: Path, good: Path) -> None:
    path.write_bytes(pickle.dumps({"model": Hostile(path.with_name("ran"))}))


def hostile_archive(path: Path, good: Path) -> None:
    torch.save(
        {**torch.load(good, weights_only=True), "args": Hostile(path.with_name("ran"))}, path
    )


def hostile_inside(path: Path, good: Path) -> None:
    """A whole checkpoint whose archive has another data.pkl."""
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(path, "w") as new:
        for item in old.infolist():
            content = old.read(item)
            if item.filename.endswith("data.pkl"):
                content = pickle.dumps(Hostile(path.with_name("ran")), protocol=2)
            new.writestr(item.filename, content)


def object_of_a_class(path: Path, good: Path) -> None:
    torch.save(ResNet18UNet(2), path)


def truncated(path: Path, good: Path) -> None:
    path.write_bytes(good.read_bytes()[: good.stat().st_size // 2])


def damaged(path: Path, good: Path) -> None:
    content = bytearray(good.read_bytes())
    content[100:400] = bytes(300)
    path.write_bytes(content)


def changed(path: Path, good: Path, **changes: object) -> None:
    torch.save({**torch.load(good, weights_only=True), **changes}, path)


BAD = {
    "missing": (lambda path, good: None, "No such file"),
    "empty": (lambda path, good: path.touch(), "is empty"),
    "a folder": (lambda path, good: path.mkdir(), "Is a directory"),
    "text": (lambda path, good: path.write_text("epoch,loss\n1,0.5\n"), "not a checkpoint"),
    "a picture": (
        lambda path, good: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(500)),
        "not a checkpoint",
    ),
    "zeros": (lambda path, good: path.write_bytes(bytes(5000)), "not a checkpoint"),
    "truncated": (truncated, "is cut short"),
    "damaged": (damaged, "damaged or not a checkpoint|not a checkpoint of plain data"),
    "a zip of something else": (
        lambda path, good: zipfile.ZipFile(path, "w").close(),
        "not a checkpoint",
    ),
    "a hostile pickle": (hostile_pickle, "not a checkpoint of plain data, so it was not loaded"),
    "a hostile archive": (hostile_archive, "not a checkpoint of plain data, so it was not loaded"),
    "a hostile core": (hostile_inside, "not a checkpoint of plain data, so it was not loaded"),
    "a pickled model": (object_of_a_class, "not a checkpoint of plain data, so it was not loaded"),
    "a list": (lambda path, good: torch.save([1, 2], path), "holds no checkpoint of this project"),
    "weights alone": (
        lambda path, good: torch.save(ResNet18UNet(2).state_dict(), path),
        "holds no checkpoint of this",
    ),
    "another format": (
        lambda path, good: changed(path, good, format=99),
        f"has format 99, this version reads 1 to {FORMAT}",
    ),
    "an unknown model": (
        lambda path, good: changed(path, good, config={"model": "vgg"}),
        "no model can be built from",
    ),
    "no configuration": (
        lambda path, good: changed(path, good, config=None),
        "do not fit its configuration",
    ),
    "a strange argument": (
        lambda p, good: changed(p, good, config={**CONFIG, "depth": 9}),
        "no model can be built",
    ),
    "nonsense as classes": (
        lambda p, good: changed(p, good, config={**CONFIG, "num_classes": -3}),
        "do not fit its",
    ),
    "other classes": (
        lambda p, good: changed(p, good, config={**CONFIG, "num_classes": 7}),
        "shape in current model",
    ),
    "another model": (
        lambda p, good: changed(p, good, config={"model": "unet", "num_classes": 3}),
        "do not fit its",
    ),
    "a list as weights": (
        lambda path, good: changed(path, good, model=[1, 2]),
        "do not fit its configuration",
    ),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, model: torch.nn.Module) -> Path:
    path = tmp_path_factory.mktemp("good") / "good.pt"
    save_checkpoint(path, checkpoint_of(model))
    return path


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_in_one_line(case: str, good: Path, tmp_path: Path):
    make, message = BAD[case]
    path = tmp_path / "bad.pt"
    make(path, good)
    with pytest.raises(BadInput, match=message) as caught:
        load_checkpoint(path)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert len(sentence) < 500
    assert str(path) in sentence
    assert not (tmp_path / "ran").exists()


def write_forever(folder: Path, start: int) -> None:
    torch.set_num_threads(1)
    for number in range(start, 10**9):
        save_checkpoint(
            folder / "last.pt",
            {"model": torch.full((700_000,), number), "config": {}, "classes": [number]},
        )


@pytest.mark.slow
def test_killed_in_a_loop_of_saves_the_newest_always_loads(tmp_path: Path):
    """Each number is in a file whole or not at all, none is lost once it is there."""
    draw, last = random.Random(0), tmp_path / "last.pt"
    newest, seen = 0, None
    for _ in range(15):
        process = context.Process(target=write_forever, args=(tmp_path, newest + 1))
        process.start()
        end = time.monotonic() + 30
        while time.monotonic() < end and (not last.exists() or last.stat().st_mtime_ns == seen):
            time.sleep(0.01)  # until this process has saved once, however slow the disk
        time.sleep(draw.uniform(0.05, 0.3))
        process.kill()
        process.join()
        saved, seen = read_checkpoint(last), last.stat().st_mtime_ns
        assert saved["classes"][0] > newest
        newest = saved["classes"][0]
        assert bool((saved["model"] == newest).all())


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch):
    write_atomically(tmp_path / "file", b"old")
    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(
                os, call, lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
            )
            with pytest.raises(OSError, match="No space left"):
                write_atomically(tmp_path / "file", b"new")
        assert [path.name for path in tmp_path.iterdir()] == ["file"]
        assert (tmp_path / "file").read_bytes() == b"old"


def train(data: Path, out: Path, *more: object, **limits) -> int:
    return run_in_child("train", ("--data", data, *FLAGS, "--out", out, *more), **limits)


def test_files_that_cannot_grow_cost_the_save_and_the_run_says_so(
    tiny_folder: Path, tmp_path: Path, small: None
):
    """A limit on the size of a file: last.pt is beyond it, the smaller best.pt is not."""
    out, said = tmp_path / "run", tmp_path / "said"
    assert train(tiny_folder, out, "--epochs", 2, largest_file=1_200_000, output=said) == 1
    warning = f"warning: {out}/last.pt not written (File too large): the one before it stays"
    assert said.read_text().count(warning) == 2
    assert "epoch 2/2" in said.read_text()
    assert "error: done, but the last save failed" in said.read_text()
    assert not (out / "last.pt").exists()
    assert not list(out.glob(".*.writing"))
    load_checkpoint(out / "best.pt")


@pytest.fixture
def small_disk(tmp_path: Path):
    """A disk of its own, 70 MB; needs the right to mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=70m", "tmpfs", str(folder)]
    if mount is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting is not permitted")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_good_checkpoint(
    tiny_folder: Path, small_disk: Path, tmp_path: Path
):
    """Room for the first epoch's files, none for the second's beside them; then room again."""
    out, said = small_disk / "run", tmp_path / "said"
    assert train(tiny_folder, out, "--epochs", 1) == 0
    (small_disk / "others").write_bytes(bytes(10_000_000))
    assert train(tiny_folder, out, "--epochs", 3, "--resume", output=said) == 1
    warning = f"warning: {out}/last.pt not written (No space left on device)"
    assert f"{warning}: the one before it stays" in said.read_text()
    assert "epoch 3/3" in said.read_text()
    assert "error: done, but the last save failed" in said.read_text()
    assert read_checkpoint(out / "last.pt")["epoch"] == 1
    load_checkpoint(out / "best.pt")
    assert not list(out.glob(".*.writing"))

    subprocess.run(["mount", "-o", "remount,size=300m", str(small_disk)], check=True)
    assert train(tiny_folder, out, "--epochs", 3, "--resume") == 0
    assert train(tiny_folder, tmp_path / "whole", "--epochs", 3) == 0
    for name in ("last.pt", "best.pt"):
        one, two = (read_checkpoint(folder / name) for folder in (out, tmp_path / "whole"))
        assert is_equal(one["model"], two["model"]), name


def test_no_room_at_all_is_said_before_training(
    tiny_folder: Path, small_disk: Path, tmp_path: Path
):
    (small_disk / "others").write_bytes(bytes(69_900_000))
    with (
        open(small_disk / "more", "wb", buffering=0) as file,
        pytest.raises(OSError, match="No space"),
    ):
        while True:
            file.write(bytes(4096))
    said = tmp_path / "said"
    assert train(tiny_folder, small_disk / "run", "--epochs", 1, output=said) == 2
    assert "config.json cannot be written (No space left on device)" in said.read_text()
