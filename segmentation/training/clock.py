"""When to stop and to save: each rank notes signals and time, and all ranks agree on them."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..distributed import all_reduce_sum, rank
from ..errors import BadInput

# USR2: a scheduler's, before the walltime. HUP: of a terminal that closes.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)


class Stopped(Exception):
    """A signal asked the run to stop, and all ranks have agreed to."""


class Clock:
    """Seconds of the whole run, its resumptions included, and whether a signal asked it to stop.

    A signal only sets a flag: the step goes on to its end, where `poll` tells every rank.
    """

    def __init__(self, limit_minutes: float | None = None, save_minutes: float | None = None):
        self.limit_minutes = limit_minutes
        self.save_minutes = save_minutes
        self.validation_seconds = 0.0  # of the last validation, kept free at the limit's end
        self.signalled = False
        self.go_on_from(0.0)
        for number in SIGNALS:
            # Ctrl-C ends at once what has not begun; nohup's wish is kept. run_oar.sh has USR2
            # ignored for torchrun alone, which the ranks inherit.
            nohup = number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN
            if number != signal.SIGINT and not nohup:
                signal.signal(number, self._note)

    def go_on_from(self, seconds: float) -> None:
        """Count from the seconds that the run had used before it was stopped."""
        self.start = time.monotonic() - seconds
        self.agreed = self.last_save = seconds

    def begin_training(self, fresh: bool) -> None:
        """Collective: treat Ctrl-C like the other signals from here on.

        BadInput if a fresh run has no time left for its first step.
        """
        signal.signal(signal.SIGINT, self._note)
        self.poll()
        if fresh and self.time_used() >= 1:
            raise BadInput(
                f"--max-minutes {self.limit_minutes} leaves no time between the start, which took "
                f"{self.agreed:.0f} s, and the first validation: give more"
            )

    def _note(self, number: int, frame: object) -> None:
        self.signalled = True

    def now(self) -> float:
        """Seconds by this rank's clock; other ranks' differ."""
        return time.monotonic() - self.start

    def poll(self) -> bool:
        """Collective: agree on the first rank's seconds, and on whether any rank had a signal."""
        seconds = self.now() if rank() == 0 else 0.0
        noted = torch.tensor([float(self.signalled), seconds], dtype=torch.float64)
        signals, self.agreed = all_reduce_sum(noted).tolist()
        return signals > 0

    def check(self) -> None:
        """Collective: poll, and raise Stopped after a signal."""
        if self.poll():
            raise Stopped

    def time_used(self) -> float:
        """The share of the time limit that is used, by the last poll; 0 without a limit.

        The limit leaves time for one more validation, as long as the last one was.
        """
        if self.limit_minutes is None:
            return 0.0
        limit = 60 * self.limit_minutes - self.validation_seconds
        return self.agreed / max(limit, 1e-9)

    @contextmanager
    def validation(self) -> Iterator[None]:
        """Collective: time what runs inside this context, for `time_used` to keep as much free."""
        before = self.agreed
        yield
        self.poll()
        self.validation_seconds = self.agreed - before

    def save_is_due(self) -> bool:
        """Whether the last save is longer ago than was asked for, by the last poll."""
        minutes = self.save_minutes
        return minutes is not None and self.agreed - self.last_save >= 60 * minutes

    def saved(self) -> None:
        """Note that a checkpoint was written, by the time of the last poll."""
        self.last_save = self.agreed  # not now(): the ranks must agree when the next is due
