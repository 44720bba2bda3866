"""What tests share: a cache, a folder, small trained models, scripts run in the test's process."""

import fcntl
import gc
import importlib
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported, here and in child processes
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from PIL import Image


def pytest_collection_finish() -> None:
    """What has been imported stays: later collections of garbage need not look at it."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory):
    """Decoded data of tests never meet the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """(name, make) -> a folder that make(folder) filled, once for all processes that test."""
    own = tmp_path_factory.getbasetemp()
    root = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def made(name: str, make: Callable[[Path], None]) -> Path:
        folder = root / "shared" / name
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder.with_suffix(".lock"), "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.fstat(lock.fileno()).st_size == 0:  # it may have been made since it was opened
                make(folder)
                lock.write("made")
        return folder

    return made


@pytest.fixture(scope="session")
def tiny_folder(made_once: Callable[..., Path]) -> Path:
    """24 pairs of 40 x 56: a bright disc (1), a dark box (2) on noise (0), some pixels ignored."""
    return made_once("tiny", write_pairs)


@pytest.fixture(scope="module")
def small_models():
    """For a module whose tests are not of the models: U-Net and MiT-b0 of few weights.

    A step on a tiny image, and a checkpoint, take as long as the weights are many. Processes of
    child_processes.py have these models too; those that a command line starts have not.
    """
    with pytest.MonkeyPatch.context() as patch:
        shrink_models(patch)
        yield


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for one test."""
    shrink_models(monkeypatch)


def shrink_models(patch: pytest.MonkeyPatch) -> None:
    """The U-Net with an eighth of the channels after its first stage, MiT-b0 with a quarter."""
    import torchvision
    from torchvision.models.resnet import BasicBlock, ResNet

    from segmentation.models.mix_transformer import VARIANTS
    from segmentation.models.unet import ResNet18Encoder

    class NarrowResNet(ResNet):
        def _make_layer(self, block, planes, *more, **options):
            return super()._make_layer(block, planes // 8, *more, **options)

    def narrow_resnet(weights: None = None) -> ResNet:
        return NarrowResNet(BasicBlock, [2, 2, 2, 2])

    patch.setattr(torchvision.models, "resnet18", narrow_resnet)
    patch.setattr(ResNet18Encoder, "channels", (64, 8, 16, 32, 64))
    patch.setitem(VARIANTS, "b0", ((8, 16, 40, 64), (1, 1, 1, 2)))


def models_are_small() -> bool:
    from segmentation.models.unet import ResNet18Encoder

    return ResNet18Encoder.channels[-1] == 64


@pytest.fixture(scope="module")
def trained(
    made_once: Callable[..., Path], tiny_folder: Path, small_models: None
) -> Callable[[str], Path]:
    """Of a small model the folder of a finished run of three epochs. To be read only."""

    def train(model: str, out: Path) -> None:
        rate = {"unet": 0.002, "segformer": 0.001}[model]
        paths = ("--model", model, "--lr", rate, "--data", tiny_folder, "--out", out)
        flags = "--encoder-weights none --epochs 3 --batch-size 8 --augment 8 --workers 0 --seed 3"
        assert run_script("train", *paths, *flags.split()) == 0

    return lambda model: made_once(model, partial(train, model))


def write_pairs(root: Path) -> None:
    rows, columns = np.mgrid[:40, :56]
    for number in range(24):
        generator = np.random.default_rng(number)
        y, x = generator.integers((8, 8), (32, 48))
        top, left = generator.integers((0, 0), (24, 40))
        mask = np.zeros((40, 56), np.uint8)
        mask[(rows - y) ** 2 + (columns - x) ** 2 < 60] = 1
        mask[top : top + 14, left : left + 14] = 2
        image = np.array([110, 230, 20])[mask][..., None] + generator.normal(0, 12, (40, 56, 3))
        mask[:2] = 255
        for folder, array in (("images", image.clip(0, 255).astype(np.uint8)), ("masks", mask)):
            (root / folder).mkdir(exist_ok=True)
            Image.fromarray(array).save(root / folder / f"{number:02}.png")


def assert_same_counts(found: list[list[int]], expected: list[list[int]]) -> None:
    """Confusion matrices of the same pixels, which float32 predicted by sums in two orders.

    Rounding may turn a pixel whose two best classes are equal to 1e-5: some in ten thousand,
    here one in a thousand.
    """
    one, other = np.array(found), np.array(expected)
    assert (one.sum(1) == other.sum(1)).all()  # what is true is no float
    assert np.abs(one - other).sum() / 2 <= 1e-3 * other.sum()


def run_script(name: str, *arguments: object) -> int:
    """Run train, evaluate or ensemble as its command line would, in this process -> exit code.

    On a CPU, where a run repeats bit for bit, unless the arguments name a device.
    """
    from segmentation.errors import exit_on_bad_input

    script = importlib.import_module(name)
    handlers = {
        number: signal.getsignal(number)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        if "--device" not in arguments:
            patch.setattr("torch.cuda.is_available", lambda: False)
            patch.setattr("torch.backends.mps.is_available", lambda: False)
        try:
            exit_on_bad_input(script.main)
        except SystemExit as end:
            return end.code or 0
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return 0


@pytest.fixture
def settings():
    """After the test, what `hardware.prepare` sets is as it was."""
    import torch

    precision, search = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    attention = torch.backends.cuda.cudnn_sdp_enabled()
    yield
    torch.backends.cuda.enable_cudnn_sdp(attention)
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.benchmark = search
