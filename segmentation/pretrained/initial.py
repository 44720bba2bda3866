"""The model a run starts with: fresh, with pretrained encoders, or from files of whole models."""

from pathlib import Path

from torch import nn

from ..checkpoint import UNSAID, model_and_meta
from ..distributed import say
from ..errors import BadInput
from ..models import build_model
from ..models.mix_transformer import NORM_EPS
from ..models.uformer import UFormer
from . import load_encoder_weights
from .files import Weights, open_weights, shorten
from .huggingface import published_checkpoint

# The model, its configuration, source and licence of weights trained elsewhere.
Start = tuple[nn.Module, dict, dict | None]


def start_fresh(
    name: str, num_classes: int, segformer: dict, encoder_weights: str | list[str]
) -> Start:
    """A new segformer, unet, or uformer of both.

    segformer: further arguments of SegFormer's constructor.
    encoder_weights: "imagenet", a file, or "none" for random weights; for a uformer one of them for
        both members, or a list of two.
    """
    segformer = {"model": "segformer", "norm_eps": NORM_EPS, **segformer}
    configs = {
        "unet": {"model": "unet", "num_classes": num_classes},
        "segformer": {"num_classes": num_classes, **segformer},
    }
    configs["uformer"] = {"model": "uformer", "members": list(configs.values()), "weights": None}
    config = configs[name]
    model = build_model(config)
    members = model.members if isinstance(model, UFormer) else [model]
    if isinstance(encoder_weights, str):
        encoder_weights = [encoder_weights] * len(members)
    sources = [
        None if source == "none" else load_encoder_weights(member, source)
        for member, source in zip(members, encoder_weights, strict=True)
    ]
    if name == "uformer" and any(sources):
        return model, config, {"members": sources}
    return model, config, sources[0]


def load_model(source: str | Path | Weights) -> tuple[nn.Module, dict]:
    """A checkpoint's model and dict, see `load_checkpoint`; or those of a published SegFormer.

    The dict has `UNSAID` for keys that are not there.
    """
    weights = source if isinstance(source, Weights) else open_weights(source)
    if weights.checkpoint:
        model, meta = model_and_meta(weights.checkpoint, weights.path)
        return model, UNSAID | meta
    return published_checkpoint(weights)


def start_from(
    files: list[str],
    name: str,
    classes: list[str],
    segformer: dict,
) -> Start:
    """The model of a checkpoint or a published SegFormer; for "uformer", the average of several.

    What does not fit these classes, or the decoder asked for, starts anew, which is said.
    segformer: arguments of SegFormer's constructor; decoder None is the file's own, the others are
    for a published one.
    BadInput if a checkpoint is of another model.
    """
    members, configs, records = [], [], []
    for file in files:
        weights = open_weights(file)
        model, meta = load_model(weights)
        config = meta["config"]
        kind = config["model"]
        if name not in ("uformer", kind):
            raise BadInput(f"{file} is a {kind}: say --model {kind}")
        # b0, the flag's default, asks for nothing.
        if segformer["variant"] not in ("b0", config.get("variant")):
            raise BadInput(f"{file} holds no SegFormer-{segformer['variant']}: leave out --variant")
        if not weights.checkpoint:
            meta["config"] = config | {key: segformer[key] for key in ("drop_path", "dropout")}
        if kind != "uformer":
            decoder = segformer["decoder"] if kind == "segformer" else None
            model, config, anew = fit_classes(model, meta, classes, decoder)
            if anew:
                say(f"{file}: its {anew} starts anew for {shorten(classes, 12)}; the rest is kept")
        elif meta["classes"] != classes:
            raise BadInput(f"{file} is a UFormer of other classes: use its members")
        members.append(model)
        configs.append(config)
        records.append(weights.record)
    sources = {"init": list(files), "members": records}
    if name != "uformer":
        return members[0], configs[0], sources
    config = {"model": "uformer", "members": configs, "weights": None}
    return UFormer(*members), config, sources


def fit_classes(
    model: nn.Module, meta: dict, classes: list[str], decoder: str | None = None
) -> tuple[nn.Module, dict, str]:
    """A model for these classes; its configuration; what of it is random: "", or a part's name.

    meta: of `load_model`, with the names of the model's own classes. decoder: a SegFormer's, None
    for its own.
    """
    order = class_order(meta["classes"], classes, meta["reduced_labels"])
    config = meta["config"] | {"num_classes": len(classes)}
    part, anew = ("", "") if order else ("classify", "classifier")
    if decoder not in (None, config.get("decoder", "conv")):
        config["decoder"] = decoder
        part = anew = "decoder"
    fresh = build_model(config)
    state = fresh.state_dict()
    for key, value in model.state_dict().items():
        parts = key.split(".")
        if part not in parts:
            state[key] = value[order] if "classify" in parts else value
    fresh.load_state_dict(state)
    return fresh.train(model.training), config, anew


def class_order(known: list[str], classes: list[str], reduced: bool = False) -> list[int] | None:
    """For each of the classes its row in a classifier of the known ones; None if names differ.

    Numbered classes name nothing and fit where their count does, unless labels are reduced.
    """
    numbers = [str(k) for k in range(len(classes))]
    if len(known) == len(classes) and numbers in (known, classes):
        return None if reduced else list(range(len(classes)))
    if sorted(known) == sorted(classes):
        return [known.index(name) for name in classes]
    return None
