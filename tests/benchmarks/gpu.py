"""Training on one GPU: images a second beside the peers', and where a step goes.

    python tests/benchmarks/gpu.py               # eager, a minute
    python tests/benchmarks/gpu.py --compiled    # bfloat16 by torch.compile alone

Peers: transformers' SegFormer-B0, segmentation_models.pytorch's Unet("resnet18"), as their users
run them: NCHW, cross entropy, AdamW. Ours: train.py's own step (Tversky loss and cross entropy,
AdamW, scores counted). "busy" is the time of all kernels over the step's time: for the rest the GPU
waits for the host, which launches them.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
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


class PeerSegFormer(nn.Module):
    """transformers' SegFormer-B0, its logits interpolated to the image's size."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import SegformerConfig, SegformerForSemanticSegmentation

        self.model = SegformerForSemanticSegmentation(SegformerConfig(num_labels=CLASSES))

    def forward(self, image: Tensor) -> Tensor:
        logits = self.model(image).logits
        return F.interpolate(logits, size=image.shape[-2:], mode="bilinear", align_corners=False)


def peer_unet() -> nn.Module:
    import segmentation_models_pytorch as smp

    return smp.Unet("resnet18", encoder_weights=None, classes=CLASSES)


OURS: dict[str, Callable[[], nn.Module]] = {
    "SegFormer-B0, conv": lambda: SegFormer(CLASSES, drop_path=0.1, dropout=0.1),
    "SegFormer-B0, mlp": lambda: SegFormer(CLASSES, decoder="mlp", drop_path=0.1, dropout=0.1),
    "U-Net": lambda: ResNet18UNet(CLASSES),
}
PEERS: dict[str, Callable[[], nn.Module]] = {
    "transformers SegFormer-B0": PeerSegFormer,
    "smp Unet resnet18": peer_unet,
}


def main() -> None:
    modes = [(False, False), (True, False)]
    if "--compiled" in sys.argv:
        modes = [(True, True)]
    prepare(GPU, True)
    torch.manual_seed(0)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(f"{'training, images/s (busy)':46}" + "".join(f"{shape!s:>20}" for shape in SHAPES))
    for name, make in (OURS | PEERS).items():
        for amp, compiled in modes:
            title = f"{name}{', bfloat16' if amp else ''}{', compiled' if compiled else ''}"
            cells = []
            for shape in SHAPES:
                try:
                    step = (our_step if name in OURS else peer_step)(make(), shape, amp, compiled)
                    time_of_step = seconds(step)
                    busy = time_of_kernels(step) / time_of_step
                    cells.append(f"{shape[0] / time_of_step:.0f} ({busy:.0%})")
                except Exception as error:  # one row's, and the next may work
                    cells.append(type(error).__name__)
                torch.cuda.empty_cache()
            print(f"{title:46}" + "".join(f"{cell:>20}" for cell in cells), flush=True)
    for name in ("SegFormer-B0, conv", "U-Net"):
        step = our_step(OURS[name](), SHAPES[1], True, False)
        step()
        print(f"\n{name}, bfloat16, {SHAPES[1]}, kernels:")
        print(
            kernels(step).table(
                sort_by="self_cuda_time_total", row_limit=14, max_name_column_width=60
            )
        )


def our_step(model: nn.Module, shape: tuple, amp: bool, compiled: bool) -> Callable[[], object]:
    recipe = recipe_for("fast", "segformer", "")
    criterion = CountingLoss(criterion_for(recipe, [1] * CLASSES), CLASSES, shape[0]).to(GPU)
    model = model.to(GPU).train()
    optimizer = optimizer_for(recipe, model.named_parameters(), GPU)
    if compiled:
        model.compile(dynamic=False)
    batch = {
        "image": torch.randint(256, (shape[0], 3, *shape[1:]), dtype=torch.uint8).pin_memory(),
        "mask": torch.randint(CLASSES, shape, dtype=torch.uint8).pin_memory(),
        "key": torch.arange(shape[0]).pin_memory(),
    }
    return lambda: training_step(model, criterion, optimizer, batch, amp)


def peer_step(model: nn.Module, shape: tuple, amp: bool, compiled: bool) -> Callable[[], object]:
    model = model.to(GPU).train()
    optimizer = torch.optim.AdamW(model.parameters())
    if compiled:
        model.compile(dynamic=False)
    image = torch.rand(shape[0], 3, *shape[1:]).pin_memory()
    target = torch.randint(CLASSES, shape).pin_memory()

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=amp):
            logits = model(image.to(GPU, non_blocking=True))
        F.cross_entropy(logits.float(), target.to(GPU, non_blocking=True)).backward()
        optimizer.step()

    return step


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
