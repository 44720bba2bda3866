"""What a step takes, measured before a training waits in a queue."""

import time
from collections.abc import Callable, Iterable
from itertools import islice, pairwise
from statistics import mean

from torch import Tensor

MEASURED = 3  # steps, after a first one that allocates, chooses kernels and compiles


def seconds_of_step(step: Callable[[dict], Tensor], batches: Iterable[dict]) -> float:
    """Collective: seconds per step, the wait for its batch included. The steps are real ones."""
    ends = [time.monotonic()]
    for batch in islice(batches, 1 + MEASURED):
        step(batch).item()  # waits for the device
        ends.append(time.monotonic())
    first, *others = (end - before for before, end in pairwise(ends))
    return mean(others or [first])
