"""The model a run starts with: fresh, with pretrained encoders, or from checkpoints."""

from torch import nn

from ..checkpoint import load_checkpoint
from ..errors import BadInput
from ..models import build_model
from ..models.uformer import UFormer
from . import load_encoder_weights

# The model, its configuration, source and licence of weights trained elsewhere.
Start = tuple[nn.Module, dict, dict | None]


def start_fresh(name: str, num_classes: int, segformer: dict, encoder_weights: str) -> Start:
    """A new segformer, unet, or uformer of both.

    segformer: further arguments of SegFormer's constructor.
    encoder_weights: "imagenet", a file, or "none" for random weights.
    """
    configs = {
        "unet": {"model": "unet", "num_classes": num_classes},
        "segformer": {"model": "segformer", "num_classes": num_classes, **segformer},
    }
    configs["uformer"] = {"model": "uformer", "members": list(configs.values()), "weights": None}
    config = configs[name]
    model = build_model(config)
    if encoder_weights == "none":
        return model, config, None
    if not isinstance(model, UFormer):
        return model, config, load_encoder_weights(model, encoder_weights)
    sources = [load_encoder_weights(member, encoder_weights) for member in model.members]
    return model, config, {"members": sources}


def start_from(
    files: list[str],
    name: str,
    classes: list[str],
    held_out: set[str],
    root: str,
) -> Start:
    """The model of a checkpoint, to train on; for "uformer", the equal average of several.

    classes, root: of the data. held_out: names of the images that score this run; empty where no
    checkpoint can have been trained on them.
    BadInput if a checkpoint is of another model or other classes, or was trained on such images.
    """
    members, metas = zip(*map(load_checkpoint, files), strict=True)
    for file, meta in zip(files, metas, strict=True):
        known = meta["classes"]
        kind = meta["config"]["model"]
        if len(known) != len(classes):
            raise BadInput(
                f"{file} knows {len(known)} classes, the data has {len(classes)}: use another"
            )
        if known != classes:
            raise BadInput(
                f"{file} knows {', '.join(known)}; the data has {', '.join(classes)}: use another"
            )
        if name not in ("uformer", kind):
            raise BadInput(f"{file} is a {kind}: say --model {kind}")
        data = meta["data"]
        seen = held_out.intersection(data["splits"]["train"])
        if seen and data["root"] == root:
            raise BadInput(
                f"{file} was trained on {len(seen)} of the images that score this run: "
                "use its --seed"
            )
    sources = {"init": list(files), "members": [meta["encoder_weights"] for meta in metas]}
    configs = [meta["config"] for meta in metas]
    if name != "uformer":
        return members[0], configs[0], sources
    config = {"model": "uformer", "members": configs, "weights": None}
    return UFormer(*members), config, sources
