"""The processes that prepare samples."""

import multiprocessing
import signal
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext

import torch

from .clock import SIGNALS

PRELOADED = "segmentation.data.samples"  # once, for all workers


def ignore_signals(worker: int = 0) -> None:
    """Let signals do nothing from here on, in this process.

    For loader workers: torchrun signals them too, and the rank that needs them could not save.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def worker_context(device: torch.device, workers: int) -> BaseContext | None:
    """On a GPU, workers are forks of a process without CUDA: forks of one with it may abort.

    That process must outlive the signals that stop a run, as its workers end with it.
    """
    if device.type != "cuda" or not workers:
        return None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOADED])
    resource_tracker.ensure_running()  # or it is started below, and lifts the mask at once
    # Here signals wait until the server runs; in the server, which inherits the mask, for good.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    forkserver.ensure_running()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context
