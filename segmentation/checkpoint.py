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
recipe           the numbers of the recipe as they were trained with
args, command    the command line: parsed, and as it was typed
encoder_weights  source, sha256 and licence of weights trained elsewhere, or None; of this project's
                 also the images that trained them: `trained_on`
environment      hardware and versions, the code's among them
parameter_counts  total, trained, frozen
members          UFormers of ensemble.py alone: what each member was trained with
resume           last.pt alone: optimizer, scheduler (whole state dicts), progress, confusion
"""

import io
import pickle
import re
import textwrap
import unicodedata
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .distributed import say
from .errors import BadInput
from .files import write_atomically
from .models import build_model

FORMAT = 2
RENAMED = {"best": "best_miou", "started": "epoch_began", "time_up": "limit_reached"}
OLD_NORM_EPS = 1e-6  # of a SegFormer whose configuration names none
# Keys of a file that holds a model and no more, with what is taken for them.
UNSAID: dict = {
    "palette": None,
    "reduced_labels": False,
    "data": {"root": None, "splits": {"train": []}, "image_size": None},
    "loss": {"alpha": 0.3, "beta": 0.7},
    "args": {},
    "encoder_weights": None,
}
LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20"  # how torch.save began before version 1.6


def save_checkpoint(path: str | Path, checkpoint: dict) -> None:
    """Write a checkpoint atomically.

    OSError if it cannot be written; the file that was there then stays.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **checkpoint}, buffer)
    write_atomically(path, buffer.getbuffer())


def first_bytes(path: Path) -> bytes:
    """The first bytes of a file of weights.

    BadInput if there are none, or if they are not a file's own but of what stands in for it.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except OSError as error:
        raise BadInput(
            f"{path} cannot be read ({error.strerror}): give a checkpoint, or a file of weights"
        ) from error
    if not head:
        raise BadInput(
            f"{path} is empty: use another checkpoint, such as the other of best.pt and last.pt"
        )
    if head.startswith(b"version https://git-lfs"):
        raise BadInput(f"{path} is a git-lfs pointer to the weights: run git lfs pull beside it")
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise BadInput(f"{path} is a web page: download the file itself, not the page about it")
    return head


def read_plain(path: Path) -> Any:
    """What torch.save wrote, on the CPU; no code is run. BadInput says what else the file is."""
    head = first_bytes(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on strange pickles, which are refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch reports bad files by many types
        held = re.search(r"GLOBAL (\S+)", str(error))
        cut = head.startswith(LEGACY)
        if head.startswith(b"PK"):
            cut = not zipfile.is_zipfile(path)  # its table of contents stands at the end
        reason = textwrap.shorten(str(error).split(". ")[0], 120)
        problem = f"is damaged or not a checkpoint ({reason}): give another one"
        if isinstance(error, pickle.UnpicklingError):
            what = f"it holds a {held[1]}; " if held else ""
            problem = "is not a checkpoint of plain data, so it was not loaded: "
            problem += f"{what}save model.state_dict() instead"
        if cut and not held:
            problem = "is cut short: copy or fetch it again"
        raise BadInput(f"{path} {problem}") from error


def is_checkpoint(content: Any) -> bool:
    """Whether what `read_plain` gave is of this project."""
    known = {"format", "model", "config", "classes"}
    return isinstance(content, dict) and known <= content.keys()


def read_checkpoint(path: str | Path) -> dict:
    """The plain dict of a checkpoint, on the CPU.

    BadInput for a file that is missing, damaged, no checkpoint, or one with code in it.
    """
    return checked(read_plain(Path(path)), path)


def checked(checkpoint: Any, path: str | Path) -> dict:
    """What `read_plain` gave, in the present format. BadInput if it is no checkpoint."""
    if not is_checkpoint(checkpoint):
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
    return model_and_meta(read_plain(Path(path)), path)


def model_and_meta(content: Any, path: str | Path) -> tuple[nn.Module, dict]:
    """`load_checkpoint` of what `read_plain` gave, which it changes."""
    meta = checked(content, path)
    model = restore_model(meta, path)
    del meta["model"]
    return model.eval(), meta


def starting_weights(source: dict | None) -> Iterator[dict]:
    """What a checkpoint's encoder_weights say of each file, those of members' members too."""
    source = source or {}
    if "members" in source:
        for member in source["members"]:
            yield from starting_weights(member)
    elif source:
        yield source


def seen_by(source: dict | None) -> set[str]:
    """`trained_on` of the starting weights, where they are checkpoints of this project."""
    return {name for record in starting_weights(source) for name in record.get("seen", [])}


def trained_on(checkpoint: dict) -> set[str]:
    """Names, without ending, of the images that trained a checkpoint and what it started from.

    Paths where the data number the images of each folder anew, else without folder.
    """
    splits = checkpoint.get("data", {}).get("splits", {})
    names = [image_names(name) for split in splits.values() for name in split]
    unique = len({last for _, last in names}) == len(names)
    train = map(image_names, splits.get("train", []))
    own = {last if unique else path for path, last in train}
    return own | seen_by(checkpoint.get("encoder_weights"))


def image_names(name: str) -> tuple[str, str]:
    """An image's path without ending, and the last part of that.

    In one of Unicode's forms: file systems differ in theirs.
    """
    path = unicodedata.normalize("NFC", str(Path(name).with_suffix("")))
    return path, Path(path).name


def count_seen(names: Iterable[str], seen: set[str]) -> int:
    """How many images are among those of `trained_on`."""
    return sum(not seen.isdisjoint(image_names(name)) for name in names)


def tell_seen(path: str, checkpoint: dict, names: list[str]) -> None:
    """Say if images that are scored seem to be among those that trained a checkpoint."""
    if seen := count_seen(names, trained_on(checkpoint)):
        say(
            f"warning: {seen} of these {len(names)} images are named like images that {path} was "
            "trained on; if they are the same, its scores are too high"
        )


def restore_model(checkpoint: dict, path: str | Path) -> nn.Module:
    """The model of what `read_checkpoint` gave, with its weights.

    An old configuration is completed in place. BadInput, naming the path, if they do not fit.
    """
    try:
        complete(checkpoint["config"])
        with torch.device("meta"):  # no memory, so no random weights are drawn to be replaced
            model = build_model(checkpoint["config"])
        load_weights(model, checkpoint["model"])
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        reason = textwrap.shorten(str(error).strip().splitlines()[-1], 200)
        raise BadInput(
            f"{path}: its weights do not fit its configuration ({reason}): give another one"
        ) from error
    return model


def complete(config: dict) -> None:
    """Fill in what was a constant when older checkpoints were written."""
    for member in config.get("members", ()):
        complete(member)
    if config.get("model") == "segformer":
        config.setdefault("norm_eps", OLD_NORM_EPS)


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Give a model on the meta device weights on the CPU, in its own types and memory formats."""
    own = model.state_dict()
    on_cpu = dict(weights)  # names and shapes that do not fit are load_state_dict's to tell
    for name, value in weights.items():
        if name in own and own[name].shape == value.shape:
            on_cpu[name] = torch.empty_like(own[name], device="cpu").copy_(value)
    model.load_state_dict(on_cpu, assign=True)
