"""Training on one GPU: images a second, and where a step goes.

    python tests/benchmarks/gpu.py

A step is train.py's own (Tversky loss and cross entropy, AdamW, scores counted). In brackets stands
the time of all kernels over the step's time: for the rest the GPU waits for the host.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.autograd.profiler_util import EventList
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from segmentation import ResNet18UNet, SegFormer
from segmentation.hardware import prepare
from segmentation.recipes import criterion_for, optimizer_for, recipe_for
from segmentation.training.step_loss import CountingLoss
from train import training_step

CLASSES = 11
SECONDS = 1.0  # that a row is timed for
STEPS = 5  # that are profiled
SHAPES = [(16, 256, 256), (64, 256, 256), (16, 400, 600)]  # N, H, W
GPU = torch.device("cuda", 0)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "SegFormer-B0, conv": lambda: SegFormer(CLASSES, drop_path=0.1, dropout=0.1),
    "SegFormer-B0, mlp": lambda: SegFormer(CLASSES, decoder="mlp", drop_path=0.1, dropout=0.1),
    "U-Net": lambda: ResNet18UNet(CLASSES),
}


def main() -> None:
    prepare(GPU, True)
    torch.manual_seed(0)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(f"{'training, images/s (busy)':30}" + "".join(f"{shape!s:>20}" for shape in SHAPES))
    for name, make in MODELS.items():
        for amp in (False, True):
            cells = []
            for shape in SHAPES:
                step = step_of(make(), shape, amp)
                time_of_step = seconds(step)
                busy = time_of_kernels(step) / time_of_step
                cells.append(f"{shape[0] / time_of_step:.0f} ({busy:.0%})")
            title = f"{name}, bfloat16" if amp else name
            print(f"{title:30}" + "".join(f"{cell:>20}" for cell in cells), flush=True)
    for name in ("SegFormer-B0, conv", "U-Net"):
        step = step_of(MODELS[name](), SHAPES[1], amp=True)
        step()
        print(f"\n{name}, bfloat16, {SHAPES[1]}, kernels:")
        print(
            kernels(step).table(
                sort_by="self_cuda_time_total", row_limit=14, max_name_column_width=60
            )
        )


def step_of(model: nn.Module, shape: tuple, amp: bool) -> Callable[[], object]:
    recipe = recipe_for("fast", "segformer", "")
    criterion = CountingLoss(criterion_for(recipe, [1] * CLASSES), CLASSES, shape[0]).to(GPU)
    model = model.to(GPU).train()
    optimizer = optimizer_for(recipe, model.named_parameters(), GPU)
    batch = {
        "image": torch.randint(256, (shape[0], 3, *shape[1:]), dtype=torch.uint8).pin_memory(),
        "mask": torch.randint(CLASSES, shape, dtype=torch.uint8).pin_memory(),
        "key": torch.arange(shape[0]).pin_memory(),
    }
    return lambda: training_step(model, criterion, optimizer, batch, amp)


def seconds(step: Callable[[], object]) -> float:
    """Of a step: the mean over SECONDS of steps, after five."""
    for _ in range(5):
        step()
    torch.cuda.synchronize()
    calls, began = 0, time.monotonic()
    while time.monotonic() - began < SECONDS:
        step()
        calls += 1
        if calls % 8 == 0:
            torch.cuda.synchronize()
    torch.cuda.synchronize()
    return (time.monotonic() - began) / calls


def kernels(step: Callable[[], object]) -> EventList:
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(STEPS):
            step()
        torch.cuda.synchronize()
    return profiler.key_averages()


def time_of_kernels(step: Callable[[], object]) -> float:
    """Seconds of all kernels of a step."""
    return sum(row.self_device_time_total for row in kernels(step)) / 1e6 / STEPS


if __name__ == "__main__":
    main()
