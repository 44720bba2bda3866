"""Bad input at the command line: one message of what, where and what to do, exit code 2."""

import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from child_processes import ROOT
from conftest import run_script
from PIL import Image
from test_checkpoint import Hostile, truncated

from segmentation import ResNet18UNet
from segmentation.checkpoint import save_checkpoint

pytestmark = pytest.mark.usefixtures("small_models")

TINY = "--epochs 1 --batch-size 8 --augment 0 --image-size 32 32"
FLAGS = f"--model unet --encoder-weights none --device cpu --workers 0 {TINY}".split()
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


class Place(NamedTuple):
    """What a case may spoil: a sound folder of 24 pairs, the run's folder to be, a checkpoint."""

    data: Path
    out: Path
    init: Path


@pytest.fixture
def place(tmp_path: Path, tiny_folder: Path, trained: Callable[[str], Path]) -> Place:
    shutil.copytree(tiny_folder, tmp_path / "data")
    shutil.copy(trained("unet") / "best.pt", tmp_path / "init.pt")
    return Place(tmp_path / "data", tmp_path / "run", tmp_path / "init.pt")


def arguments_of(place: Place, *changes: object) -> tuple:
    return ("--data", place.data, *FLAGS, "--out", place.out, *changes)


FLAG_CASES = [
    (("--no-such-flag",), "unrecognized arguments: --no-such-flag"),
    (("picture.png",), "unrecognized arguments: picture.png"),
    (("--model", "vgg"), "invalid choice: 'vgg'"),
    (("--variant", "b9"), "invalid choice: 'b9'"),
    (("--task", "panoptic"), "invalid choice: 'panoptic'"),
    (("--image-size", 0, 0), "0 is not 1 or more"),
    (("--image-size", 31, 64), "--image-size 31 64: give height and width, at least 32 each"),
    (("--image-size", 64), "expected 2 arguments"),
    (("--image-size", "32.5", 32), "invalid positive_int value: '32.5'"),
    (("--crop", 0, 32), "0 is not 1 or more"),
    (("--crop", "x", 32), "invalid positive_int value: 'x'"),
    (("--epochs", 0), "0 is not 1 or more"),
    (("--epochs", "1e3"), "invalid positive_int value: '1e3'"),
    (("--batch-size", 0), "0 is not 1 or more"),
    (("--batch-size", "--augment"), "expected one argument"),
    (("--augment=-1",), "-1 is negative"),
    (("--workers=-2",), "-2 is negative"),
    (("--seed=-5",), "-5 is negative"),
    (("--seed", 10**30), "beyond 63 bits"),
    (("--lr", "nan"), "nan is not a positive number"),
    (("--lr", "inf"), "inf is not a positive number"),
    (("--lr", 0), "0 is not a positive number"),
    (("--alpha=-0.1",), "-0.1 is not 0 or a positive number"),
    (("--beta", "nan"), "nan is not 0 or a positive number"),
    (("--alpha", 0, "--beta", 0), "counts no error"),
    (("--dropout", 1), "1 is not in [0, 1)"),
    (("--drop-path", "nan"), "nan is not in [0, 1)"),
    (("--recipe", "slow"), "invalid choice: 'slow'"),
    (("--max-minutes=-1",), "-1 is not 0 or a positive number"),
    (("--save-every", 0), "0 is not a positive number"),
    (("--label-map", "255"), "cannot read '255'"),
    (("--label-map", "a=b"), "cannot read 'a=b'"),
    (("--label-map", "300=1"), "'300=1' leaves 0..255"),
    (("--device", "abacus"), "--device abacus"),
    (("--freeze-members",), "--freeze-members is for --model uformer"),
    (("--init", "a.pt", "b.pt"), "--init takes one checkpoint"),
    (("--model", "uformer", "--init", "a.pt"), "for --model uformer two or more"),
    (("--init", "a.pt", "--encoder-weights", "imagenet"), "leave --encoder-weights out"),
    (("--freeze-encoder", "--encoder-lr", 0.1), "--freeze-encoder leaves --encoder-lr nothing"),
    (("--variant", "b1"), "--dropout are SegFormer's"),
    (("--decoder", "mlp"), "--dropout are SegFormer's"),
    (("--drop-path", 0.1), "--dropout are SegFormer's"),
    (("--dropout", 0), "--dropout are SegFormer's"),
    (("--init", "nowhere.pt"), "nowhere.pt cannot be read (No such file or directory)"),
    (("--encoder-weights", "nowhere.bin"), "nowhere.bin"),
    (("--encoder-weights", "a", "b"), "--encoder-weights takes one value"),
    (
        ("--model", "uformer", "--encoder-weights", "a"),
        "two files, the U-Net's and the SegFormer's",
    ),
    (("--model", "uformer", "--encoder-weights", "a", "b", "c"), "two files"),
    (
        ("--batch-size", 17),
        "16 training samples do not fill one batch of 17; use --batch-size 16 or less",
    ),
    (("--batch-size", 1), "--batch-size 1 of 32 x 32 pixels"),
    (("--data", "/no/such/folder"), "/no/such/folder: no such folder"),
    (("--data", ROOT / "train.py"), "train.py: no such folder"),
]


@pytest.mark.parametrize(
    ("changes", "message"), FLAG_CASES, ids=lambda value: None if isinstance(value, str) else ""
)
def test_bad_flags(place: Place, capsys: pytest.CaptureFixture, changes: tuple, message: str):
    assert run_script("train", *arguments_of(place, *changes)) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not (place.out / "last.pt").exists()


def no_folder_possible(place: Place) -> None:
    place.out.write_text("a file")


def no_folder_below(place: Place) -> tuple:
    (place.out.parent / "file").write_text("a file")
    return ("--out", place.out.parent / "file" / "run")


def name_too_long(place: Place) -> tuple:
    return ("--out", "x" * 300)


def held(place: Place) -> None:
    place.out.mkdir()
    shutil.copy(place.init, place.out / "best.pt")


def other_settings(place: Place) -> tuple:
    assert run_script("train", *arguments_of(place)) == 0
    return ("--resume", "--lr", 0.7, "--epochs", 2)


def resume_of(spoil: Callable[[Path], object]) -> Callable[[Place], tuple]:
    def prepare(place: Place) -> tuple:
        place.out.mkdir()
        spoil(place.out / "last.pt")
        return ("--resume",)

    return prepare


def init_of(spoil: Callable[[Path], object]) -> Callable[[Place], tuple]:
    def prepare(place: Place) -> tuple:
        spoil(place.init)
        return ("--init", place.init)

    return prepare


def hostile(path: Path) -> None:
    path.write_bytes(pickle.dumps(Hostile(path.parent / "ran"), protocol=2))


def cut(path: Path) -> None:
    if not path.exists():
        save_checkpoint(path, {"model": {}, "config": {}, "classes": []})
    truncated(path, path)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def weights_alone(path: Path) -> None:
    torch.save(ResNet18UNet(3).state_dict(), path)


def not_a_run(path: Path) -> None:
    """A sound checkpoint, without what a run needs to go on."""
    model = ResNet18UNet(3)
    save_checkpoint(
        path,
        {"model": model.state_dict(), "config": {"model": "unet", "num_classes": 3}, "classes": []},
    )


def encoder_weights(spoil: Callable[[Path], object]) -> Callable[[Place], tuple]:
    def prepare(place: Place) -> tuple:
        spoil(place.init)
        return ("--encoder-weights", place.init)

    return prepare


def pair(place: Place, number: int) -> tuple[Path, Path]:
    return place.data / "images" / f"{number:02}.png", place.data / "masks" / f"{number:02}.png"


def only(place: Place, count: int) -> None:
    for number in range(count, 24):
        for path in pair(place, number):
            path.unlink()


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    Image.fromarray(change(np.array(Image.open(path)))).save(path)


def values_0_255(place: Place) -> tuple:
    for path in (place.data / "masks").iterdir():
        rewrite(path, lambda mask: np.where(mask == 1, 7, 0).astype(np.uint8))
    (place.data / "classes.csv").write_text("index,name,r,g,b\n0,ground,0,0,0\n1,roof,255,0,0\n")
    return ()


def nothing_labelled(place: Place) -> None:
    for path in (place.data / "masks").iterdir():
        rewrite(path, lambda mask: np.full_like(mask, 255))


def split_folder(place: Place, unlabelled: str) -> None:
    """The folder with splits of its own, one of them without a label."""
    for kind in ("images", "masks"):
        files = sorted((place.data / kind).iterdir())
        for number, path in enumerate(files):
            folder = place.data / ("train" if number < 16 else "val") / kind
            folder.mkdir(parents=True, exist_ok=True)
            path.rename(folder / path.name)
        (place.data / kind).rmdir()
    for path in (place.data / unlabelled / "masks").iterdir():
        rewrite(path, lambda mask: np.full_like(mask, 255))


CASES: dict[str, tuple[Callable[[Place], tuple | None], str]] = {
    "--out is a file": (no_folder_possible, "cannot be written (File exists): choose another"),
    "--out under a file": (no_folder_below, "cannot be written (Not a directory)"),
    "--out with a name too long": (name_too_long, "cannot be written (File name too long)"),
    "--out holds a run": (
        held,
        "already holds a run (best.pt): add --resume to go on with it, or choose another --out",
    ),
    "--resume with other settings": (
        other_settings,
        "was trained with other settings: --lr 0.7 (was 0.001)",
    ),
    "--resume of a hostile pickle": (
        resume_of(hostile),
        "last.pt is not a checkpoint of plain data",
    ),
    "--resume of a truncated file": (resume_of(cut), "last.pt is cut short"),
    "--resume of an empty file": (resume_of(empty), "last.pt is empty"),
    "--resume of a checkpoint that is no run": (
        resume_of(not_a_run),
        "last.pt holds no run to go on with",
    ),
    "--init of a hostile pickle": (init_of(hostile), "init.pt is not a checkpoint of plain data"),
    "--init of a truncated file": (init_of(cut), "init.pt is cut short"),
    "--init of an empty file": (init_of(empty), "init.pt is empty"),
    "--init of bare weights": (
        init_of(weights_alone),
        "init.pt is no MiT that Hugging Face or NVlabs saved: it holds encoder.conv1.weight",
    ),
    "--init of another model": (
        lambda place: ("--init", place.init, "--model", "segformer"),
        "init.pt is a unet: say --model unet",
    ),
    "--encoder-weights of a hostile pickle": (encoder_weights(hostile), "init.pt"),
    "--encoder-weights of an empty file": (encoder_weights(empty), "init.pt"),
    "--encoder-weights of a foreign file": (
        encoder_weights(lambda path: torch.save({"a": torch.zeros(3)}, path)),
        "init.pt",
    ),
    "an empty folder": (
        lambda place: shutil.rmtree(place.data) or place.data.mkdir(),
        "looked for",
    ),
    "no masks": (
        lambda place: [path.unlink() for path in (place.data / "masks").iterdir()] and None,
        "masks/: holds no images",
    ),
    "a set of one image": (
        lambda place: only(place, 1),
        "a single pair cannot be split into train and val",
    ),
    "a set of two images": (
        lambda place: only(place, 2),
        "training samples do not fill one batch of 8; use --batch-size",
    ),
    "no label anywhere": (nothing_labelled, "masks hold only the labels []"),
    "no label in train": (
        lambda place: split_folder(place, "train"),
        "all pixels of the train masks are 255",
    ),
    "no label in val": (
        lambda place: split_folder(place, "val"),
        "all pixels of the val masks are 255",
    ),
    "undeclared labels": (values_0_255, "holds undeclared values 7"),
    "a 16-bit image": (
        lambda place: Image.fromarray(np.zeros((40, 56), np.uint16)).save(pair(place, 3)[0]),
        "images/03.png: stores more than 8 bits",
    ),
    "an image cut short": (
        lambda place: pair(place, 3)[0].write_bytes(pair(place, 3)[0].read_bytes()[:900]) and None,
        "images/03.png: is truncated or damaged",
    ),
    "an image of 0 bytes": (
        lambda place: empty(pair(place, 3)[0]),
        "images/03.png: is empty (0 bytes)",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_files(place: Place, capsys: pytest.CaptureFixture, case: str):
    prepare, message = CASES[case]
    changes = prepare(place)
    capsys.readouterr()
    assert run_script("train", *arguments_of(place, *(changes or ()))) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not list(place.data.parent.rglob("ran")), "code of the file was run"


@pytest.mark.parametrize("spoil", [hostile, cut, empty, weights_alone])
@pytest.mark.parametrize("script", ["evaluate", "ensemble"])
def test_bad_checkpoints_for_the_other_scripts(place, capsys, script, spoil):
    good = place.init.with_name("good.pt")
    shutil.copy(place.init, good)
    spoil(place.init)
    files = [place.init] if script == "evaluate" else [good, place.init]
    assert run_script(script, *files) == 2
    said = capsys.readouterr().err
    assert "init.pt" in said
    assert "Traceback" not in said
    assert not (place.init.parent / "ran").exists()


def test_images_of_two_sizes_need_a_crop(place: Place, capsys: pytest.CaptureFixture):
    for path in pair(place, 3):
        rewrite(path, lambda array: array[:36])
    own_size = ("--data", place.data, *FLAGS[:-3], "--out", place.out)
    assert FLAGS[-3] == "--image-size"
    assert run_script("train", *own_size) == 2
    assert "use --crop H W for random windows or --image-size H W" in capsys.readouterr().err
    assert run_script("train", *own_size, "--crop", 32, 32) == 0


@pytest.mark.parametrize(("batch", "steps"), [(15, 1), (5, 3)])
def test_a_last_batch_of_one_is_dropped(
    place: Place, capsys: pytest.CaptureFixture, batch: int, steps: int
):
    """16 training images of 32 x 32: BatchNorm can take no statistics of the sixteenth alone."""
    assert run_script("train", *arguments_of(place, "--batch-size", batch)) == 0
    assert f"{steps} steps an epoch" in capsys.readouterr().out


def test_bad_pairs_can_be_left_out(place: Place, capsys: pytest.CaptureFixture):
    empty(pair(place, 3)[0])
    assert run_script("train", *arguments_of(place, "--skip-bad")) == 0
    assert "left out: images/03.png: is empty" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ([sys.executable, "train.py", "--image-size", "0", "0"], 2, "0 is not 1 or more"),
        (
            [sys.executable, "train.py", "--data", "/no/such/folder", "--out", "OUT"],
            2,
            "error: /no/such/folder",
        ),
        (
            [*TORCHRUN, "train.py", "--data", "/no/such/folder", "--out", "OUT", "--device", "cpu"],
            1,  # torchrun's own
            "error: /no/such/folder",
        ),
    ],
)
def test_as_launched(tmp_path: Path, command: list[str], code: int, message: str):
    command = [str(tmp_path / "run") if word == "OUT" else word for word in command]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == code
    assert ended.stderr.count(message) == 1


CHATTER = """
from segmentation.errors import exit_on_bad_input

def main():
    while True:
        print("a line of the output", flush=True)

exit_on_bad_input(main)
"""


def test_head_ends_a_script_with_a_sentence():
    """As `python evaluate.py ckpt.pt | head` does."""
    script = subprocess.Popen(
        [sys.executable, "-c", CHATTER], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert script.stdout.readline() == b"a line of the output\n"
    script.stdout.close()
    assert script.stderr.read() == b"what read the output has ended\n"
    assert script.wait(60) == 1
    script.stderr.close()
