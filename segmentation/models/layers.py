"""Layers that the models share: normalisation, linear maps, keyed dropout, first logits."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..tracing import exporting, to_image, to_tokens

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SMALLEST_SIDE = 32  # of an image that every model accepts, in pixels


def check_size(image: Tensor) -> None:
    """ValueError unless a batch of images, N x C x H x W, has H and W >= 32."""
    H, W = image.shape[-2:]
    if min(H, W) < SMALLEST_SIDE:
        raise ValueError(f"images of {H}x{W} are too small: 32x32 at least")


class Normalise(nn.Module):
    """RGB in [0, 1] -> ImageNet's mean 0 and deviation 1; not part of the state dict.

    Other numbers of channels have mean 0.5 and deviation 0.25.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, in_channels: int = 3):
        super().__init__()
        means: tuple[float, ...] = IMAGENET_MEAN
        deviations: tuple[float, ...] = IMAGENET_STD
        if in_channels != 3:
            means, deviations = (0.5,) * in_channels, (0.25,) * in_channels
        # On the CPU even where a model without memory is built: no checkpoint holds them.
        mean = torch.tensor(means, device="cpu").view(1, -1, 1, 1)
        std = torch.tensor(deviations, device="cpu").view(1, -1, 1, 1)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """N x C x H x W -> the same, channels last in memory."""
        normalised = (image - self.mean) / self.std
        if exporting():
            return normalised
        return normalised.contiguous(memory_format=torch.channels_last)


def shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift of int64: zeros come in from the left, where `>>` repeats the sign bit."""
    return (x >> bits) & (2 ** (64 - bits) - 1)


def keyed_uniform(
    keys: Tensor,
    salt: int | Tensor,
    count: int = 1,
) -> Tensor:
    """Uniform numbers in [0, 1), N x count x 1 x 1 float32, from an image's key and a layer's salt.

    keys: N, int64. salt: an integer, another one in each layer; a tensor S x 1 of them gives
    S x N x count x 1 x 1, the numbers of S calls in one.
    A counter-based generator (the finaliser of Steele et al., "Fast splittable pseudorandom number
    generators", 2014): an image's numbers depend on neither its batch nor its rank.
    """

    def mix(x: Tensor) -> Tensor:  # SplitMix64: its unsigned constants, written as int64
        x = (x ^ shift_right(x, 30)) * -0x40A7B892E31B1A47
        x = (x ^ shift_right(x, 27)) * -0x6B2FB644ECCEEE15
        return x ^ shift_right(x, 31)

    golden = -0x61C8864680B583EB
    low = 2**62 - 1  # bits that are the same from an int, which does not overflow
    # The first mask changes no bit: it keeps torch's compiler from folding the product of an arange
    # into an index expression, whose constants no GPU kernel can hold.
    stream = (salt & low) * golden & low
    seeds = mix(keys + stream)
    counter = torch.arange(count, device=keys.device)[:, None, None]
    bits = mix(seeds[..., None, None, None] + counter)
    return shift_right(bits, 40) * 2**-24  # 24 bits: as many as float32 holds


class LayerNorm(nn.LayerNorm):
    """Over the channels of N x H x W x C, as of N x HW x C: runtimes have one operator for that."""

    def forward(self, x: Tensor) -> Tensor:
        """N x H x W x C -> the same."""
        tokens = super().forward(x.flatten(1, 2))
        return tokens.view(x.shape)


class Linear(nn.Linear):
    """nn.Linear on N x H x W x C. On a CPU it runs as a 1x1 convolution, channels last.

    oneDNN's convolutions use AVX-512 on every processor that has it, MKL's matrix products on
    Intel's only. Elsewhere the convolution and its two gradients take half the time.
    """

    def forward(self, x: Tensor) -> Tensor:
        """N x H x W x C_in -> N x H x W x C."""
        if x.dim() != 4 or exporting():
            return super().forward(x)
        return to_tokens(pointwise(to_image(x), self.weight, self.bias))


class Pointwise(nn.Linear):
    """The same map of an image's channels, N x C x H x W."""

    def forward(self, image: Tensor) -> Tensor:
        """N x C_in x H x W -> N x C x H x W."""
        return pointwise(image, self.weight, self.bias)


def pointwise(
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """N x C_in x H x W, weight C x C_in, bias C or None -> N x C x H x W; see `Linear`."""
    if image.device.type != "cpu":
        return to_image(F.linear(to_tokens(image), weight, bias))
    kernel = weight[:, :, None, None]  # C x C_in x 1 x 1
    return F.conv2d(image, kernel, bias)


class KeyedDropout(nn.Module):
    """Dropout of whole channels (Tompson et al., 2015), as published SegFormers were trained with.

    An image's are drawn from its key, so that 1 and N ranks draw the same. Off in eval mode.
    """

    def __init__(self, p: float, salt: int):
        super().__init__()
        self.p = p
        self.salt = salt

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """N x C x H x W -> the same. keys: N int64; None draws them from torch's generator."""
        if self.p == 0 or not self.training:
            return x
        if keys is None:
            keys = torch.randint(2**62, (len(x),), device=x.device)
        numbers = keyed_uniform(keys, self.salt, x.shape[1])
        return x * (numbers >= self.p) / (1 - self.p)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., 2016): drops an image's residual branch with chance p."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, branch: Tensor, numbers: Tensor | None) -> Tensor:
        """branch: N x H x W x C -> the same. numbers: N x 1 x 1 x 1 in [0, 1); None drops none."""
        if numbers is None or self.p == 0:
            return branch
        return branch * (numbers >= self.p) / (1 - self.p)


def start_undecided(classifier: nn.Linear | nn.Conv2d) -> None:
    """Make the first softmax nearly uniform.

    A confidently wrong softmax has no gradient under the Tversky loss, so the class never recovers.
    A start near 1/K leaves every class its gradient. ValueError for fewer than two classes.
    """
    if len(classifier.weight) < 2:
        raise ValueError("one class: a softmax needs two or more, the background among them")
    nn.init.normal_(classifier.weight, std=0.01)
    if classifier.bias is not None:
        nn.init.zeros_(classifier.bias)
