"""Weights trained elsewhere for the encoders of both models.

A file must fit exactly: nothing missing, nothing left over but what is no encoder's, a classifier
or a decoder. What cannot be fetched, read or fitted ends in one sentence, never in a silent start
from random weights.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import BadInput
from ..models.mix_transformer import MixTransformer
from ..models.unet import ResNet18Encoder
from .files import State, Weights, fetch, open_weights
from .names import foreign, recognise, rows_of, translate

# ResNet18_Weights.IMAGENET1K_V1.url, a copy because torchvision takes two seconds to import. The
# eight digits begin its sha256.
RESNET18_URL = "https://download.pytorch.org/models/resnet18-f37072fd.pth"
MIT_URL = "https://huggingface.co/nvidia/mit-{variant}/resolve/{revision}/pytorch_model.bin"
# variant: revision, sha256. Each is stated by two public repositories or more, b3's by one.
_files = rows_of("""
b0 80983a413c30d36a39c20203974ae7807835e2b4
    4af8348c2a802bf76115d34797ff5ce1d9f110bb8593c22d9b66d8bd7fa227fc
b1 13ddceec4e8bdf401e7cd7acf5aebc526222518c
    980b86b60db37b1b1528086f6c53d253d879e9e09ebe07397b40fd275738a3bf
b2 3bb39e8739149c3777d0325349b2a6c32c6413db
    4500b5665471b593e6757e15bcca5034f433fe3902fe8ec2b7230774a57f264f
b3 0e0522cf0515903a0d35abc5adc9df78a25fde7c
    5670aa22de1b1848b1d715cc97d8fef77761701dedc8b3d3e44525fd71012896
b4 3844ddaa13d9ce98816bacb904688a5284f164af
    1cddf0f9ed0b7f1639a8f5e339c177673685df3e2e3c9575a649eb15bcf68a55
b5 40357155205b036cf11b61f132d53d2f8861f170
    a389c0a604458fa205446fd08a2c01b74e6591a5da3e77de668c6ca5cbf75356
""")
MIT_FILES = {variant: file for variant, *file in _files}

RESNET18_LICENCE = (
    "torchvision, BSD-3-Clause; trained on ImageNet, whose images are for non-commercial research"
)
MIT_LICENCE = (
    "NVIDIA Source Code License for SegFormer: research and evaluation only, non-commercial"
)
NO_ENCODERS = ("head.", "classifier.", "fc.", "decode_head.")  # what stands beside one in a file


def load_encoder_weights(model: nn.Module, source: str | Path) -> dict[str, Any]:
    """Load weights trained elsewhere into the encoder of a SegFormer or a ResNet18UNet.

    model: one of these, or a MixTransformer itself.
    source: "imagenet" (fetched once, into torch.hub's cache), or a file or folder: an encoder or a
        whole SegFormer in Hugging Face's or NVlabs' layout, torchvision's ResNet18, or a checkpoint
        of this project.
    Returns where the weights came from, their sha256 and licence, for the checkpoint. BadInput if
    they cannot be fetched, read or fitted.
    """
    encoder = getattr(model, "encoder", model)
    assert isinstance(encoder, MixTransformer | ResNet18Encoder), type(encoder)
    variant = encoder.variant if isinstance(encoder, MixTransformer) else None
    about = {}
    if source == "imagenet":
        channels = next(encoder.parameters()).shape[1]
        if channels != 3:
            raise BadInput(
                f"ImageNet weights take 3 channels and this model {channels}: "
                "use --encoder-weights none"
            )
        url, licence = RESNET18_URL, RESNET18_LICENCE
        name = Path(url).name
        sha256 = name.removeprefix("resnet18-").removesuffix(".pth")
        if variant:
            revision, sha256 = MIT_FILES[variant]
            url, licence = MIT_URL.format(variant=variant, revision=revision), MIT_LICENCE
            name = f"mit-{variant}.bin"
        source = Path(torch.hub.get_dir(), "checkpoints", name)
        if not source.exists():
            fetch(url, source, sha256)
        about = {"source": "imagenet", "url": url, "licence": licence}
    weights = open_weights(source)
    encoder.load_state_dict(encoder_state(weights, encoder, variant))
    return weights.record | about


def encoder_state(weights: Weights, encoder: nn.Module, variant: str | None) -> State:
    """The tensors of the encoder in a file, under its names here. BadInput if there is none."""
    path = weights.path
    if weights.checkpoint:
        return own_encoder(weights, encoder, f"MiT-{variant}" if variant else "ResNet18")
    tensors = weights.tensors
    state = {name: tensors[name] for name in tensors if not name.startswith(NO_ENCODERS)}
    if variant:
        found, names, _ = recognise(state, path)
        if found != variant:
            raise BadInput(
                f"{path} holds MiT-{found}, the model is {variant}: "
                f"use --variant {found} or another file"
            )
    elif "conv1.weight" in state:
        names = {layer: [layer] for layer, _ in encoder.named_modules()}
    else:
        raise foreign("ResNet18 that torchvision saved", state, path)
    return translate(state, encoder, names, path)


def own_encoder(weights: Weights, encoder: nn.Module, kind: str) -> State:
    """That of a checkpoint of this project, or of the member of a UFormer, that fits."""
    wanted = {name: tensor.shape for name, tensor in encoder.state_dict().items()}
    states: dict[str, State] = defaultdict(dict)  # those of each member
    for name, tensor in weights.tensors.items():
        before, _, own = name.partition("encoder.")
        states[before][own] = tensor
    for state in states.values():
        if {name: tensor.shape for name, tensor in state.items()} == wanted:
            return state
    config = (weights.checkpoint or {})["config"]
    held = config.get("variant", config["model"])
    raise BadInput(f"{weights.path} holds {held}, and no {kind} that fits: use another")
