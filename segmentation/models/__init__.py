"""From a configuration to a model: the only place that maps names to model classes."""

from torch import nn

from ..errors import BadInput
from .segformer import SegFormer
from .uformer import UFormer
from .unet import ResNet18UNet

MODELS = {"segformer": SegFormer, "unet": ResNet18UNet}


def build_model(config: dict) -> nn.Module:
    """A configuration -> the model, with random weights.

    config: {"model": "segformer" or "unet", **the constructor's arguments}, or
        {"model": "uformer", "members": [configuration, ...], "weights": [...] or None}.
    BadInput for any other dict.
    """
    arguments = dict(config)
    try:
        name = arguments.pop("model")
        if name == "uformer":
            members = map(build_model, arguments["members"])
            return UFormer(*members, weights=arguments["weights"])
        return MODELS[name](**arguments)
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"no model can be built from {config}: {error}") from error
