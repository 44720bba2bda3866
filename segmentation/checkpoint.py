"""Checkpoints: plain dicts, written whole or not at all, read without running any code.

Keys: `format`, `model` (state dict), `config` (what build_model needs), `classes`, `palette`, `data` (layout, task,
splits, image size), `args`, `epoch`, `scores`, `history`; `last.pt` also what a resumed run needs: `resume`.
"""

import io
import pickle
import textwrap
import warnings
from pathlib import Path

import torch
from torch import nn

from .errors import BadInput
from .files import write_atomically
from .models import build_model

FORMAT = 1


def save_checkpoint(path: str | Path, checkpoint: dict) -> None:
    """Write a checkpoint atomically. OSError if it cannot be written; the file that was there then stays."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **checkpoint}, buffer)
    write_atomically(path, buffer.getbuffer())


def read_checkpoint(path: str | Path) -> dict:
    """The plain dict of a checkpoint, on the CPU. BadInput for a file that is missing, damaged, foreign or hostile."""
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise BadInput(f"{path} is empty: use another checkpoint, such as the other of best.pt and last.pt")
        with warnings.catch_warnings():  # on strange pickles; what they come to is said below, in one line
            warnings.simplefilter("ignore")
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except BadInput:
        raise
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}): give the path of a checkpoint") from error
    except pickle.UnpicklingError as error:
        raise BadInput(f"{path} is not a checkpoint of plain data, so it was not loaded: give another") from error
    except Exception as error:  # torch reports damaged archives by many types
        raise BadInput(f"{path} is damaged or not a checkpoint ({type(error).__name__}): give another one") from error
    if not isinstance(checkpoint, dict) or not {"format", "model", "config", "classes"} <= checkpoint.keys():
        raise BadInput(f"{path} holds no checkpoint of this project: give one that train.py or ensemble.py wrote")
    if checkpoint["format"] != FORMAT:
        raise BadInput(f"{path} has format {checkpoint['format']}, this version reads {FORMAT}: update the project")
    return checkpoint


def load_checkpoint(path: str | Path) -> tuple[nn.Module, dict]:
    """A checkpoint's model, in eval mode on the CPU, and all the rest it says (a dict without the weights)."""
    meta = read_checkpoint(path)
    model = restore_model(meta, path)
    del meta["model"]
    return model.eval(), meta


def restore_model(checkpoint: dict, path: str | Path) -> nn.Module:
    """The model of what `read_checkpoint` gave, with its weights. BadInput, naming the path, if they do not fit."""
    try:
        model = build_model(checkpoint["config"])
        model.load_state_dict(checkpoint["model"])
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        reason = textwrap.shorten(str(error).strip().splitlines()[-1], 200)
        raise BadInput(f"{path}: its weights do not fit its configuration ({reason}): give another one") from error
    return model
