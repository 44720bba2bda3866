"""From a configuration to a model: the only place that maps names to classes and numbers."""

from torch import nn

from ..errors import BadInput
from .segformer import SegFormer
from .uformer import UFormer
from .unet import ResNet18UNet

MODELS = {"segformer": SegFormer, "unet": ResNet18UNet}


def build_model(config: dict) -> nn.Module:
    """{"model": "segformer" or "unet", **the constructor's arguments} -> the model, with random weights.

    {"model": "uformer", "members": [config, ...], "weights": [...]} builds the members too. BadInput for anything else.
    """
    arguments = dict(config)
    name = arguments.pop("model", None)
    try:
        if name == "uformer":
            return UFormer(
                *(build_model(member) for member in arguments["members"]),
                weights=arguments["weights"],
            )
        return MODELS[name](**arguments)
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"no model can be built from {config}: {error}") from error
