"""What a training takes, measured before it waits in a queue."""

import time
from collections.abc import Callable, Iterable
from itertools import chain, islice, repeat

import torch
from torch import Tensor

from ..distributed import say
from ..hardware import GIB
from .memory import peak_memory

MEASURED = 3  # steps, after a first one that allocates, chooses kernels and compiles


def dry_run(
    step: Callable[[dict], Tensor], loader: Iterable[dict], steps: int, device: torch.device
) -> None:
    """Collective: say what a step takes, with loading of its batch, and an epoch of so many steps.

    The steps are real ones: the weights change.
    """
    ends = []
    for batch in islice(chain.from_iterable(repeat(loader)), 1 + MEASURED):
        step(batch).item()  # waits for the device
        ends.append(time.monotonic())
    seconds = (ends[-1] - ends[0]) / MEASURED
    say(
        f"dry run: {seconds:.3g} s a step, {seconds * steps / 60:.3g} minutes an epoch of {steps} "
        f"steps, validation not counted; {peak_memory(device) / GIB:.2f} GiB of memory at most; "
        "nothing was trained"
    )
