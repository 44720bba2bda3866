"""How far a training has come, and the columns of its history."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

HISTORY = (  # the columns of history.csv, which has a row per epoch
    "epoch",
    "train_loss",
    "val_loss",
    "val_miou",
    "val_mpa",
    "lr",
    "seconds",
    "images_per_s",
    "train_miou",
    "train_mpa",
)


@dataclass
class Progress:
    """What a resumed run goes on from, apart from weights, optimizer and scheduler."""

    lr: float  # the scheduler's, before the recipe's learning_rate_factor
    epoch: int = 0  # how many are complete
    step: int = 0  # how many of the epoch under way are complete
    loss_sum: float | Tensor = 0.0  # of these steps
    best_miou: float = -1.0  # of best.pt, on val
    epoch_began: float = 0.0  # seconds of the run
    limit_reached: float = 0.0  # the --max-minutes that were used up; --resume may give more
    history: list[dict] = field(default_factory=list)  # rows of HISTORY

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint, without the history, which stands beside them there."""
        values = vars(self) | {"loss_sum": float(self.loss_sum)}
        del values["history"]
        return values

    def share(self, step: int, steps: int, epochs: int, time_used: float) -> float:
        """The share of the training that is done: of the epochs or of the time, the larger one.

        step: of this epoch, out of steps; time_used: of `Clock`.
        """
        return max(time_used, (self.epoch + step / steps) / epochs)

    def is_finished(self, epochs: int, max_minutes: float | None) -> bool:
        """All epochs are trained, or the time limit is used up."""
        out_of_time = max_minutes is not None and self.limit_reached >= max_minutes
        return self.epoch >= epochs or out_of_time

    def complete_epoch(self, row: dict, lr: float, now: float) -> None:
        """Add a row of history and begin the next epoch."""
        self.history.append(row)
        self.lr = lr
        self.epoch += 1
        self.step, self.loss_sum = 0, 0.0
        self.epoch_began = now
