"""When to stop: signals and the time limit, noted by each rank and agreed between all of them."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..distributed import all_reduce_sum, rank

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)  # USR2 is what OAR sends before the walltime


class Stopped(Exception):
    """A signal asked the run to stop, and all ranks have agreed to."""


class Clock:
    """Seconds of the whole run, over its resumptions, and whether a signal asked it to stop.

    A signal only sets a flag: the step goes on to its end, where `poll` tells every rank.
    """

    def __init__(self, limit_minutes: float | None = None):
        self.limit = None if limit_minutes is None else 60 * limit_minutes
        self.reserve = 0.0  # seconds of the limit to keep for what follows training
        self.noted = False
        self.go_on_from(0.0)
        for number in SIGNALS:
            signal.signal(number, self._note)

    def go_on_from(self, seconds: float) -> None:
        """Count from so many seconds on, those of the run before it was stopped."""
        self.start = time.monotonic() - seconds
        self.agreed = self.last_save = seconds

    def _note(self, number: int, frame: object) -> None:
        self.noted = True

    def now(self) -> float:
        """This rank's own seconds."""
        return time.monotonic() - self.start

    def poll(self) -> bool:
        """All ranks together: agree on the first rank's seconds and on any rank's signal. True if a signal came."""
        seconds = self.now() if rank() == 0 else 0.0
        noted, self.agreed = all_reduce_sum(torch.tensor([float(self.noted), seconds], dtype=torch.float64)).tolist()
        return noted > 0

    def spent(self) -> float:
        """The share of the time limit that was used by the last poll, the reserve kept back; 0 without a limit."""
        return 0.0 if self.limit is None else self.agreed / max(self.limit - self.reserve, 1e-9)

    def since_save(self) -> float:
        """Seconds from the last save to the last poll."""
        return self.agreed - self.last_save

    def saved(self) -> None:
        self.last_save = self.agreed  # not now(): the ranks must agree when the next is due


def ignore_signals(worker: int = 0) -> None:
    """From here on they do nothing. For the processes that prepare samples: torchrun signals them too, and a rank
    without them could not save."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def signals_held() -> Iterator[None]:
    """Within it they wait for its end; in processes that are started within it, for ever."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
