"""Whole SegFormers in Hugging Face's format, in and out; NVlabs' files come in too."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from ..checkpoint import UNSAID
from ..errors import BadInput
from ..files import write_atomically
from ..models.layers import IMAGENET_MEAN, IMAGENET_STD
from ..models.mix_transformer import HEADS, MLP_RATIO, NORM_EPS, REDUCTIONS, VARIANTS
from ..models.segformer import MLPDecoder, SegFormer
from .files import SAFETENSORS, State, Weights, read_json, write_safetensors
from .names import encoder_names, recognise, segformer_names, translate

# No tensor's shape shows these; all published SegFormers share them.
ARCHITECTURE = {
    "num_attention_heads": list(HEADS),
    "sr_ratios": list(REDUCTIONS),
    "mlp_ratios": [MLP_RATIO] * 4,
    "strides": [4, 2, 2, 2],
    "patch_sizes": [7, 3, 3, 3],
    "num_encoder_blocks": 4,
    "hidden_act": "gelu",
}
UNUSED = "decode_head.conv_seg."  # in NVlabs' files: their framework's classifier, never called


def load_segformer(make: type[SegFormer], weights: Weights) -> SegFormer:
    """A trained SegFormer, in eval mode; see `SegFormer.from_huggingface`.

    make: SegFormer or a class derived from it. BadInput if the weights do not fit.
    """
    path = weights.path
    if weights.checkpoint:
        raise BadInput(f"{path} is a checkpoint of this project: use load_checkpoint")
    state = {name: value for name, value in weights.tensors.items() if not name.startswith(UNUSED)}
    variant, encoder, column = recognise(state, path)
    names = segformer_names(encoder, column)
    classifier = state.get(names["decoder.classify"][0] + ".weight")
    if classifier is None:
        advice = f"load it with --encoder-weights {path}"
        raise BadInput(f"{path} holds an encoder without decode_head.classifier: {advice}")
    if len(classifier) < 2:
        raise BadInput(f"{path} has one class: a softmax needs two, the background among them")
    model = make(len(classifier), variant, decoder="mlp", norm_eps=NORM_EPS)
    model.classes = class_names(path.with_name("config.json"), len(classifier))
    said = read_json(path.with_name("preprocessor_config.json"))
    model.reduced_labels = bool(said.get("do_reduce_labels", said.get("reduce_labels")))
    model.load_state_dict(with_scales_reversed(translate(state, model, names, path)))
    return model.eval()


def with_scales_reversed(weights: State) -> State:
    """Theirs fuses scale 1/32 first, ours 1/4."""
    fuse = weights["decoder.fuse.weight"]
    scales = fuse.chunk(4, dim=1)
    return weights | {"decoder.fuse.weight": torch.cat(scales[::-1], dim=1)}


def published_checkpoint(weights: Weights) -> tuple[SegFormer, dict]:
    """A published SegFormer, in eval mode, and what is known of the keys of a checkpoint.

    Its data have no root. reduced_labels: see SegFormer. The image size of the training and the
    palette are known of what `export` wrote.
    """
    model = load_segformer(SegFormer, weights)
    facts = read_json(weights.path.with_name("config.json")).get("facts", {})
    config = {
        "model": "segformer",
        "num_classes": len(model.classes),
        "variant": model.encoder.variant,
        "decoder": "mlp",
        "norm_eps": NORM_EPS,
    }
    return model, UNSAID | {
        "config": config,
        "classes": model.classes,
        "palette": facts.get("palette"),
        "reduced_labels": model.reduced_labels,
        "data": UNSAID["data"] | {"image_size": facts.get("image_size")},
        "encoder_weights": weights.record,
    }


def class_names(config_file: Path, num_classes: int) -> list[str]:
    """The names in a config.json, or "0", "1", ... where there is none.

    BadInput if it cannot be read, or describes another architecture.
    """
    numbers = [str(k) for k in range(num_classes)]
    config = read_json(config_file)
    for field, value in ARCHITECTURE.items():
        if config.get(field, value) != value:
            raise BadInput(
                f"{config_file} has {field} {config[field]}, a SegFormer has {value}: "
                "use another model"
            )
    labels = config.get("id2label") or {number: number for number in numbers}
    if labels.keys() != set(numbers):
        raise BadInput(
            f"{config_file} names {len(labels)} classes, the weights have {num_classes}: "
            "mend its id2label"
        )
    return [str(labels[k]).removeprefix("LABEL_") for k in numbers]  # transformers' for no name


def save_segformer(model: SegFormer, folder: Path, classes: Sequence[str] | None) -> None:
    """See `SegFormer.save_huggingface`."""
    if not isinstance(model.decoder, MLPDecoder) or model.normalise.mean.numel() != 3:
        raise ValueError(
            "Hugging Face's format has no place but for decoder mlp and three channels"
        )
    numbers = [str(k) for k in range(model.decoder.classify.out_features)]
    classes = classes or getattr(model, "classes", numbers)
    widths, depths = VARIANTS[model.encoder.variant]
    config = ARCHITECTURE | {
        "architectures": ["SegformerForSemanticSegmentation"],
        "model_type": "segformer",
        "depths": depths,
        "hidden_sizes": widths,
        "decoder_hidden_size": model.decoder.fuse.out_features,
        "id2label": dict(zip(numbers, classes, strict=True)),
        "label2id": {name: k for k, name in enumerate(classes)},
    }
    processor = {
        "image_processor_type": "SegformerImageProcessor",
        "do_resize": False,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STD,
        "do_reduce_labels": model.reduced_labels,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / SAFETENSORS, published_tensors(model, depths))
    for name, content in (("config.json", config), ("preprocessor_config.json", processor)):
        write_atomically(folder / name, json.dumps(content, indent=2))


def published_tensors(model: SegFormer, depths: Sequence[int]) -> State:
    """A model's tensors under the names and in the shapes of Hugging Face's files."""
    names = segformer_names(encoder_names(depths, 1, "segformer.encoder."), 1)
    tensors: State = {}
    for key, tensor in with_scales_reversed(model.state_dict()).items():
        layer, _, kind = key.rpartition(".")
        theirs = [f"{name}.{kind}" for name in names[layer]]
        if kind == "weight" and layer.endswith((".reduce", ".fuse", ".classify")):
            # A matrix over R x R x C: there a convolution whose kernel is its stride R.
            R = REDUCTIONS[int(layer.split(".")[2])] if layer.endswith(".reduce") else 1
            tensor = tensor.unflatten(1, (R, R, -1)).permute(0, 3, 1, 2)
        parts = tensor.chunk(len(theirs)) if len(theirs) > 1 else [tensor]
        tensors |= dict(zip(theirs, parts, strict=True))
    return tensors
