"""Published weights: ImageNet encoders for both models, and whole SegFormers as Hugging Face saves them.

A file must fit exactly: nothing missing, nothing left over but an ImageNet classifier. What cannot be fetched, read or
fitted ends in one sentence, never in a silent start from random weights.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import ResNet18_Weights

from .errors import BadInput
from .mix_transformer import HEADS, MLP_RATIO, REDUCTIONS, MixTransformer
from .segformer import SegFormer
from .unet import ResNet18Encoder
from .weight_files import fetch, read_weights, weights_file
from .weight_names import DECODER_LAYERS, fill, recognise, translate

RESNET18_URL = ResNet18_Weights.IMAGENET1K_V1.url
MIT_URL = "https://huggingface.co/nvidia/mit-{variant}/resolve/main/pytorch_model.bin"

RESNET18_LICENCE = "torchvision, BSD-3-Clause; trained on ImageNet, whose images are for non-commercial research"
MIT_LICENCE = "NVIDIA Source Code License for SegFormer: research and evaluation only, non-commercial"
FILE_LICENCE = "not stated in the file; NVIDIA's own MiT weights are non-commercial"

# what no tensor's shape shows, and all published SegFormers share
ARCHITECTURE = {
    "num_attention_heads": list(HEADS),
    "sr_ratios": list(REDUCTIONS),
    "mlp_ratios": [MLP_RATIO] * 4,
    "strides": [4, 2, 2, 2],
    "hidden_act": "gelu",
}


def load_encoder_weights(model: nn.Module, source: str | Path) -> dict[str, str]:
    """Load ImageNet weights into the encoder of a SegFormer or a ResNet18UNet, or into a MixTransformer itself.

    source: "imagenet" (fetched once, into torch.hub's cache) or a file in Hugging Face's, NVlabs' or torchvision's
    layout. Returns where the weights came from and their licence, for the checkpoint.
    """
    encoder = getattr(model, "encoder", model)
    assert isinstance(encoder, MixTransformer | ResNet18Encoder), type(encoder)
    variant = encoder.variant if isinstance(encoder, MixTransformer) else None
    is_mit = variant is not None
    if source == "imagenet":
        if (channels := next(encoder.parameters()).shape[1]) != 3:
            raise BadInput(f"ImageNet weights take 3 channels and this model {channels}: use --encoder-weights none")
        url = MIT_URL.format(variant=variant) if is_mit else RESNET18_URL
        path = Path(torch.hub.get_dir(), "checkpoints", f"mit-{variant}.bin" if is_mit else url.rpartition("/")[2])
        if not path.exists():
            fetch(url, path)
        record = {"source": "imagenet", "url": url, "licence": MIT_LICENCE if is_mit else RESNET18_LICENCE}
    else:
        path = weights_file(Path(source))
        record = {"source": "file", "path": str(path), "licence": FILE_LICENCE}
    state = {k: v for k, v in read_weights(path).items() if not k.startswith(("head.", "classifier.", "fc."))}
    if is_mit:
        found, names, _ = recognise(state, path)
        if found != variant:
            raise BadInput(f"{path} holds MiT-{found}, the model is {variant}: use --variant {found} or another file")
    else:
        names = {layer: [layer] for layer, _ in encoder.named_modules()}
    encoder.load_state_dict(translate(state, encoder, names, path))
    return record


def segformer_from_huggingface(source: str | Path) -> SegFormer:
    """A trained SegFormer from a folder or file as Hugging Face saves it, in eval mode, its class names in `classes`.

    Its logits are those of transformers' SegformerForSemanticSegmentation, upsampled to the image's size.
    """
    path = weights_file(Path(source))
    state = read_weights(path)
    variant, encoder_names, column = recognise(state, path)
    classifier = state.get("decode_head.classifier.weight")
    if classifier is None:
        raise BadInput(f"{path} holds an encoder without decode_head.classifier: load it with --encoder-weights {path}")
    names = {f"encoder.{ours}": theirs for ours, theirs in encoder_names.items()}
    for i in range(4):
        names |= fill(DECODER_LAYERS, column, i=i)
    # every LayerNorm of transformers has torch's default eps; it never reads the layer_norm_eps of its config
    model = SegFormer(len(classifier), variant, decoder="mlp", norm_eps=1e-5)
    weights = translate(state, model, names, path)
    fuse = weights["decoder.fuse.weight"]  # theirs takes scale 1/32 first, ours 1/4
    weights["decoder.fuse.weight"] = torch.cat(fuse.chunk(4, dim=1)[::-1], dim=1)
    model.load_state_dict(weights)
    model.classes = class_names(path.parent / "config.json", len(classifier))
    return model.eval()


def class_names(config_file: Path, num_classes: int) -> list[str]:
    """The names in a config.json, or "0", "1", ... without one. An architecture that is not SegFormer's is an error."""
    names = {str(k): str(k) for k in range(num_classes)}
    if not config_file.exists():
        return list(names.values())
    try:
        config: dict[str, Any] = dict(json.loads(config_file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise BadInput(f"{config_file} is not JSON that can be read: fetch it again") from error
    for field, value in ARCHITECTURE.items():
        if config.get(field, value) != value:
            raise BadInput(f"{config_file} has {field} {config[field]}, a SegFormer has {value}: use another model")
    labels = config.get("id2label") or names
    if labels.keys() != names.keys():
        raise BadInput(f"{config_file} names {len(labels)} classes, the weights have {num_classes}: mend its id2label")
    return [str(labels[k]) for k in names]
