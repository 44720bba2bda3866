"""What an evaluation scores: the checkpoint's own images, those of another set, never a guess."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import run_script, write_pairs
from PIL import Image

from segmentation.checkpoint import read_checkpoint, save_checkpoint

pytestmark = pytest.mark.usefixtures("small_models")

Trained = Callable[[str], Path]


def scored(checkpoint: Path, tmp_path: Path, *arguments: object) -> list[str]:
    """The names that evaluate.py scored."""
    out = tmp_path / "scores.json"
    assert run_script("evaluate", checkpoint, "--json", out, *arguments) == 0
    return [row["name"] for row in json.loads(out.read_text())["images"]]


@pytest.fixture
def checkpoint(trained: Trained) -> Path:
    return trained("unet") / "best.pt"


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


@pytest.fixture
def splits(checkpoint: Path) -> dict[str, list[str]]:
    return json.loads(checkpoint.with_name("config.json").read_text())["data"]["splits"]


def test_a_copy_without_some_training_images_is_scored_on_its_own_split(
    checkpoint: Path, copy: Path, splits: dict, tmp_path: Path
):
    for folder in ("images", "masks"):
        (copy / folder / Path(splits["train"][0]).name).unlink()
    assert scored(checkpoint, tmp_path, "--data", copy, "--split", "val") == splits["val"]
    assert scored(checkpoint, tmp_path, "--data", f"{copy}/") == splits["test"]


def test_a_copy_without_some_of_the_images_to_score_is_refused(
    checkpoint: Path, copy: Path, splits: dict, trained: Trained, capsys: pytest.CaptureFixture
):
    lost = splits["val"][1]
    (copy / lost).unlink()
    both = [checkpoint, trained("segformer") / "best.pt"]
    for script, arguments in (
        ("evaluate", [checkpoint, "--split", "val"]),
        ("ensemble", [*both, "--weights", 1, 1]),
    ):
        assert run_script(script, *arguments, "--data", copy) == 2
        said = capsys.readouterr().err
        assert f"{lost}: in the stored val split" in said and "--split all" in said


def test_another_set_is_scored_whole_whatever_its_layout(
    checkpoint: Path, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    new = tmp_path / "new"
    for number, image in enumerate(sorted((copy / "images").iterdir())[:6]):
        for folder in ("images", "masks"):
            file = new / folder / f"new{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(copy / folder / image.name, file)
    names = [f"images/new{number}.png" for number in range(6)]
    assert scored(checkpoint, tmp_path, "--data", new) == names
    said = capsys.readouterr().out
    assert "the checkpoint names none of these 6 images: all are scored" in said
    assert "on 6 images\n" in said

    alone = tmp_path / "alone/test"
    shutil.copytree(new, alone)
    assert scored(checkpoint, tmp_path, "--data", alone.parent) == [f"test/{n}" for n in names]
    shutil.copytree(new, copy / "split/train")
    shutil.copytree(new / "images", copy / "split/train/images/../../val/images")
    shutil.copytree(new / "masks", copy / "split/val/masks")
    assert len(scored(checkpoint, tmp_path, "--data", copy / "split")) == 12
    assert len(scored(checkpoint, tmp_path, "--data", copy / "split", "--split", "val")) == 6


def test_all_of_the_checkpoints_own_set_are_scored_if_asked_for(
    checkpoint: Path, tiny_folder: Path, tmp_path: Path
):
    assert len(scored(checkpoint, tmp_path, "--split", "all")) == 24


def test_a_test_split_that_came_later_is_scored(
    trained: Trained, tiny_folder: Path, tmp_path: Path
):
    data = tmp_path / "data"
    for split in ("train", "val"):
        shutil.copytree(tiny_folder, data / split)
    for file in (data / "val").rglob("*.png"):
        file.rename(file.with_name(f"v{file.name}"))
        if "images" in file.parts:  # a copy is refused
            file.with_name(f"v{file.name}").write_bytes(
                file.with_name(f"v{file.name}").read_bytes() + b" "
            )
    flags = "--model unet --encoder-weights none --epochs 1 --batch-size 8 --augment 0 --workers 0"
    out = tmp_path / "run"
    assert run_script("train", "--data", data, "--out", out, *flags.split()) == 0
    assert scored(out / "best.pt", tmp_path)[0].startswith("val/")
    shutil.copytree(tiny_folder, data / "test")
    names = scored(out / "best.pt", tmp_path)
    assert len(names) == 24 and names[0] == "test/images/00.png"


def test_numbers_fit_named_classes_and_other_names_do_not(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture
):
    new = tmp_path / "other"
    new.mkdir()
    write_pairs(new)
    for file in new.rglob("*.png"):
        file.rename(file.with_name(f"other{file.name}"))
    checkpoint = read_checkpoint(trained("unet") / "best.pt")
    for names, code in ((["ground", "disc", "box"], 0), (["ground", "disc"], 2)):
        save_checkpoint(tmp_path / "named.pt", checkpoint | {"classes": names})
        assert run_script("evaluate", tmp_path / "named.pt", "--data", new) == code
    (new / "classes.csv").write_text("0,ground,1,1,1\n1,box,2,2,2\n2,disc,3,3,3\n")
    save_checkpoint(tmp_path / "named.pt", checkpoint | {"classes": ["ground", "disc", "box"]})
    assert run_script("evaluate", tmp_path / "named.pt", "--data", new) == 2
    said = capsys.readouterr().err
    assert "ground, box, disc" in said and "ground, disc, box" in said


def test_a_scored_split_may_hold_few_of_the_classes(
    checkpoint: Path, copy: Path, splits: dict, tmp_path: Path, capsys: pytest.CaptureFixture
):
    for name in splits["test"]:
        mask = copy / name.replace("images", "masks")
        Image.new("L", Image.open(mask).size, 2).save(mask)
    assert scored(checkpoint, tmp_path, "--data", copy) == splits["test"]
    Image.new("L", Image.open(mask).size, 9).save(mask)
    assert run_script("evaluate", checkpoint, "--data", copy) == 2
    assert "the checkpoint knows 3" in capsys.readouterr().err


def test_another_set_with_the_same_names_is_told_by_its_pixels(
    checkpoint: Path, copy: Path, splits: dict, tmp_path: Path, capsys: pytest.CaptureFixture
):
    told = "warning: the test masks have other pixels of each class than in training"
    assert scored(checkpoint, tmp_path, "--data", copy) == splits["test"]
    assert told not in capsys.readouterr().out
    first = copy / "masks" / Path(splits["test"][0]).name
    Image.new("L", Image.open(first).size, 1).save(first)
    assert scored(checkpoint, tmp_path, "--data", copy) == splits["test"]
    assert told in capsys.readouterr().out
    assert len(scored(checkpoint, tmp_path, "--data", copy, "--split", "all")) == 24
