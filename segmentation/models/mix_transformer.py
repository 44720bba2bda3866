"""Mix Transformer (MiT), the hierarchical encoder of SegFormer.

Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers",
2021, arXiv:2105.15203: section 3.1, the left half of figure 2, and the sizes of table 6, but for
the MLP ratio, which is 4 in every stage of the published weights.

What differs from the paper's text is the memory layout, not the mathematics. Every feature map is
N x H x W x C: at once the token sequence N x (HW) x C of the attention and the channels-last image
of the convolutions, so no map is copied from one order to the other. The sequence reduction is a
matrix product over patches, which is what its strided convolution computes.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..tracing import attend_in_graph, exporting, gelu, merge_patches, to_image, to_tokens
from .layers import (
    DropPath,
    LayerNorm,
    Linear,
    Pointwise,
    check_size,
    keyed_uniform,
)

WIDE = (64, 128, 320, 512)  # the channels of all but b0
# variant: channels C_i, depths L_i. All six share heads, reductions and the MLP ratio.
VARIANTS = {
    "b0": ((32, 64, 160, 256), (2, 2, 2, 2)),
    "b1": (WIDE, (2, 2, 2, 2)),
    "b2": (WIDE, (3, 4, 6, 3)),
    "b3": (WIDE, (3, 4, 18, 3)),
    "b4": (WIDE, (3, 8, 27, 3)),
    "b5": (WIDE, (3, 6, 40, 3)),
}
HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)
MLP_RATIO = 4

# Of the norms of blocks and stages: what transformers evaluates the published weights with. They
# were trained with 1e-6 there, and with 1e-5 after patch merging and sequence reduction.
NORM_EPS = 1e-5


class OverlapPatchMerging(nn.Module):
    """A strided convolution whose patches overlap, then LayerNorm (section 3.1)."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        kernel_size = 2 * stride - 1
        self.merge = nn.Conv2d(in_channels, channels, kernel_size, stride, padding=stride - 1)
        self.norm = LayerNorm(channels)

    def forward(self, image: Tensor) -> Tensor:
        """N x C_in x H x W -> N x ceil(H / stride) x ceil(W / stride) x C."""
        return self.norm(to_tokens(self.merge(image)))


class EfficientSelfAttention(nn.Module):
    """Multi-head self-attention (equation 1) with a shorter sequence for keys and values.

    Equation 2 makes it R^2 times shorter; reduction is R.
    """

    def __init__(self, channels: int, heads: int, reduction: int):
        super().__init__()
        self.heads = heads
        self.reduction = reduction
        self.query = Linear(channels, channels)
        self.key_value = Linear(channels, 2 * channels)
        if reduction > 1:
            self.reduce = Linear(reduction**2 * channels, channels)
            self.norm = LayerNorm(channels)
        self.project = Linear(channels, channels)

    def reduce_sequence(self, x: Tensor) -> Tensor:
        """Equation 2: N x H x W x C -> N x (H // R) x (W // R) x C.

        The last rows and columns that R does not divide are dropped.
        """
        N, H, W, C = x.shape
        R = self.reduction
        if exporting():
            return self.norm(merge_patches(x, self.reduce.weight, self.reduce.bias, R))
        h, w = H // R, W // R
        x = x[:, : h * R, : w * R].reshape(N, h, R, w, R, C)
        x = x.transpose(2, 3).reshape(N, h, w, R * R * C)
        return self.norm(self.reduce(x))  # N x h x w x C

    def forward(self, x: Tensor) -> Tensor:
        """N x H x W x C -> the same. Equation 1: softmax(Q K^T / sqrt(d)) V in each head."""
        N, H, W, C = x.shape
        query = self.query(x).view(N, H * W, self.heads, -1)
        query = query.transpose(1, 2)  # N x heads x HW x d
        if self.reduction > 1:
            x = self.reduce_sequence(x)
        key_value = self.key_value(x).view(N, -1, 2, self.heads, C // self.heads)
        key, value = key_value.permute(2, 0, 3, 1, 4)  # N x heads x HW/R^2 x d, each
        x = attend(query, key, value)  # N x heads x HW x d
        x = x.transpose(1, 2).reshape(N, H, W, C)
        return self.project(x)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Equation 1. query: N x heads x L x d -> the same; key, value: N x heads x L' x d.

    Trained on a CPU in float32 even under autocast: in bfloat16 torch's fused CPU kernel takes half
    the time forward, but 1.3 to 8 times as long forward and backward.
    """
    if exporting():
        return attend_in_graph(query, key, value)
    trained_on_cpu = query.device.type == "cpu" and torch.is_grad_enabled()
    if trained_on_cpu and torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(query.float(), key.float(), value.float())
    return F.scaled_dot_product_attention(query, key, value)


class MixFFN(nn.Module):
    """Equation 3 without its residual: MLP, 3x3 depthwise convolution, GELU, MLP.

    The convolution's padding tells positions apart, so no position encoding is needed.
    """

    def __init__(self, channels: int):
        super().__init__()
        hidden = MLP_RATIO * channels
        self.expand = Pointwise(channels, hidden)
        self.mix = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.contract = Pointwise(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """N x H x W x C -> the same."""
        image = self.expand(to_image(x))  # N x 4C x H x W, channels last
        image = gelu(self.mix(image))
        return to_tokens(self.contract(image))


# The numbers that a block's two branches give to `DropPath`: 2 x N x 1 x 1 x 1, or no numbers.
Draws = Tensor | tuple[None, None]


class Block(nn.Module):
    """Attention and Mix-FFN, each behind a LayerNorm and with a residual connection.

    place: the block's number in the whole encoder, from 0; its random numbers depend on it.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        reduction: int,
        norm_eps: float,
        drop_path: float,
        place: int,
    ):
        super().__init__()
        self.place = place
        self.norm1 = LayerNorm(channels, norm_eps)
        self.attention = EfficientSelfAttention(channels, heads, reduction)
        self.norm2 = LayerNorm(channels, norm_eps)
        self.ffn = MixFFN(channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, draws: Draws) -> Tensor:
        """N x H x W x C -> the same. draws: see `draw_depth`."""
        x = x + self.drop_path(self.attention(self.norm1(x)), draws[0])
        return x + self.drop_path(self.ffn(self.norm2(x)), draws[1])


def draw_depth(part: nn.Module, keys: Tensor | None, x: Tensor) -> list[Draws]:
    """For each block of an encoder or a stage, in order, the random numbers of stochastic depth.

    keys: N int64; None draws them from torch's generator. x: any tensor of N images.
    All blocks' numbers come from one draw, because a draw is some 30 operators whatever its size.
    """
    blocks = [module for module in part.modules() if isinstance(module, Block)]
    last = blocks[-1].drop_path
    if last.p == 0 or not last.training:
        return [(None, None)] * len(blocks)
    if keys is None:
        keys = torch.randint(2**62, (len(x),), device=x.device)
    first = 2 * blocks[0].place
    salts = torch.arange(first, first + 2 * len(blocks), device=keys.device)
    numbers = keyed_uniform(keys, salts[:, None])
    return list(numbers.unflatten(0, (-1, 2)))  # 2 x N x 1 x 1 x 1 a block


class Stage(nn.Module):
    """One level of the hierarchy: patch merging, L_i blocks, LayerNorm."""

    def __init__(self, merging: OverlapPatchMerging, blocks: list[Block], norm: LayerNorm):
        super().__init__()
        self.merging = merging
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm

    def forward(self, image: Tensor, draws: Iterator[Draws]) -> Tensor:
        """N x C_in x H x W -> N x C_i x H/s x W/s. Takes the next draws, one a block."""
        x = self.merging(image)
        for block in self.blocks:
            x = block(x, next(draws))
        return to_image(self.norm(x))


def initialise_encoder(module: nn.Module) -> None:
    """Random weights of the encoder; `apply` comes to a block after its layers.

    Maps keep the variance of their input (LeCun et al., "Efficient BackProp", 1998) but for the
    last of each branch: blocks that start near the identity learn in fewer steps.
    """
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, Block):
        module.attention.project.weight.data *= 0.1
        module.ffn.contract.weight.data *= 0.1


class MixTransformer(nn.Module):
    """MiT-b0 to b5.

    drop_path: the last block's rate of stochastic depth (paper: 0.1); rates grow linearly from 0 at
        the first block.
    norm_eps: of the LayerNorms of blocks and stages.
    """

    def __init__(
        self,
        variant: str = "b0",
        in_channels: int = 3,
        drop_path: float = 0.0,
        norm_eps: float = NORM_EPS,
    ):
        super().__init__()
        if variant not in VARIANTS:
            known = ", ".join(VARIANTS)
            raise ValueError(f"unknown MiT variant {variant!r}: choose one of {known}")
        self.variant = variant
        self.channels, depths = VARIANTS[variant]
        self.stages = nn.ModuleList()
        place = 0
        last = sum(depths) - 1
        for i, channels in enumerate(self.channels):
            merging = OverlapPatchMerging(in_channels, channels, stride=2 if i else 4)
            blocks = []
            for _ in range(depths[i]):
                block = Block(
                    channels, HEADS[i], REDUCTIONS[i], norm_eps, drop_path * place / last, place
                )
                blocks.append(block)
                place += 1
            norm = LayerNorm(channels, norm_eps)
            self.stages.append(Stage(merging, blocks, norm))
            in_channels = channels
        self.apply(initialise_encoder)
        self.to(memory_format=torch.channels_last)

    def forward(self, image: Tensor, keys: Tensor | None = None) -> list[Tensor]:
        """Normalised image N x C x H x W, H and W >= 32 -> [f1, f2, f3, f4].

        f_i is N x C_i x H/s x W/s, s = 4, 8, 16, 32, sizes rounded up. keys: N int64, each image's
        seed of stochastic depth; None draws them from torch's generator.
        """
        check_size(image)
        draws = iter(draw_depth(self, keys, image))
        features = []
        for stage in self.stages:
            image = stage(image, draws)
            features.append(image)  # a view: channels last in memory
        return features
