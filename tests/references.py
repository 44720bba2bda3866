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
