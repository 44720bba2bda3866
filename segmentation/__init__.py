"""Semantic segmentation in plain PyTorch: U-Net, SegFormer and their weighted average."""

from .checkpoint import load_checkpoint
from .errors import BadInput
from .inference import predict
from .losses import TverskyLoss
from .metrics import ConfusionMatrix
from .mix_transformer import MixTransformer
from .models import build_model
from .segformer import SegFormer
from .uformer import UFormer
from .unet import ResNet18UNet

__all__ = [
    "BadInput",
    "ConfusionMatrix",
    "MixTransformer",
    "ResNet18UNet",
    "SegFormer",
    "TverskyLoss",
    "UFormer",
    "build_model",
    "load_checkpoint",
    "predict",
]
