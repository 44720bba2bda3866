"""A training under way, and what its checkpoints hold of it."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ..distributed import say
from ..recipes import Recipe
from .clock import Clock
from .parallel import ParallelModel, whole_optimizer_state, whole_weights
from .progress import Progress
from .run_folder import MARKER, write_checkpoint
from .step_loss import CountingLoss
from .workers import ignore_signals


@dataclass
class Run:
    """A training under way: its folder, and all that its checkpoints hold."""

    out: Path
    about: dict  # what is the same in each of its checkpoints
    recipe: Recipe
    parallel: ParallelModel
    criterion: CountingLoss
    optimizer: Optimizer
    scheduler: ReduceLROnPlateau
    progress: Progress
    clock: Clock

    def save(self, name: str, scores: dict | None = None) -> bool:
        """Collective: write a checkpoint with the keys of checkpoint.py. False if it cannot be."""
        checkpoint = self.about | {
            "model": whole_weights(self.parallel),
            "epoch": self.progress.epoch,
            "scores": scores,
            "history": self.progress.history,
            "seconds": self.clock.now(),
        }
        if name == "last.pt":
            checkpoint["resume"] = {
                "optimizer": whole_optimizer_state(self.parallel, self.optimizer),
                "scheduler": self.scheduler.state_dict(),
                "progress": self.progress.state(),
                "confusion": self.criterion.whole_matrix(),
            }
        written = write_checkpoint(self.out / name, checkpoint)
        self.clock.saved()
        return written

    def leave_resumable(self) -> None:
        """Save and end with code 99; under torchrun, which hides it, leave a marker and return."""
        epoch = self.progress.epoch + 1
        if not self.save("last.pt"):
            sys.exit(f"error: interrupted in epoch {epoch}, and the last save failed")
        say(f"interrupted in epoch {epoch}: the same command with --resume goes on")
        ignore_signals()  # a second one during the interpreter's end would make it a failure
        if torch.distributed.is_torchelastic_launched():
            (self.out / MARKER).touch()
            return
        sys.exit(99)
