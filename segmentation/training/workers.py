"""The DataLoader, its worker processes, and refusals of what no model can learn from."""

import multiprocessing
import signal
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ..errors import BadInput
from ..models.layers import SMALLEST_SIDE
from .clock import SIGNALS

# Imported once, by the process that workers fork from. Each worker imports train.py before the next
# one starts, and these modules take most of that time.
PRELOADED = [
    "torch.distributed.fsdp",
    "torch.distributed.pipelining",
    "segmentation.data.samples",
]


def ignore_signals(worker: int = 0) -> None:
    """Ignore the signals of `Clock` from here on, in this process.

    torchrun signals loader workers too. If they ended, the rank that reads from them could not
    finish its step and save.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def worker_context(device: torch.device, workers: int) -> BaseContext | None:
    """How workers start; None for Python's default, or for no workers.

    On a GPU they are forks of a server process without CUDA: a fork of a process that uses CUDA may
    abort. From Python 3.14 on that is Linux's default, so it is prepared here on a CPU too. The
    server must outlive the signals that stop a run, because its workers end with it.
    """
    by_server = device.type == "cuda" or multiprocessing.get_start_method() == "forkserver"
    if not by_server or not workers:
        return None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    resource_tracker.ensure_running()  # first, because starting it unblocks signals
    # Blocked here until the server runs. The server inherits the mask and blocks them for good.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    forkserver.ensure_running()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def check_labelled(data: Any) -> None:
    """BadInput if train or val has no labelled pixel. data: a SegmentationDataset."""
    for split in ("train", "val"):
        if data.splits[split] and not any(data.pixel_counts[split]):
            raise BadInput(
                f"{data.root}: all pixels of the {split} masks are 255, ignored: label some of them"
            )


def check_batch(images: int, height: int, width: int) -> None:
    """BadInput if no model takes these samples, or BatchNorm would get a single value of each."""
    if min(height, width) < SMALLEST_SIDE:
        raise BadInput(
            f"samples of {height} x {width} pixels are too small: "
            f"use --crop {SMALLEST_SIDE} {SMALLEST_SIDE}, which pads, or --image-size"
        )
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
