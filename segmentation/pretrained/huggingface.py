"""Whole SegFormers as Hugging Face saves them: from their files to a model with its weights."""

import json
from pathlib import Path

import torch

from ..errors import BadInput
from ..models.mix_transformer import HEADS, MLP_RATIO, REDUCTIONS
from ..models.segformer import SegFormer
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


def load_segformer(make: type[SegFormer], source: str | Path) -> SegFormer:
    """A trained SegFormer, in eval mode; see `SegFormer.from_huggingface`.

    make: SegFormer or a class derived from it. BadInput if the file is not there, cannot be read,
    or does not fit.
    """
    path = weights_file(Path(source))
    state = read_weights(path)
    variant, encoder_names, column = recognise(state, path)
    classifier = state.get("decode_head.classifier.weight")
    if classifier is None:
        advice = f"load it with --encoder-weights {path}"
        raise BadInput(f"{path} holds an encoder without decode_head.classifier: {advice}")
    names = {f"encoder.{ours}": theirs for ours, theirs in encoder_names.items()}
    for i in range(4):
        names |= layer_names(DECODER_LAYERS, column, i=i)
    # transformers never reads its layer_norm_eps: every LayerNorm has torch's default.
    model = make(len(classifier), variant, decoder="mlp", norm_eps=1e-5)
    model.classes = class_names(path.parent / "config.json", len(classifier))
    weights = translate(state, model, names, path)
    fuse = weights["decoder.fuse.weight"]  # theirs takes scale 1/32 first, ours 1/4
    weights["decoder.fuse.weight"] = torch.cat(fuse.chunk(4, dim=1)[::-1], dim=1)
    model.load_state_dict(weights)
    return model.eval()


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
