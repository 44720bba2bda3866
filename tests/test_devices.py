"""Everything a GPU would compute stays on it, and the host never waits for it in a step.

Needs no GPU: see accelerator.py.
"""

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from inspect import signature
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from accelerator import Pretended, ranks, train_on
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import train
from segmentation import ResNet18UNet, SegFormer, UFormer, load_checkpoint, predict
from segmentation.data.datasets import SegmentationDataset, open_dataset
from segmentation.evaluation import weight_search
from segmentation.evaluation.scoring import score_split
from segmentation.metrics import confusion_matrix
from segmentation.recipes import RECIPES, criterion_for, optimizer_for
from segmentation.training.parallel import distribute_model
from segmentation.training.step_loss import CountingLoss

ROOT = Path(__file__).resolve().parents[1]
CUDA = torch.device("cuda", 0)
MODELS: dict[str, Callable[..., nn.Module]] = {"segformer": SegFormer, "unet": ResNet18UNet}
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument")  # no GPU is found
STEPS = 3


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def data(tiny_folder: Path) -> SegmentationDataset:
    data = open_dataset(str(tiny_folder))
    return replace(data, splits={split: names[:2] for split, names in data.splits.items()})


def batch_of(images: int) -> dict[str, Tensor]:
    """As the loader gives it."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(256, (images, 3, 64, 64), generator=generator, dtype=torch.uint8)
    mask = torch.randint(3, (images, 64, 64), generator=generator, dtype=torch.uint8)
    return {"image": image, "mask": mask, "key": torch.arange(images)}


@pytest.mark.parametrize(
    ("model", "recipe", "kind"),
    [
        ("segformer", "deck", "cuda"),
        ("segformer", "fast", "cuda"),
        ("unet", "deck", "cuda"),
        ("unet", "fast", "cuda"),
        ("segformer", "fast", "mps"),
        ("unet", "deck", "mps"),
    ],
)
def test_a_training_is_on_the_device(tiny_folder, tmp_path, small, model, recipe, kind):
    """train.py itself: steps, validation, saves."""
    flags = ("--data", tiny_folder, "--model", model, "--recipe", recipe, "--workers", 0)
    flags += ("--encoder-weights", "none", "--epochs", 1, "--augment", 0, "--batch-size", 5)
    if model == "segformer":
        flags += ("--drop-path", 0.1, "--dropout", 0.1)
    with Pretended(kind) as seen:
        polls = train_on(seen, *flags, "--out", tmp_path)
    assert not seen.mixed
    for before, after in pairwise(polls[:STEPS]):
        waits, events = after.waits - before.waits, after.events - before.events
        if kind == "mps":
            assert waits.total() <= 1, waits
        else:
            assert not waits and events == 1
    if kind == "mps":
        assert not seen.wide
    else:  # a whole step is under way when the one before it is waited for, but after the last
        *steps, last = seen.behind
        assert min(steps) > 100 and last == 0
    looks = sum(n for at, n in seen.waits.items() if at.startswith("run_folder.py"))
    assert looks == 2  # whether weights are numbers, once a save
    trained, _ = load_checkpoint(tmp_path / "last.pt")
    assert all(weight.isfinite().all() for weight in trained.state_dict().values())


@pytest.mark.parametrize("model", MODELS)
def test_scores_are_those_of_the_cpu(data, small, model):
    torch.manual_seed(0)
    here = MODELS[model](3).eval()
    expected = score_split(here, data, "val")
    with Pretended() as seen:
        found = score_split(copy.deepcopy(here).to(CUDA), data, "val")
    for name in ("loss", "miou", "mpa"):
        assert found[name] == pytest.approx(expected[name], abs=1e-3)
    assert not seen.mixed
    # image and target there; their check, bincount's own two; matrix and sums back
    assert seen.waits.total() - moved_by(here) <= 7 * len(data.splits["val"])


def moved_by(model: nn.Module) -> int:
    """How many waits it is to move a model to the device."""
    return len([*model.parameters(), *model.buffers()])


def test_tiles_flips_and_the_search_for_weights(data, small, monkeypatch):
    monkeypatch.setattr(weight_search, "CANDIDATES", 3)
    monkeypatch.setattr(weight_search, "PASSES", 1)
    torch.manual_seed(0)
    members = [make(3).eval() for make in MODELS.values()]
    image, folds = torch.rand(1, 3, 50, 70), [data.splits["val"]]

    def on(device: torch.device) -> tuple[Tensor, float]:
        moved = [copy.deepcopy(member).to(device) for member in members]
        tiles = predict(UFormer(*moved).to(device), image, tile=40, flips="all")
        [fit] = weight_search.fit_weights(moved, data, folds, per_class=True)
        return tiles.cpu(), fit.miou

    tiles, miou = on(torch.device("cpu"))
    with Pretended() as seen:
        far_tiles, far_miou = on(CUDA)
    torch.testing.assert_close(far_tiles, tiles, rtol=0, atol=1e-4)
    assert far_miou == pytest.approx(miou, abs=1e-3)
    assert not seen.mixed


@pytest.mark.parametrize("recipe", ["deck", "fast"])
@pytest.mark.parametrize(("model", "operators"), [("segformer", 560), ("unet", 700)])
def test_a_step_over_ranks(model, operators, recipe):
    """The host waits for nothing and has few operators to launch."""
    batch = batch_of(2)
    with ranks(4), Pretended() as seen:
        criterion = CountingLoss(criterion_for(RECIPES[recipe], [5, 4, 3]), 3, 2).to(CUDA)
        parallel = distribute_model(MODELS[model](3).to(CUDA), "ddp", CUDA, criterion)
        optimizer = optimizer_for(RECIPES[recipe], parallel.named_parameters(), CUDA)
        for _ in range(3):  # the first steps make the optimizer's state and sort the buckets
            seen.waits.clear()
            seen.launched.clear()
            train.training_step(parallel, criterion, optimizer, batch)
    assert not seen.mixed and not seen.waits
    one_by_one = "batched_grad_copy" not in signature(DistributedDataParallel).parameters
    if one_by_one:  # before torch 2.13 gradients are copied into buckets so
        operators += len(list(parallel.parameters()))
    assert seen.operators <= operators, seen.launched.most_common()


@pytest.mark.parametrize(("model", "recipe"), [("segformer", "fast"), ("unet", "deck")])
def test_ranks_with_the_same_images_have_the_gradient_of_one(float64, small, model, recipe):
    """By DDP on the device, CUDA's BatchNorm and all."""
    torch.manual_seed(0)
    here, criterion = MODELS[model](3), criterion_for(RECIPES[recipe], [5, 4, 3])
    there, batch = copy.deepcopy(here), batch_of(2)

    def gradient_of(model: nn.Module, criterion: nn.Module, device: torch.device) -> list[Tensor]:
        optimizer = optimizer_for(RECIPES[recipe], model.named_parameters(), device)
        train.training_step(model, criterion, optimizer, batch)
        return [parameter.grad.cpu() for parameter in model.parameters()]

    expected = gradient_of(here, criterion, torch.device("cpu"))
    with ranks(4), Pretended() as seen:
        criterion.to(CUDA)
        parallel = distribute_model(there.to(CUDA), "ddp", CUDA, criterion)
        found = gradient_of(parallel, criterion, CUDA)
    assert seen.launched["aten.batch_norm_backward_elemt.default"] > 0
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-10)


def test_stochastic_depth_is_drawn_at_once():
    counts = []
    for rate in (0.0, 0.1):
        with Pretended() as seen:
            model = SegFormer(3, drop_path=rate).to(CUDA)
            image, keys = torch.rand(2, 3, 64, 64).to(CUDA), torch.arange(2).to(CUDA)
            seen.launched.clear()
            model(image, keys)
        counts.append(seen.operators)
    draw, branches = 32, 14
    assert counts[1] - counts[0] <= draw + 3 * branches


@pytest.mark.parametrize("model", MODELS)
def test_the_maps_that_grow_are_narrow_under_autocast(small, model):
    """On a GPU all convolutions can take bfloat16: what is wider costs memory and time."""
    narrow = []
    with Pretended():
        net = MODELS[model](3).to(CUDA)
        is_unet = model == "unet"
        layers = [up.conv for up in net.decoder] if is_unet else net.decoder.upsample
        for layer in layers:
            layer.register_forward_pre_hook(lambda _, x: narrow.append(x[0].dtype))
        image = torch.rand(2, 3, 64, 64).to(CUDA)
        with torch.autocast("cuda", torch.bfloat16):
            net(image)
    assert narrow == [torch.bfloat16] * len(layers)


def test_what_is_to_be_found_is_found():
    class Forgotten(nn.Module):
        def forward(self, x):
            x = x + torch.ones(3)  # made on the CPU
            x = x * x.double().mean().float()
            return x * (2 if x.sum() > 0 else 1)  # waits

    with Pretended() as seen:
        model, x = nn.Sequential(nn.Linear(3, 3), Forgotten()).to(CUDA), torch.rand(2, 3).to(CUDA)
        before = seen.waits.total()
        model(x).sum().backward()
        assert len(seen.mixed) == 1 and seen.waits.total() == before + 1 and seen.wide
        target = torch.tensor([1, 300])
        with pytest.raises(ValueError, match=r"target holds labels 1\.\.300"):
            confusion_matrix(x.argmax(1), target.to(CUDA), 3)


def test_a_copy_that_was_not_waited_for_is_not_a_number():
    with Pretended() as seen:
        loss = torch.ones(()).to(CUDA)
        early = loss.to("cpu", non_blocking=True)
        assert early.isnan()
        late, event = loss.to("cpu", non_blocking=True), torch.cuda.Event()
        event.record()
        loss += 1
        event.synchronize()
        assert late == 1 and seen.behind == [1]


def test_a_loss_that_is_no_number_is_found_a_step_later():
    with Pretended():
        step = train.LossOfStep(torch.tensor(float("nan"), device=CUDA), ["a.png", "b.png"])
        with pytest.raises(RuntimeError, match=r"loss is nan on a\.png, b\.png"):
            step.check()
        train.LossOfStep(torch.tensor(0.5, device=CUDA), ["c.png"]).check()


# train.py with the workers of a GPU, or those of a CPU from Python 3.14 on; two steps go on after a
# signal.
JOB = """
import multiprocessing, os, signal, sys
import multiprocessing.forkserver as server
import torch
import train
from segmentation.training.workers import PRELOADED

make_loader, poll, calls = train.make_loader, train.Clock.poll, []

def by_server(samples, order, workers, device):
    loader = make_loader(samples, order, workers, torch.device(kind))
    assert loader.multiprocessing_context.get_start_method() == "forkserver"
    assert server._forkserver._preload_modules == PRELOADED
    return loader

def late(clock):
    calls.append(clock)
    if len(calls) == 2:  # the first is before the first step
        os.killpg(0, signal.SIGTERM)
    return poll(clock) and len(calls) == 4

if __name__ == "__main__":
    kind = sys.argv.pop(1)
    if kind == "cpu":
        multiprocessing.set_start_method("forkserver")
    train.make_loader, train.Clock.poll = by_server, late
    try:
        train.main()
    finally:
        assert os.waitpid(server._forkserver._forkserver_pid, os.WNOHANG) == (0, 0)  # it runs
"""


# What train.py still has to import in a worker.
WORKER = """
import sys
from importlib import import_module
from segmentation.training.workers import PRELOADED

for name in PRELOADED:
    import_module(name)
before = set(sys.modules)
import train
print(*(name for name in set(sys.modules) - before if name.startswith("torch")))
"""


def test_what_forks_workers_has_imported_what_takes_long():
    """Otherwise every worker imports these modules, one after the other, before the first step."""
    command = [sys.executable, "-c", WORKER]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_workers_outlive_the_signals_that_stop_a_run(tiny_folder, tmp_path, kind):
    """So does the process without CUDA that forks them. torchrun signals all of a rank's group."""
    job, out = tmp_path / "job.py", tmp_path / "run"
    job.write_text(JOB)
    flags = "--encoder-weights none --augment 0 --batch-size 2 --workers 2 --device cpu".split()
    done = subprocess.run(
        [sys.executable, job, kind, *flags, "--data", tiny_folder, "--out", out],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 99, done.stderr
    assert load_checkpoint(out / "last.pt")[1]["resume"]["progress"]["step"] == 3
