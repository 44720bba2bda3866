"""transformers' own SegFormers with shuffled weights, sizes, the sentence of what is refused."""

import contextlib

import pytest
import torch
import transformers  # loads its models when they are first named
from torch import nn

from segmentation.errors import BadInput
from segmentation.models.mix_transformer import VARIANTS

NAMES = ["roof", "lawn", "tree", "pool", "car"]


def shuffled(model: nn.Module) -> nn.Module:
    """No parameter and no statistic as it starts, so that none is forgotten or swapped unseen."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p += torch.randn(p.shape, generator=generator) * 0.05
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                channels = module.running_mean.shape
                module.running_mean += torch.randn(channels, generator=generator) * 0.1
                module.running_var *= torch.rand(channels, generator=generator) + 0.5
    return model.eval()


def reference_config(variant: str) -> "transformers.SegformerConfig":
    channels, depths = VARIANTS[variant]
    return transformers.SegformerConfig(
        hidden_sizes=list(channels),
        depths=list(depths),
        decoder_hidden_size=256 if variant in ("b0", "b1") else 768,
        id2label=dict(enumerate(NAMES)),
    )


@contextlib.contextmanager
def refused(*parts: str):
    """A BadInput of one line that holds every part."""
    with pytest.raises(BadInput) as caught:
        yield caught
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def parameter_count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def nvlabs(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Hugging Face's names and tensors, old naming, back into those of NVlabs' framework."""
    numbered = {
        "segformer.encoder.patch_embeddings.{i}": "backbone.patch_embed{n}",
        "segformer.encoder.layer_norm.{i}.": "backbone.norm{n}.",
        "segformer.encoder.block.{i}": "backbone.block{n}",
        "decode_head.linear_c.{i}": "decode_head.linear_c{n}",
    }
    words = {
        "layer_norm_": "norm",
        "layer_norm": "norm",
        "attention.self.query": "attn.q",
        "attention.self.key": "attn.kv",
        "attention.self": "attn",
        "attention.output.dense": "attn.proj",
        "mlp.dense": "mlp.fc",
        "linear_fuse": "linear_fuse.conv",
        "batch_norm": "linear_fuse.bn",
        "decode_head.classifier": "decode_head.linear_pred",
        "classifier": "head",
    }
    original = {}
    for name, tensor in state.items():
        if ".self.value." in name:
            continue
        if ".self.key." in name:
            tensor = torch.cat((tensor, state[name.replace(".key.", ".value.")]))
        for theirs, originally in numbered.items():
            for i in range(4):
                name = name.replace(theirs.format(i=i), originally.format(n=i + 1))
        for theirs, originally in words.items():
            name = name.replace(theirs, originally)
        original[name] = tensor
    return original
