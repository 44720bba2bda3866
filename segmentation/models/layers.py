"""The two ends every model shares: images in, as the encoder wants them; class logits out, undecided at the start."""

import torch
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Normalise(nn.Module):
    """RGB in [0, 1] to the encoder's own units; not part of the state dict. More than three channels: 0.5 and 0.25."""

    mean: Tensor
    std: Tensor

    def __init__(self, in_channels: int = 3):
        super().__init__()
        mean = IMAGENET_MEAN if in_channels == 3 else (0.5,) * in_channels
        std = IMAGENET_STD if in_channels == 3 else (0.25,) * in_channels
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """N x C x H x W -> the same, channels last in memory."""
        return ((image - self.mean) / self.std).contiguous(memory_format=torch.channels_last)


def start_undecided(classifier: nn.Linear | nn.Conv2d) -> None:
    """Make the first softmax nearly uniform.

    The Tversky loss has no logarithm: where a random start is confident and wrong the softmax is flat, its gradient is
    gone, and a class once lost stays lost. A start near 1/K everywhere leaves every class its gradient.
    """
    nn.init.normal_(classifier.weight, std=0.01)
    if classifier.bias is not None:
        nn.init.zeros_(classifier.bias)
