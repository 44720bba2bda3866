"""U-Net on the stages of torchvision's ResNet18.

Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation", 2015,
arXiv:1505.04597, figure 1: a contracting path, an expansive path, and skips that carry each
resolution across. The contracting path is ResNet18 (He et al., 2016, arXiv:1512.03385, table 1)
without its classifier.

What differs from figure 1: convolutions are padded and followed by BatchNorm; a step of the
expansive path has one convolution, not two; this path ends at half the image's size, where the
logits are made, which are then interpolated.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Normalise, check_size, start_undecided


class ResNet18Encoder(nn.Module):
    """The five stages of ResNet18, each half the size of the one before.

    Parameter names are torchvision's.
    """

    channels = (64, 64, 128, 256, 512)

    def __init__(self, in_channels: int = 3):
        # Imported here: torchvision takes two seconds to import, and SegFormer does not need it.
        with torch.device("cpu"):  # torchvision 0.21 cannot be imported under another one
            from torchvision.models import resnet18

        super().__init__()
        resnet = resnet18(weights=None)
        if in_channels != 3:
            resnet.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.conv1 = resnet.conv1
        self.bn1 = resnet.bn1
        self.maxpool = resnet.maxpool
        self.layer1 = resnet.layer1
        self.layer2 = resnet.layer2
        self.layer3 = resnet.layer3
        self.layer4 = resnet.layer4

    def forward(self, image: Tensor) -> list[Tensor]:
        """Normalised image N x C x H x W -> five maps of strides 2, 4, 8, 16, 32.

        They have 64, 64, 128, 256 and 512 channels.
        """
        f1 = self.bn1(self.conv1(image))
        f1 = F.relu(f1, inplace=True)
        f2 = self.layer1(self.maxpool(f1))
        f3 = self.layer2(f2)
        f4 = self.layer3(f3)
        f5 = self.layer4(f4)
        return [f1, f2, f3, f4, f5]


class Expansion(nn.Module):
    """A step of the expansive path: upsample, append the skip, convolve.

    A 1x1 convolution reduces the channels before the upsampling, where it costs a quarter. A
    transposed convolution in its place has a backward that takes five times as long.
    """

    def __init__(self, in_channels: int, skip_channels: int, channels: int):
        super().__init__()
        self.project = nn.Conv2d(in_channels, channels, 1, bias=False)
        joined = channels + skip_channels
        self.conv = nn.Conv2d(joined, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """N x C_in x h x w and the skip N x C_skip x H x W, h = ceil(H / 2) -> N x C x H x W."""
        x = self.project(x)
        size = skip.shape[-2:]
        x = F.interpolate(x, size=size, mode="bilinear")
        x = torch.cat((x.to(skip.dtype), skip), dim=1)  # autocast interpolates in float32
        x = self.conv(x)
        x = self.norm(x)
        return F.relu(x, inplace=True)


class ResNet18UNet(nn.Module):
    """U-Net with a ResNet18 encoder."""

    def __init__(self, num_classes: int, in_channels: int = 3):
        super().__init__()
        self.normalise = Normalise(in_channels)
        self.encoder = ResNet18Encoder(in_channels)
        *skips, width = self.encoder.channels
        self.decoder = nn.ModuleList()
        for channels in (128, 128, 64, 32):
            expansion = Expansion(width, skips.pop(), channels)
            self.decoder.append(expansion)
            width = channels
        self.classify = nn.Conv2d(width, num_classes, 1)
        start_undecided(self.classify)
        self.to(memory_format=torch.channels_last)

    def forward(self, image: Tensor, keys: Tensor | None = None) -> Tensor:
        """RGB in [0, 1], N x 3 x H x W, H and W >= 32 -> logits N x K x H x W.

        keys: unused, because a U-Net draws nothing at random.
        """
        check_size(image)
        x, *skips = reversed(self.encoder(self.normalise(image)))
        for expansion, skip in zip(self.decoder, skips, strict=True):
            x = expansion(x, skip)
        logits = self.classify(x).contiguous()
        return F.interpolate(logits, size=image.shape[-2:], mode="bilinear")
