"""Whole SegFormers as Hugging Face saves them: the model that their files describe, its weights."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BadInput
from ..models.mix_transformer import HEADS, MLP_RATIO, REDUCTIONS
from .files import read_weights, weights_file
from .names import DECODER_LAYERS, layer_names, recognise, translate

# No tensor's shape shows these; all published SegFormers share them.
ARCHITECTURE = {
    "num_attention_heads": list(HEADS),
    "sr_ratios": list(REDUCTIONS),
    "mlp_ratios": [MLP_RATIO] * 4,
    "strides": [4, 2, 2, 2],
    "hidden_act": "gelu",
}


class HuggingFaceSegFormer:
    """A folder or file of a trained SegFormer.

    arguments: of SegFormer's constructor. classes: names. BadInput if it is not there, cannot be
    read, or is no SegFormer.
    """

    def __init__(self, source: str | Path):
        self.path = weights_file(Path(source))
        self.state = read_weights(self.path)
        variant, encoder_names, column = recognise(self.state, self.path)
        classifier = self.state.get("decode_head.classifier.weight")
        if classifier is None:
            advice = f"load it with --encoder-weights {self.path}"
            raise BadInput(f"{self.path} holds an encoder without decode_head.classifier: {advice}")
        self.names = {f"encoder.{ours}": theirs for ours, theirs in encoder_names.items()}
        for i in range(4):
            self.names |= layer_names(DECODER_LAYERS, column, i=i)
        self.arguments: dict[str, Any] = {
            "num_classes": len(classifier),
            "variant": variant,
            "decoder": "mlp",
            # transformers never reads its layer_norm_eps: every LayerNorm has torch's default.
            "norm_eps": 1e-5,
        }
        self.classes = class_names(self.path.parent / "config.json", len(classifier))

    def weights_for(self, model: nn.Module) -> dict[str, Tensor]:
        """The state dict of a SegFormer built from `arguments`.

        BadInput that lists what does not fit.
        """
        weights = translate(self.state, model, self.names, self.path)
        fuse = weights["decoder.fuse.weight"]  # theirs takes scale 1/32 first, ours 1/4
        weights["decoder.fuse.weight"] = torch.cat(fuse.chunk(4, dim=1)[::-1], dim=1)
        return weights


def class_names(config_file: Path, num_classes: int) -> list[str]:
    """The names in a config.json, or "0", "1", ... without one.

    BadInput if it cannot be read, or describes another architecture.
    """
    numbers = [str(k) for k in range(num_classes)]
    if not config_file.exists():
        return numbers
    try:
        config = dict(json.loads(config_file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise BadInput(f"{config_file} is not JSON that can be read: fetch it again") from error
    for field, value in ARCHITECTURE.items():
        if config.get(field, value) != value:
            raise BadInput(
                f"{config_file} has {field} {config[field]}, a SegFormer has {value}: "
                "use another model"
            )
    labels = config.get("id2label") or dict(zip(numbers, numbers, strict=True))
    if labels.keys() != set(numbers):
        raise BadInput(
            f"{config_file} names {len(labels)} classes, the weights have {num_classes}: "
            "mend its id2label"
        )
    return [str(labels[k]) for k in numbers]
