"""The batches of a training, and refusals of what no model can learn from."""

from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ..errors import BadInput
from .workers import ignore_signals, worker_context


def check_labelled(data: Any) -> None:
    """BadInput if train or val has no labelled pixel. data: a SegmentationDataset."""
    for split in ("train", "val"):
        if not any(data.pixel_counts[split]):
            raise BadInput(
                f"{data.root}: all pixels of the {split} masks are 255, ignored: label some of them"
            )


def check_batch(images: int, height: int, width: int) -> None:
    """BadInput if the deepest map is one pixel of one image: BatchNorm needs two values or more."""
    if images == 1 and max(height, width) <= 32:
        raise BadInput(
            f"--batch-size 1 of {height} x {width} pixels leaves BatchNorm a single value to "
            "take statistics of: use --batch-size 2 or more"
        )


def make_loader(
    samples: Dataset, order: Sampler[list], workers: int, device: torch.device
) -> DataLoader:
    """Batches: image uint8 N x 3 x h x w, mask uint8 N x h x w, key int64 N, N names."""
    return DataLoader(
        samples,
        batch_sampler=order,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
        worker_init_fn=ignore_signals,
        multiprocessing_context=worker_context(device, workers),
    )
