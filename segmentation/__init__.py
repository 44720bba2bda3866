"""Semantic segmentation in plain PyTorch: U-Net, SegFormer and their weighted average."""

from .checkpoint import load_checkpoint
from .errors import BadInput
from .evaluation.inference import predict
from .losses import TverskyLoss
from .metrics import ConfusionMatrix
from .models import build_model
from .models.mix_transformer import MixTransformer
from .models.segformer import SegFormer
from .models.uformer import UFormer
from .models.unet import ResNet18UNet

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
