"""Processes of one server that loads torch once: ranks, and scripts that a signal stops."""

import multiprocessing
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from conftest import models_are_small, run_script, shrink_models

from segmentation import distributed

ROOT = Path(__file__).resolve().parent.parent
PRELOADED_FROM = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
context = multiprocessing.get_context("forkserver")
# All that a child would import, but for what pickled arguments name.
context.set_forkserver_preload(["train", "torchvision.models", "conftest"])


def run_ranks(count: int, work: Callable, *arguments: object) -> None:
    """work(*arguments) in so many processes with the environment that torchrun gives to ranks."""
    os.environ["PYTHONPATH"] = PRELOADED_FROM
    with socket.socket() as free:
        free.bind(("localhost", 0))
        group = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    group["WORLD_SIZE"] = str(count)
    started = []
    for number in range(count):
        own = group | {"RANK": str(number), "LOCAL_RANK": str(number)}
        started.append(
            context.Process(target=rank, args=(models_are_small(), own, work, arguments))
        )
        started[-1].start()
    try:
        for process in started:
            process.join(900)
            assert process.exitcode == 0
    finally:
        for process in started:
            process.kill()


def rank(small: bool, environment: dict[str, str], work: Callable, arguments: tuple) -> None:
    torch.set_num_threads(1)
    if small:
        shrink_models(pytest.MonkeyPatch())
    os.environ.update(environment)
    work(*arguments)
    distributed.leave()


class Kill(NamedTuple):
    """Which signal the process sends itself, and in the how-manieth call of what."""

    signal: int
    moment: str
    count: int = 1


def run_in_child(name: str, arguments: tuple, kill: Kill | None = None, **limits: Any) -> int:
    """A script in its own process -> exit code, -N if signal N ended it. limits: see `child`."""
    # Where the fork server finds what it loads once for all children.
    os.environ["PYTHONPATH"] = PRELOADED_FROM
    process = context.Process(
        target=child, args=(models_are_small(), name, arguments, kill), kwargs=limits
    )
    process.start()
    process.join(240)
    if process.is_alive():
        process.kill()
        raise TimeoutError(f"{name} {arguments} with {kill}")
    assert process.exitcode is not None
    return process.exitcode


def child(
    small: bool,
    name: str,
    arguments: tuple,
    kill: Kill | None,
    *,
    largest_file: int | None = None,
    environment: dict[str, str] | None = None,
    output: Path | None = None,
) -> None:
    """In the child: run the script, and send the signal when the moment comes.

    largest_file: bytes beyond which writing a file fails, as it does on a full disk.
    output: a file for what it says.
    """
    torch.set_num_threads(1)
    if small:
        shrink_models(pytest.MonkeyPatch())
    os.environ.update(environment or {})
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & and nohup ignore these
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if output is not None:
        handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    if kill is not None:
        arm(kill)
    code = run_script(name, *arguments)
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    os._exit(code)  # as a script would end, without the test session's own cleaning up


def arm(kill: Kill) -> None:
    """Make the moment's function send the signal in its count-th call, before it does its work."""
    import train
    from segmentation import files
    from segmentation.evaluation import scoring
    from segmentation.training import run_folder as runs

    owner, name = {
        "data": (train, "open_dataset"),
        "model": (train, "start_fresh"),
        "step": (train, "training_step"),
        "update": (torch.optim.Adam, "step"),
        "evaluation": (scoring, "score_image"),
        "epoch": (train, "finish_epoch"),
        "save": (runs, "save_checkpoint"),
        "half": (files, "open"),
        "flush": (os, "fsync"),
        "rename": (os, "replace"),
        "history": (train, "write_history"),
    }[kill.moment]
    before: Callable = getattr(owner, name, open)
    calls = 0

    def shoot(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != kill.count:
            return before(*args, **kwargs)
        if kill.moment == "half":
            return HalfWritten(before(*args, **kwargs), kill.signal)
        os.kill(os.getpid(), kill.signal)
        return before(*args, **kwargs)

    setattr(owner, name, shoot)


class HalfWritten:
    """A file whose first `write` sends the signal when one half is written."""

    def __init__(self, file: Any, number: int):
        self.file, self.number = file, number

    def __enter__(self) -> "HalfWritten":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, content: Any) -> None:
        content = memoryview(content)
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        os.kill(os.getpid(), self.number)
        self.file.write(content[len(content) // 2 :])

    def flush(self) -> None:
        self.file.flush()

    def fileno(self) -> int:
        return self.file.fileno()


def is_equal(a: Any, b: Any) -> bool:
    """Nested plain data and tensors, bit for bit; what a clock measured does not count."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(is_equal(a[k], b[k]) for k in a if k not in MEASURED)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(is_equal, a, b))
    return a == b


MEASURED = ("seconds", "images_per_s", "epoch_began", "command", "args", "code")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)
