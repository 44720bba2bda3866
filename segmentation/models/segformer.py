"""SegFormer: the Mix Transformer encoder and a decoder that joins its four scales.

Xie et al., 2021, arXiv:2105.15203, figure 2. `MLPDecoder` is the paper's all-MLP head (section 3.2,
equation 4). `ConvDecoder` is this project's own: learnable upsampling from scale to scale, and a
final convolution instead of the last MLP.

The paper upsamples four maps of D channels to 1/4, concatenates them and mixes 4D channels there. A
1x1 convolution and a bilinear upsampling commute: one acts on channels, the other on positions with
weights that sum to one. So here each scale is mixed at its own size, projection and fusion
multiplied into one matrix, then upsampled and added. Function, gradients and parameters are those
of the paper, for a fraction of the work.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..tracing import exporting, spread_and_convolve
from .layers import KeyedDropout, Normalise, Pointwise, pointwise, start_undecided
from .mix_transformer import NORM_EPS, MixTransformer


def initialise_decoder(module: nn.Module) -> None:
    """A decoder's random linear maps. Before a BatchNorm small ones learn in fewer steps."""
    if isinstance(module, Pointwise):
        nn.init.trunc_normal_(module.weight, std=0.02)


class MLPDecoder(nn.Module):
    """The paper's all-MLP decoder (equation 4), with its published weights' BatchNorm and ReLU."""

    def __init__(
        self,
        channels: tuple[int, ...],
        num_classes: int,
        width: int,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.project = nn.ModuleList(Pointwise(c, width) for c in channels)
        joined = len(channels) * width  # scale 1/4 first
        self.fuse = Pointwise(joined, width, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.dropout = KeyedDropout(dropout, salt=-1)
        self.classify = Pointwise(width, num_classes)
        self.apply(initialise_decoder)
        start_undecided(self.classify)

    def forward(self, features: list[Tensor], keys: Tensor | None) -> Tensor:
        """[N x C_i x H/s x W/s] for s = 4, 8, 16, 32 -> logits N x K x H/4 x W/4."""
        mixes = self.fuse.weight.chunk(len(features), dim=1)  # width x width, one a scale
        maps = []
        for feature, project, mix in zip(features, self.project, mixes, strict=True):
            assert isinstance(project, Pointwise)
            weight = mix @ project.weight
            bias = mix @ project.bias
            maps.append(pointwise(feature, weight, bias))  # N x width x H/s x W/s
        x, *coarser = maps
        for each in coarser:
            x = x + F.interpolate(each, size=x.shape[-2:], mode="bilinear")
        x = F.relu(self.norm(x), inplace=True)
        x = self.dropout(x, keys)
        return self.classify(x)


class Upsample(nn.ConvTranspose2d):
    """A depthwise transposed convolution that doubles both sides, at first bilinearly."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 4, stride=2, padding=1, groups=channels, bias=False)
        side = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 4
        self.weight.data.copy_(torch.outer(side, side))

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:  # type: ignore[override]
        """N x C x h x w -> N x C x H x W, where h = ceil(H / 2) and w = ceil(W / 2).

        On a CPU in float32 even under autocast: oneDNN has no such convolution in bfloat16.
        """
        if exporting():
            return spread_and_convolve(x, self.weight, H, W)
        if x.device.type == "cpu":
            x = x.to(self.weight.dtype)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x)[..., :H, :W]


class ConvDecoder(nn.Module):
    """From coarse to fine: upsample, add the next scale's projection, normalise, ReLU.

    A 3x3 convolution makes the logits.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        num_classes: int,
        width: int,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.project = nn.ModuleList(Pointwise(c, width) for c in channels)
        self.upsample = nn.ModuleList(Upsample(width) for _ in channels[1:])
        self.norm = nn.ModuleList(nn.BatchNorm2d(width) for _ in channels[1:])
        self.dropout = KeyedDropout(dropout, salt=-1)
        self.classify = nn.Conv2d(width, num_classes, 3, padding=1)
        self.apply(initialise_decoder)
        start_undecided(self.classify)
        self.to(memory_format=torch.channels_last)

    def forward(self, features: list[Tensor], keys: Tensor | None) -> Tensor:
        """[N x C_i x H/s x W/s] for s = 4, 8, 16, 32 -> logits N x K x H/4 x W/4."""
        maps = []
        for feature, project in zip(features, self.project, strict=True):
            maps.append(project(feature))  # N x width x H/s x W/s
        x = maps.pop()
        for upsample, norm in zip(self.upsample, self.norm, strict=True):
            finer = maps.pop()
            x = upsample(x, *finer.shape[-2:])
            x = F.relu(norm(x + finer), inplace=True)
        x = self.dropout(x, keys)
        return self.classify(x)


DECODERS = {"conv": ConvDecoder, "mlp": MLPDecoder}


class SegFormer(nn.Module):
    """Image -> encoder -> decoder -> class logits at the image's size.

    drop_path: stochastic depth in the encoder. dropout: before the classifier. Both are 0.1 in the
    paper's training.
    """

    classes: list[str]  # set by `from_huggingface` alone
    reduced_labels = False  # set by it too: class k is stored value k + 1 of the data it learnt

    def __init__(
        self,
        num_classes: int,
        variant: str = "b0",
        decoder: str = "conv",
        in_channels: int = 3,
        drop_path: float = 0.0,
        dropout: float = 0.0,
        norm_eps: float = NORM_EPS,
    ):
        super().__init__()
        if decoder not in DECODERS:
            raise ValueError(f"unknown decoder {decoder!r}: choose one of {', '.join(DECODERS)}")
        self.normalise = Normalise(in_channels)
        self.encoder = MixTransformer(variant, in_channels, drop_path, norm_eps)
        width = 256 if variant in ("b0", "b1") else 768  # table 6
        if decoder == "conv":
            width //= 2  # most of its cost is at 1/4 of the image's size, where width counts
        self.decoder = DECODERS[decoder](self.encoder.channels, num_classes, width, dropout)

    def forward(self, image: Tensor, keys: Tensor | None = None) -> Tensor:
        """RGB in [0, 1], N x 3 x H x W, H and W >= 32 -> logits N x K x H x W.

        keys: N int64, each image's seed of dropout and stochastic depth; None draws them.
        """
        features = self.encoder(self.normalise(image), keys)
        logits = self.decoder(features, keys)
        return F.interpolate(logits.contiguous(), size=image.shape[-2:], mode="bilinear")

    @classmethod
    def from_huggingface(cls, path: str | Path) -> "SegFormer":
        """A trained SegFormer, in eval mode, from a folder or file as Hugging Face saves it.

        NVlabs' own file does too. Its class names are in `classes`. Its logits are those of
        transformers' SegformerForSemanticSegmentation, upsampled to the image's size. BadInput if
        the files are not there, cannot be read, or do not fit.
        """
        from ..pretrained.files import open_weights
        from ..pretrained.huggingface import load_segformer  # which needs this file

        return load_segformer(cls, open_weights(path))

    def save_huggingface(self, folder: str | Path, classes: list[str] | None = None) -> None:
        """Write config.json, preprocessor_config.json and model.safetensors for transformers.

        classes: names; by default those it was loaded with, or "0", "1", ... ValueError for another
        decoder than the paper's or as many names; OSError if the files cannot be written.
        """
        from ..pretrained.huggingface import save_segformer  # which needs this file

        save_segformer(self, Path(folder), classes)
