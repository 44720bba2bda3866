"""What train.py prints while it works.

A log gets a line per epoch; a terminal also gets a line that rewrites itself.
"""

import sys
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..checkpoint import count_seen, seen_by
from ..distributed import rank
from ..recipes import Recipe
from .clock import Clock
from .frozen import count_parameters
from .progress import Progress

MUCH = 0.2  # of all pixels, a share worth a warning if it is ignored


def print_summary(
    data: Any, model: nn.Module, source: dict | None, steps: int, memory: str, out: Path
) -> None:
    """Print what is trained on what.

    data: a SegmentationDataset; source: a checkpoint's encoder_weights; memory: of `check_memory`.
    """
    counts = ", ".join(f"{len(names)} {split}" for split, names in data.splits.items())
    pixels = data.pixel_counts["train"]
    total = sum(pixels)
    shares = [f"{c} {n / total:.1%}" for c, n in zip(data.classes, pixels, strict=True)]
    ignored = data.ignored_share("train")
    if ignored:
        shares.append(f"and {ignored:.1%} of all pixels ignored")
    parameters = count_parameters(model)
    print(f"data: {data.layout}, {counts} images")
    for sentence in data.notes:
        print(f"data: {sentence}")
    print(f"train pixels: {', '.join(shares)}")
    if ignored > MUCH:
        print("warning: so much is ignored (255); where it is a class, say --label-map 255=NUMBER")
    for sentence in data.skipped:
        print(f"left out: {sentence}")
    scored = [*data.splits["val"], *data.splits["test"]]
    if seen := count_seen(scored, seen_by(source)):
        print(
            f"warning: {seen} of {len(scored)} val and test images are named like images that the "
            "starting weights were trained on; if they are the same, scores will be too high"
        )
    print(f"memory: {memory}")
    print(f"model: {type(model).__name__}, {parameters['total']:,} parameters", end="")
    if parameters["frozen"]:
        print(", {trained:,} trained, {frozen:,} frozen".format(**parameters), end="")
    print(f"; {steps} steps an epoch, files in {out}", flush=True)


def show_progress(
    progress: Progress, steps: int, recipe: Recipe, loss: Tensor, clock: Clock
) -> None:
    """Every fifth step, on a terminal only: a line that rewrites itself. steps: of an epoch."""
    if rank() != 0 or not sys.stdout.isatty() or progress.step % 5:
        return
    rate = progress.step / (clock.now() - progress.epoch_began)
    left = ((recipe.epochs - progress.epoch) * steps - progress.step) / rate
    if clock.limit_minutes is not None:
        left = min(left, 60 * clock.limit_minutes - clock.now())
    print(
        f"\r\033[Kepoch {progress.epoch + 1}/{recipe.epochs}  step {progress.step}/{steps}  "
        f"loss {loss.item():.4f}  {rate * recipe.batch_size:.1f} images/s  "
        f"{left / 60:.1f} minutes left",
        end="",
        flush=True,
    )


def print_epoch(progress: Progress, epochs: int, data_wait: float) -> None:
    """Print the last epoch's line. data_wait: the share of its time spent waiting for data."""
    row = progress.history[-1]
    start = "\r" if sys.stdout.isatty() else ""
    val = ""
    if row["val_loss"] is not None:
        val = (
            f"val loss {row['val_loss']:.4f}  mIoU {row['val_miou']:.4f}  "
            f"mPA {row['val_mpa']:.4f}  best {progress.best_miou:.4f}  "
        )
    print(
        f"{start}epoch {row['epoch']}/{epochs}  train loss {row['train_loss']:.4f}  "
        f"{val}lr {row['lr']:.2g}  {row['images_per_s']:.1f} images/s  "
        f"{row['seconds']:.0f} s  {data_wait:.1%} waiting for data",
        flush=True,
    )
