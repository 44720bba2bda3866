"""What train.py says while it works: one line an epoch in a log, a line that rewrites itself on a terminal."""

import sys
from pathlib import Path

from torch import Tensor, nn

from ..data.datasets import SegmentationDataset
from ..distributed import rank
from .clock import Clock


def introduce(data: SegmentationDataset, model: nn.Module, steps: int, out: Path) -> None:
    """What is trained on what."""
    counts = {split: len(names) for split, names in data.splits.items()}
    pixels = data.pixel_counts["train"]
    shares = ", ".join(f"{name} {count / sum(pixels):.1%}" for name, count in zip(data.classes, pixels, strict=True))
    parameters = sum(p.numel() for p in model.parameters())
    print(f"data: {data.layout}, {counts['train']} train, {counts['val']} val, {counts['test']} test images")
    print(f"train pixels: {shares}")
    for sentence in data.skipped:
        print(f"left out: {sentence}")
    print(
        f"model: {type(model).__name__}, {parameters:,} parameters; {steps} steps an epoch, files in {out}", flush=True
    )


def show_progress(state: dict, steps: int, epochs: int, batch_size: int, loss: Tensor, clock: Clock) -> None:
    """A line that rewrites itself, on a terminal only; a log gets one line an epoch."""
    if rank() != 0 or not sys.stdout.isatty() or state["step"] % 5:
        return
    seconds = clock.now() - state["started"]
    rate = state["step"] / seconds
    left = ((epochs - state["epoch"]) * steps - state["step"]) / rate
    if clock.limit is not None:
        left = min(left, clock.limit - clock.now())
    print(
        f"\r\033[Kepoch {state['epoch'] + 1}/{epochs}  step {state['step']}/{steps}  loss {loss.item():.4f}  "
        f"{rate * batch_size:.1f} images/s  {left / 60:.1f} minutes left",
        end="",
        flush=True,
    )


def print_epoch(state: dict, epochs: int, waited: float) -> None:
    """The epoch's line; waited: the share of its time spent waiting for data."""
    row = state["history"][-1]
    print(
        f"{chr(13) if sys.stdout.isatty() else ''}epoch {row['epoch']}/{epochs}  train loss {row['train_loss']:.4f}  "
        f"val loss {row['val_loss']:.4f}  mIoU {row['val_miou']:.4f}  mPA {row['val_mpa']:.4f}  "
        f"best {state['best']:.4f}  lr {row['lr']:.2g}  {row['images_per_s']:.1f} images/s  {row['seconds']:.0f} s  "
        f"{waited:.1%} waiting for data",
        flush=True,
    )
