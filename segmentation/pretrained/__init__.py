"""ImageNet weights for the encoders of both models.

A file must fit exactly: nothing missing, nothing left over but an ImageNet classifier. What cannot
be fetched, read or fitted ends in one sentence, never in a silent start from random weights.
"""

from pathlib import Path

import torch
from torch import nn

from ..errors import BadInput
from ..models.mix_transformer import MixTransformer
from ..models.unet import ResNet18Encoder
from .files import fetch, read_weights, weights_file
from .names import recognise, translate

# ResNet18_Weights.IMAGENET1K_V1.url, a copy because torchvision takes two seconds to import.
RESNET18_URL = "https://download.pytorch.org/models/resnet18-f37072fd.pth"
MIT_URL = "https://huggingface.co/nvidia/mit-{variant}/resolve/main/pytorch_model.bin"

RESNET18_LICENCE = (
    "torchvision, BSD-3-Clause; trained on ImageNet, whose images are for non-commercial research"
)
MIT_LICENCE = (
    "NVIDIA Source Code License for SegFormer: research and evaluation only, non-commercial"
)
FILE_LICENCE = "not stated in the file; NVIDIA's own MiT weights are non-commercial"


def load_encoder_weights(model: nn.Module, source: str | Path) -> dict[str, str]:
    """Load ImageNet weights into the encoder of a SegFormer or a ResNet18UNet.

    model: one of these, or a MixTransformer itself.
    source: "imagenet" (fetched once, into torch.hub's cache) or a file in Hugging Face's, NVlabs'
        or torchvision's layout.
    Returns where the weights came from and their licence, for the checkpoint. BadInput if they
    cannot be fetched, read or fitted.
    """
    encoder = getattr(model, "encoder", model)
    assert isinstance(encoder, MixTransformer | ResNet18Encoder), type(encoder)
    variant = encoder.variant if isinstance(encoder, MixTransformer) else None
    if source == "imagenet":
        channels = next(encoder.parameters()).shape[1]
        if channels != 3:
            raise BadInput(
                f"ImageNet weights take 3 channels and this model {channels}: "
                "use --encoder-weights none"
            )
        url, licence = RESNET18_URL, RESNET18_LICENCE
        name = url.rpartition("/")[2]
        if variant:
            url, licence = MIT_URL.format(variant=variant), MIT_LICENCE
            name = f"mit-{variant}.bin"
        path = Path(torch.hub.get_dir(), "checkpoints", name)
        if not path.exists():
            fetch(url, path)
        record = {"source": "imagenet", "url": url, "licence": licence}
    else:
        path = weights_file(Path(source))
        record = {"source": "file", "path": str(path), "licence": FILE_LICENCE}
    classifiers = ("head.", "classifier.", "fc.")
    weights = read_weights(path).items()
    state = {key: tensor for key, tensor in weights if not key.startswith(classifiers)}
    if variant:
        found, names, _ = recognise(state, path)
        if found != variant:
            raise BadInput(
                f"{path} holds MiT-{found}, the model is {variant}: "
                f"use --variant {found} or another file"
            )
    else:
        names = {layer: [layer] for layer, _ in encoder.named_modules()}
    encoder.load_state_dict(translate(state, encoder, names, path))
    return record
