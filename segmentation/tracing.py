"""What the models compute in another way while torch.export traces them.

One graph for all sizes: torch.export refuses what it cannot prove for every N, H and W, that a
slice ends inside its tensor, or that a map in channels-last memory has sides above 1. And a fast
graph: docs/export.md says which form gains what.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def exporting() -> bool:
    """Whether torch.export is tracing; torch.compile is not meant."""
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()


def to_image(x: Tensor) -> Tensor:
    """N x H x W x C -> N x C x H x W: a view; in a graph a transposed sequence of tokens."""
    if not exporting():
        return x.permute(0, 3, 1, 2)
    tokens = x.flatten(1, 2).transpose(1, 2).clone(memory_format=torch.contiguous_format)
    return tokens.unflatten(2, x.shape[1:3])


def to_tokens(image: Tensor) -> Tensor:
    """N x C x H x W -> N x H x W x C: the same way back."""
    if not exporting():
        return image.permute(0, 2, 3, 1)
    tokens = image.flatten(2).transpose(1, 2).clone(memory_format=torch.contiguous_format)
    return tokens.unflatten(1, image.shape[2:])


def gelu(image: Tensor) -> Tensor:
    """N x C x H x W -> the same. Eagerly over N x H x W x C, for which oneDNN has a kernel."""
    if exporting():
        return F.gelu(image)
    return to_image(F.gelu(to_tokens(image)))


def attend_in_graph(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The attention of mix_transformer.attend, over one key more, which gets no weight.

    With free sizes OpenVINO's CPU plugin (2026.4.1) predicts larger images wrongly after an image
    with a single key, which is one of fewer than 64 pixels a side.
    """
    L = key.shape[2]
    key, value = (torch.cat((each, each[:, :, :1]), 2) for each in (key, value))
    bias = torch.where(torch.arange(L + 1) < L, 0.0, -torch.inf)
    bias = bias.to(query.dtype).expand(query.shape[2], -1)
    return F.scaled_dot_product_attention(query, key, value, bias)


def merge_patches(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    R: int,
) -> Tensor:
    """N x H x W x C, weight D x R*R*C -> N x H//R x W//R x D: a matrix product over patches.

    As a strided convolution, which drops the last rows and columns that R does not divide.
    """
    kernel = weight.view(-1, R, R, x.shape[-1]).permute(0, 3, 1, 2)
    image = F.conv2d(to_image(x), kernel.contiguous(), bias, R)
    return to_tokens(image)


def spread_and_convolve(x: Tensor, weight: Tensor, H: int, W: int) -> Tensor:
    """N x C x h x w -> N x C x H x W: the transposed convolution of segformer.Upsample.

    As a convolution over a map with zeros between its pixels.
    """
    odd = torch.arange(H)[:, None] % 2 + torch.arange(W) % 2
    spread = F.interpolate(x, size=(H, W)) * (odd == 0)
    kernel = F.pad(weight.flip(2, 3), (0, 1, 0, 1))
    return F.conv2d(spread, kernel, padding=2, groups=len(weight))
