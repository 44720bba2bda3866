"""A run's folder: who may write it, and its files beside the checkpoints: config.json, history.csv, the marker."""

import csv
import io
import json
import os
import platform
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from ..checkpoint import read_checkpoint, save_checkpoint
from ..distributed import all_reduce_sum, rank, world_size
from ..errors import BadInput
from ..files import write_atomically
from ..report.curves import curves_svg
from .clock import Clock
from .parallel import whole_optimizer_state, whole_weights
from .pipeline import Pipeline

HISTORY = ("epoch", "train_loss", "val_loss", "val_miou", "val_mpa", "lr", "seconds", "images_per_s")
MARKER = "interrupted"  # left under torchrun, which hides exit codes; run_oar.sh turns it into exit code 99
PER_CALL = (
    "resume",
    "workers",
    "device",
    "max_minutes",
    "epochs",
    "save_every",
    "skip_bad",
    "compile",
    "parallel",
    "out",
)


def open_run(out: Path, args: dict) -> dict | None:
    """The checkpoint to go on from, or None for a fresh run, its folder made.

    BadInput if it holds a run and args["resume"] is False, if that run had other settings, or if it cannot be made.
    """
    last = out / "last.pt"
    try:
        out.mkdir(parents=True, exist_ok=True)
        held = [name for name in ("last.pt", "best.pt") if (out / name).exists()]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", error)
        raise BadInput(f"--out {out} cannot be used as a folder ({reason}): choose another") from error
    if held and not args["resume"]:
        raise BadInput(f"{out} already holds a run ({held[0]}): add --resume to go on with it, or choose another --out")
    saved = read_checkpoint(last) if last.exists() else None
    if saved and not {"resume", "args", "data", "encoder_weights"} <= saved.keys():
        raise BadInput(f"{last} holds no run to go on with: give it back its own last.pt, or choose another --out")
    if saved:
        now, before = (json.loads(json.dumps(settings)) for settings in (args, saved["args"]))
        differ = [k for k in now if k not in PER_CALL and now[k] != before.get(k)]
        if differ:
            listed = ", ".join(f"--{k.replace('_', '-')} {now[k]} (was {before.get(k)})" for k in differ)
            raise BadInput(f"{last} was trained with other settings: {listed}; use the same, or another --out")
    if rank() == 0:
        for left in (out / MARKER, *out.glob(".*.writing")):  # what a run killed while it wrote left behind
            left.unlink(missing_ok=True)
    return saved


def write_config(out: Path, about: dict) -> None:
    """config.json: what a checkpoint says about its run, to be read by people. BadInput if it cannot be written."""
    try:
        write_atomically(out / "config.json", json.dumps(about, indent=2).encode())
    except OSError as error:
        raise BadInput(
            f"{out / 'config.json'} cannot be written ({error.strerror}): make room, or choose --out"
        ) from error


def write_history(out: Path, history: list[dict]) -> bool:
    """history.csv, a row an epoch in full precision, and curves.svg. False, and said, if one cannot be written."""
    text = io.StringIO()
    writer = csv.DictWriter(text, HISTORY, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    contents = {"history.csv": text.getvalue(), "curves.svg": curves_svg({out.resolve().name: history})}
    written = [written_or_said(out / n, partial(write_atomically, out / n, s.encode())) for n, s in contents.items()]
    return all(written)


def save_run(
    out: Path,
    parallel: nn.Module | Pipeline,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.ReduceLROnPlateau,
    state: dict,
    clock: Clock,
    about: dict,
    name: str,
    scores: dict | None = None,
) -> bool:
    """Write a checkpoint; all ranks call it, the first writes. False if it cannot be written, which is said, no more.

    RuntimeError instead of a checkpoint whose weights are not numbers.
    """
    failed, not_numbers = False, False
    weights = whole_weights(parallel)
    optimizer_state = whole_optimizer_state(parallel, optimizer) if name == "last.pt" else None
    if rank() == 0:
        not_numbers = bool(torch.stack([x.isnan().any() for x in weights.values()]).any())
        checkpoint = about | {
            "model": weights,
            "epoch": state["epoch"],
            "scores": scores,
            "history": state["history"],
            "seconds": clock.now(),
        }
        if name == "last.pt":
            resume = state | {"loss_sum": float(state["loss_sum"])}
            checkpoint["resume"] = {
                "optimizer": optimizer_state,
                "scheduler": scheduler.state_dict(),
                "state": resume,
                "seconds": clock.now(),
            }
        if not not_numbers:
            failed = not written_or_said(out / name, lambda: save_checkpoint(out / name, checkpoint))
    failed, not_numbers = (bool(flag) for flag in all_reduce_sum(torch.tensor([int(failed), int(not_numbers)])))
    if not_numbers:
        where = f"epoch {state['epoch'] + 1}, step {state['step']}"
        raise RuntimeError(f"weights are no longer numbers at {where}: lower --lr; {out} keeps what was saved before")
    clock.saved()
    return not failed


def written_or_said(path: Path, write: Callable[[], None]) -> bool:
    """Whether `write` could write the file. A full disk costs one save and is said, the run goes on."""
    try:
        write()
    except OSError as error:
        print(f"warning: {path} not written ({error.strerror}): the one before it stays", file=sys.stderr, flush=True)
        return False
    return True


def environment(device: torch.device) -> dict:
    """Hardware and versions a run was made with."""
    processor = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return {
        "device": device.type,
        "processor": processor,
        "ranks": world_size(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
