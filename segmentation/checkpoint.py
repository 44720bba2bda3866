"""Checkpoints: plain dicts, written whole or not at all, read without running any code.

format           the version of this table
model            state dict of the bare model, as one process has it
config           what build_model needs
classes          names, in the order of the labels
palette          [r, g, b] of each class
data             arguments of open_dataset, splits with the names of their images, and the layout
loss             alpha and beta, which a score needs
epoch            how many were complete
scores           of val, see evaluation.scoring; None in last.pt saved within an epoch
history          rows of history.csv, a dict an epoch
seconds          of training and validation, over all resumptions
args, command    the command line: parsed, and as it was typed
encoder_weights  source and licence of weights trained elsewhere, or None
environment      hardware and versions
members          UFormers of ensemble.py alone: what each member was trained with
resume           last.pt alone: optimizer and scheduler (whole state dicts), progress
"""

import io
import pickle
import textwrap
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from .errors import BadInput
from .files import write_atomically
from .models import build_model

FORMAT = 2
RENAMED = {"best": "best_miou", "started": "epoch_began", "time_up": "limit_reached"}


def save_checkpoint(path: str | Path, checkpoint: dict) -> None:
    """Write a checkpoint atomically.

    OSError if it cannot be written; the file that was there then stays.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **checkpoint}, buffer)
    write_atomically(path, buffer.getbuffer())


def read_checkpoint(path: str | Path) -> dict:
    """The plain dict of a checkpoint, on the CPU.

    BadInput for a file that is missing, damaged, foreign or hostile.
    """
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise BadInput(
                f"{path} is empty: use another checkpoint, such as the other of best.pt and last.pt"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on strange pickles, which are refused below
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except BadInput:
        raise
    except OSError as error:
        raise BadInput(
            f"{path} cannot be read ({error.strerror}): give the path of a checkpoint"
        ) from error
    except pickle.UnpicklingError as error:
        raise BadInput(
            f"{path} is not a checkpoint of plain data, so it was not loaded: give another"
        ) from error
    except Exception as error:  # torch reports damaged archives by many types
        raise BadInput(
            f"{path} is damaged or not a checkpoint ({type(error).__name__}): give another one"
        ) from error
    known = {"format", "model", "config", "classes"}
    if not isinstance(checkpoint, dict) or not known <= checkpoint.keys():
        raise BadInput(
            f"{path} holds no checkpoint of this project: "
            "give one that train.py or ensemble.py wrote"
        )
    if checkpoint["format"] == 1:
        upgrade(checkpoint)
    version = checkpoint["format"]
    if version != FORMAT:
        raise BadInput(
            f"{path} has format {version}, this version reads 1 to {FORMAT}: update the project"
        )
    return checkpoint


def upgrade(checkpoint: dict) -> None:
    """From format 1: alpha and beta stood among args, history and seconds twice in last.pt."""
    checkpoint["format"] = 2
    args = checkpoint.get("args", {})
    checkpoint["loss"] = {"alpha": args.get("alpha", 0.3), "beta": args.get("beta", 0.7)}
    if resume := checkpoint.get("resume"):
        state = resume.pop("state")
        del state["history"]
        resume["progress"] = {RENAMED.get(name, name): value for name, value in state.items()}


def load_checkpoint(path: str | Path) -> tuple[nn.Module, dict]:
    """A checkpoint's model, in eval mode on the CPU, and its dict without the weights."""
    meta = read_checkpoint(path)
    model = restore_model(meta, path)
    del meta["model"]
    return model.eval(), meta


def restore_model(checkpoint: dict, path: str | Path) -> nn.Module:
    """The model of what `read_checkpoint` gave, with its weights.

    BadInput, naming the path, if they do not fit.
    """
    try:
        with torch.device("meta"):  # no memory, so no random weights are drawn to be replaced
            model = build_model(checkpoint["config"])
        load_weights(model, checkpoint["model"])
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        reason = textwrap.shorten(str(error).strip().splitlines()[-1], 200)
        raise BadInput(
            f"{path}: its weights do not fit its configuration ({reason}): give another one"
        ) from error
    return model


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Give a model on the meta device weights on the CPU, in its own types and memory formats."""
    own = model.state_dict()
    on_cpu = dict(weights)  # names and shapes that do not fit are load_state_dict's to tell
    for name, value in weights.items():
        if name in own and own[name].shape == value.shape:
            on_cpu[name] = torch.empty_like(own[name], device="cpu").copy_(value)
    model.load_state_dict(on_cpu, assign=True)
