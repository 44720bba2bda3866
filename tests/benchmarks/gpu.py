"""Training on one GPU: images a second, and where a step goes.

    python tests/benchmarks/gpu.py    # with transformers beside the project's own packages

A step is train.py's own (Tversky loss and cross entropy, AdamW, scores counted); that of
transformers' SegFormer has cross entropy alone. `kernels` is the time of all kernels of a step: for
the rest the GPU waits for the host.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.profiler_util import EventList
from torch.profiler import ProfilerActivity, profile
from transformers import SegformerConfig, SegformerForSemanticSegmentation

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from segmentation import ResNet18UNet, SegFormer
from segmentation.hardware import prepare
from segmentation.recipes import criterion_for, optimizer_for, recipe_for
from segmentation.training.step_loss import CountingLoss
from train import training_step

CLASSES = 11
SECONDS = 1.0  # that a row is timed for
STEPS = 5  # that are profiled
SHAPE = (64, 256, 256)  # N, H, W
GPU = torch.device("cuda", 0)


class Peer(nn.Module):
    """transformers' SegFormer-B0, its logits at full size."""

    def __init__(self) -> None:
        super().__init__()
        config = SegformerConfig(num_labels=CLASSES, depths=[2, 2, 2, 2])
        self.model = SegformerForSemanticSegmentation(config)

    def forward(self, image: Tensor, keys: Tensor) -> Tensor:
        """N x 3 x H x W -> N x K x H x W float32."""
        logits = self.model(image).logits
        return F.interpolate(logits.float(), size=image.shape[-2:], mode="bilinear")


MODELS: dict[str, Callable[[], nn.Module]] = {
    "SegFormer-B0, conv": lambda: SegFormer(CLASSES, drop_path=0.1, dropout=0.1),
    "SegFormer-B0, mlp": lambda: SegFormer(CLASSES, decoder="mlp", drop_path=0.1, dropout=0.1),
    "U-Net": lambda: ResNet18UNet(CLASSES),
    "transformers' SegFormer-B0": Peer,
}


def main() -> None:
    prepare(GPU, True)
    torch.manual_seed(0)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {SHAPE}")
    for name, make in MODELS.items():
        for amp in (False, True):
            show(name, make(), amp)
    for name in ("SegFormer-B0, conv", "U-Net"):
        for amp in (False, True):
            model = MODELS[name]()
            model.compile(dynamic=False)
            show(f"{name}, compiled", model, amp)
    for name in ("SegFormer-B0, conv", "U-Net"):
        step = step_of(MODELS[name](), amp=True)
        step()
        print(f"\n{name}, bfloat16, kernels:")
        print(
            kernels(step).table(
                sort_by="self_cuda_time_total", row_limit=14, max_name_column_width=60
            )
        )


def show(name: str, model: nn.Module, amp: bool) -> None:
    step = step_of(model, amp)
    took, busy = seconds(step), time_of_kernels(step)
    speed = f"{SHAPE[0] / took:.0f} images/s, {1000 * took:.1f} ms, kernels {1000 * busy:.1f} ms"
    print(f"{name}{', bfloat16' if amp else ''}: {speed}", flush=True)


def step_of(model: nn.Module, amp: bool) -> Callable[[], object]:
    recipe = recipe_for("fast", "segformer", "")
    criterion: nn.Module = nn.CrossEntropyLoss()
    if not isinstance(model, Peer):
        criterion = CountingLoss(criterion_for(recipe, [1] * CLASSES), CLASSES, SHAPE[0])
    model = model.to(GPU).train()
    optimizer = optimizer_for(recipe, model.named_parameters(), GPU)
    batch = {
        "image": torch.randint(256, (SHAPE[0], 3, *SHAPE[1:]), dtype=torch.uint8).pin_memory(),
        "mask": torch.randint(CLASSES, SHAPE, dtype=torch.uint8).pin_memory(),
        "key": torch.arange(SHAPE[0]).pin_memory(),
    }
    return partial(training_step, model, criterion.to(GPU), optimizer, batch, amp)


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
