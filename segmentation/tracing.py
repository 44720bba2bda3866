"""What the models compute in another way while torch.export traces them: one graph for all sizes.

torch.export refuses what it cannot prove for every N, H and W: that a slice ends inside its tensor,
or that a map in channels-last memory has sides above 1. Memory formats are its runtime's to choose.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def exporting() -> bool:
    """Whether torch.export is tracing; torch.compile is not meant."""
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()


def in_order(view: Tensor) -> Tensor:
    """A permuted view as it is; in a graph a copy whose memory has the view's order."""
    return view.clone(memory_format=torch.contiguous_format) if exporting() else view


def crop(image: Tensor, height: int, width: int) -> Tensor:
    """N x C x H x W, at most one row and one column larger -> N x C x height x width."""
    if exporting():  # the nearest neighbours are the first ones
        return F.interpolate(image, size=(height, width))
    return image[..., :height, :width]


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
    image = in_order(x.permute(0, 3, 1, 2))
    return F.conv2d(image, kernel, bias, R).permute(0, 2, 3, 1)
