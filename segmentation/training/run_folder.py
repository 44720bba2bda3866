"""A run: whether it may start or go on in a folder, its files, and what a checkpoint holds."""

import errno
import fcntl
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ..checkpoint import read_checkpoint, save_checkpoint
from ..distributed import all_reduce_sum, rank, say
from ..errors import BadInput, writing
from ..files import write_atomically
from ..recipes import Recipe
from .clock import Clock
from .parallel import ParallelModel, whole_optimizer_state, whole_weights
from .progress import Progress
from .step_loss import CountingLoss
from .workers import ignore_signals

MARKER = "interrupted"  # left under torchrun, which hides exit codes; run_oar.sh looks for it
FREE_ON_RESUME = (  # flags that a resumed run may change
    "resume",
    "data",  # moved, perhaps: files and classes are compared
    "workers",
    "device",
    "max_minutes",
    "amp",
    "epochs",
    "given",  # their names, of a recipe's numbers
    "save_every",
    "skip_bad",
    "compile",
    "parallel",
    "out",
    "dry_run",
)


def open_run(out: Path, args: dict) -> dict | None:
    """Make the folder; the checkpoint in it to go on from, or None for a fresh run.

    args: the flags of train.py. BadInput if the folder holds a run and args["resume"] is False, if
    that run had other settings, or if the folder cannot be made.
    """
    last = out / "last.pt"
    with writing("--out", out):
        out.mkdir(parents=True, exist_ok=True)
        if rank() == 0 and not args["dry_run"]:
            lock(out)
        held = [name for name in ("last.pt", "best.pt") if (out / name).exists()]
    if held and not args["resume"]:
        raise BadInput(
            f"{out} already holds a run ({held[0]}): "
            "add --resume to go on with it, or choose another --out"
        )
    saved = read_checkpoint(last) if last.exists() else None
    if saved:
        check_settings(saved, args, last)
    if rank() == 0:
        for left in (out / MARKER, *out.glob(".*.writing")):  # of a run killed while it wrote
            left.unlink(missing_ok=True)
    return saved


def lock(out: Path) -> None:
    """BadInput if another process trains in this folder.

    The lock ends with this process, and forked loader workers do not inherit it.
    """
    descriptor = os.open(out / ".lock", os.O_CREAT | os.O_RDWR)  # closing it would unlock
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):  # else the file system has no locks
            raise BadInput(
                f"{out}: another training is under way there: wait, or choose another --out"
            ) from None


def check_classes(saved: dict, classes: list[str], last: Path) -> None:
    """BadInput unless the data have the classes of `saved`, the checkpoint `last`."""
    known = saved["classes"]
    if classes != known:
        raise BadInput(
            f"{last} was trained with the classes {', '.join(known)}, "
            f"the data have {', '.join(classes)}: use the same, or another --out"
        )


def check_settings(saved: dict, args: dict, last: Path) -> None:
    """BadInput unless `saved`, the checkpoint `last`, is of a run with the same settings."""
    if not {"resume", "args", "data", "encoder_weights"} <= saved.keys():
        raise BadInput(
            f"{last} holds no run to go on with: "
            "put the run's own last.pt there, or choose another --out"
        )
    now, before = (json.loads(json.dumps(settings)) for settings in (args, saved["args"]))
    for settings in (now, before):
        for name in ("init", "encoder_weights"):
            files = settings.get(name) or []
            files = [files] if isinstance(files, str) else files
            settings[name] = [os.path.abspath(file) for file in files]
    changed = []
    for name, value in now.items():
        known = before.get(name) or None  # older runs lack the newest flags, which were off
        if name not in FREE_ON_RESUME and (value or None) != known:
            changed.append(f"--{name.replace('_', '-')} {value} (was {before.get(name)})")
    if changed:
        raise BadInput(
            f"{last} was trained with other settings: {', '.join(changed)}; "
            "use the same, or another --out"
        )


def write_config(out: Path, about: dict) -> None:
    """Write config.json: a checkpoint without weights, for people. BadInput if it cannot be."""
    path = out / "config.json"
    with writing("--out", path):
        write_atomically(path, json.dumps(about, indent=2))


def write_checkpoint(path: Path, checkpoint: dict) -> bool:
    """Collective: the first rank writes. If it cannot, it prints a warning and all ranks get False.

    RuntimeError on all, and no file, if weights are NaN.
    """
    has_nan = failed = False
    if rank() == 0:
        spoilt = [weight.isnan().any() for weight in checkpoint["model"].values()]
        has_nan = bool(torch.stack(spoilt).any())  # asked once: each question waits for the device
        failed = not has_nan and not try_write(path, save_checkpoint, checkpoint)
    has_nan, failed = all_reduce_sum(torch.tensor([has_nan, failed]).int()).tolist()
    if has_nan:
        raise RuntimeError(
            f"weights are no longer numbers at epoch {checkpoint['epoch'] + 1}: lower --lr; "
            f"{path.parent} keeps what was saved before"
        )
    return not failed


def try_write(path: Path, write: Callable[[Path, Any], None], content: Any) -> bool:
    """Whether `write` could write the file. If not, print a warning: the training goes on."""
    try:
        write(path, content)
    except OSError as error:
        reason = f"{path} not written ({error.strerror}): the one before it stays"
        print(f"warning: {reason}", file=sys.stderr, flush=True)
        return False
    return True


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
        """Save and exit with 99; under torchrun, which hides codes, leave a marker and return."""
        epoch = self.progress.epoch + 1
        if not self.save("last.pt"):
            sys.exit(f"error: interrupted in epoch {epoch}, and the last save failed")
        say(f"interrupted in epoch {epoch}: the same command with --resume goes on")
        ignore_signals()  # a second one during the interpreter's end would make it a failure
        if torch.distributed.is_torchelastic_launched():
            (self.out / MARKER).touch()
            return
        sys.exit(99)
