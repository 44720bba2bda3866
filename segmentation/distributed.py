"""One process or many: set-up from torchrun's environment, collectives, how ranks fail together.

Every function works without a process group, as one rank of one.
"""

import atexit
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import BadInput

T = TypeVar("T")

PATIENCE = timedelta(days=1)  # of CPU collectives: torchrun ends those who wait for a dead rank

_store: dist.Store | None = None  # torchrun's, which all ranks read and write
_patient: Any = None  # a process group by gloo, for what ranks may come to hours apart


def setup(device: str | None = None, timeout_minutes: float = 10) -> torch.device:
    """Join the process group if torchrun started us, and choose the device.

    That is cuda (the one of LOCAL_RANK), mps or cpu. BadInput if a rank has not the device asked
    for. The backend is NCCL on GPUs, with gloo beside it for CPU tensors. The timeout is that of
    collectives of device tensors.
    """
    if "RANK" not in os.environ or dist.is_initialized():
        return choose_device(device)
    global _store, _patient
    timeout = timedelta(minutes=timeout_minutes)
    _store, own_rank, world = next(dist.rendezvous("env://", timeout=timeout))
    if os.environ.get("LOCAL_WORLD_SIZE") == str(world):
        # torchrun keeps its store over restarts, and in it the addresses of the ranks that died.
        # The agents of several nodes may count restarts differently, so there the keys stay.
        restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)
        _store = dist.PrefixStore(f"restart {restarts}", _store)
    chosen = together(lambda: choose_device(device), gather_by_store)
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    dist.init_process_group(
        backend,
        timeout=timeout,
        store=_store,
        rank=own_rank,
        world_size=world,
    )
    _patient = dist.new_group(backend="gloo", timeout=PATIENCE)
    sys.excepthook = partial(end_at_once, sys.excepthook)
    atexit.register(leave)
    return chosen


def choose_device(device: str | None) -> torch.device:
    """The device asked for, or else the best there is. BadInput if it is not there."""
    if device is None:
        has_mps = torch.backends.mps.is_available()
        device = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"--device {device}: {reason}; leave --device out") from error
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    return chosen


def leave() -> None:
    """At a good end: leave the group, once gloo's threads have freed the last tensors.

    They need the GIL for it. If the interpreter is already exiting they abort the process, so this
    rank sleeps until they are done.
    """
    time.sleep(0.2)
    dist.destroy_process_group()


def end_at_once(report: Callable[..., Any], *error: Any) -> None:
    """After an uncaught error: report it and end, without leaving the group.

    With NCCL, leaving is a collective, and the other ranks wait in another one. torchrun ends them.
    """
    report(*error)
    sys.stdout.flush()
    os._exit(1)


def end_with(sentence: str) -> NoReturn:
    """End this rank with code 2. A sentence that all ranks share is printed by rank 0 alone."""
    is_first = os.environ.get("RANK", "0") == "0"
    if is_first or not said_by_first_rank(sentence):
        print(f"error: {signed(sentence)}", file=sys.stderr, flush=True)
    if is_first and _store is not None:
        _store.set(sentence, "said")
    if dist.is_initialized():
        sys.stdout.flush()
        os._exit(2)  # for the reason of `end_at_once`
    sys.exit(2)


def said_by_first_rank(sentence: str) -> bool:
    """Whether the first rank has the same to say, within three seconds."""
    if _store is None:
        return False
    try:
        _store.wait([sentence], timedelta(seconds=3))
    except RuntimeError:  # it never came, or its keeper has ended
        return False
    return True


def signed(sentence: str) -> str:
    """The sentence, and before it the rank and its host, but on rank 0."""
    number = os.environ.get("RANK", "0")
    return sentence if number == "0" else f"rank {number} ({socket.gethostname()}): {sentence}"


_alone = False


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() and not _alone else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() and not _alone else 1


@contextmanager
def alone() -> Iterator[None]:
    """Inside this context collectives act as if the world size were 1."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


class AllReduceSum(torch.autograd.Function):
    """Sum over ranks, whose backward is a sum over ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x, group=_patient if x.device.type == "cpu" else None)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return AllReduceSum.apply(gradient)


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum over ranks; its backward sums over ranks too. The tensor itself with one rank."""
    return x if world_size() == 1 else AllReduceSum.apply(x)


def all_gather_rows(x: Tensor) -> Tensor:
    """A vector of each rank, n -> R x n."""
    rows = x.new_empty(world_size(), x.numel())
    # torch 2.14 has renamed it.
    collect = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    collect(rows.view(-1), x)
    return rows


def gather(items: list) -> list:
    """The items of all ranks, in the order of the ranks, on every rank."""
    if world_size() == 1:
        return items
    lists: list = [None] * world_size()
    dist.all_gather_object(lists, items, group=_patient)
    return [item for each in lists for item in each]


def gather_by_store(sentences: list[str]) -> list[str]:
    """As `gather` of one sentence, before there is a group. To be called once."""
    assert _store is not None
    keys = [f"sentence of rank {number}" for number in range(int(os.environ["WORLD_SIZE"]))]
    _store.set(keys[int(os.environ["RANK"])], sentences[0])
    return [_store.get(key).decode() for key in keys]


def together(action: Callable[[], T], exchange: Callable[[list[str]], list[str]] = gather) -> T:
    """Run it on every rank. A BadInput of any rank is raised on all, instead of a result."""
    problem = ""
    try:
        result = action()
    except BadInput as error:
        problem = signed(str(error))
    problem = next(filter(None, exchange([problem])), "")
    if problem:
        raise BadInput(problem)
    return result


def first_rank_first(action: Callable[[], T]) -> T:
    """Run on rank 0, then on the others, who find its files in place.

    The others wait as long as it takes. A BadInput of any rank is raised on all.
    """
    results = together(lambda: [action()] if rank() == 0 else [])
    results += together(lambda: [] if rank() == 0 else [action()])
    return results[0]


def say(sentence: str) -> None:
    """Print once, not once a rank."""
    if rank() == 0:
        print(sentence, flush=True)
