"""The worker processes of the DataLoader, which prepare samples."""

import multiprocessing
import signal
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext

import torch

from .clock import SIGNALS

PRELOADED = "segmentation.data.samples"  # imported once, by the process that workers fork from


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
    abort. The server must outlive the signals that stop a run, because its workers end with it.
    """
    if device.type != "cuda" or not workers:
        return None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOADED])
    resource_tracker.ensure_running()  # first, because starting it unblocks signals
    # Blocked here until the server runs. The server inherits the mask and blocks them for good.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    forkserver.ensure_running()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context
