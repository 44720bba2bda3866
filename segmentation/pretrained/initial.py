"""The model a run starts with: fresh, with pretrained encoders, or from checkpoints."""

from torch import nn

from ..checkpoint import load_checkpoint
from ..data.datasets import SegmentationDataset
from ..errors import BadInput
from ..models import build_model
from ..models.uformer import UFormer
from . import load_encoder_weights

Start = tuple[
    nn.Module, dict, dict | None
]  # model, its configuration, source and licence of weights trained elsewhere


def start_fresh(name: str, num_classes: int, segformer: dict, encoder_weights: str) -> Start:
    """A segformer (with these further arguments of its constructor), a unet, or a uformer of both.

    encoder_weights: "imagenet", a file, or "none" for random weights.
    """
    configs: dict[str, dict] = {
        "unet": {"model": "unet", "num_classes": num_classes},
        "segformer": {"model": "segformer", "num_classes": num_classes, **segformer},
    }
    configs["uformer"] = {"model": "uformer", "members": list(configs.values()), "weights": None}
    model = build_model(configs[name])
    if encoder_weights == "none":
        return model, configs[name], None
    if name != "uformer":
        return model, configs[name], load_encoder_weights(model, encoder_weights)
    assert isinstance(model, UFormer)
    sources = [load_encoder_weights(member, encoder_weights) for member in model.members]
    return model, configs[name], {"members": sources}


def start_from(files: list[str], name: str, data: SegmentationDataset) -> Start:
    """The model of a checkpoint, to train on; or, for "uformer", the equal average of those of several.

    BadInput if a checkpoint is of another model or other classes, or was trained on images that score this run.
    """
    members, metas = zip(*(load_checkpoint(file) for file in files), strict=True)
    for file, meta in zip(files, metas, strict=True):
        kind, classes = meta["config"]["model"], meta["classes"]
        if len(classes) != len(data.classes):
            raise BadInput(
                f"{file} knows {len(classes)} classes, the data has {len(data.classes)}: use another"
            )
        if classes != data.classes:
            raise BadInput(
                f"{file} knows {', '.join(classes)}; the data has {', '.join(data.classes)}: use another"
            )
        if name not in ("uformer", kind):
            raise BadInput(f"{file} is a {kind}: say --model {kind}")
        scored = {name for split in ("val", "test") for name in data.splits[split]}
        seen = scored & set(meta["data"]["splits"]["train"])
        if seen and meta["data"]["root"] == data.root and data.layout != "scenes":
            raise BadInput(
                f"{file} was trained on {len(seen)} of the images that score this run: use its --seed"
            )
    sources = {"init": list(files), "members": [meta["encoder_weights"] for meta in metas]}
    if name != "uformer":
        return members[0], metas[0]["config"], sources
    config = {"model": "uformer", "members": [meta["config"] for meta in metas], "weights": None}
    model = build_model(config)
    assert isinstance(model, UFormer)
    for member, trained in zip(model.members, members, strict=True):
        member.load_state_dict(trained.state_dict())
    return model, config, sources
