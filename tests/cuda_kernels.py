"""CUDA's five BatchNorm kernels on a CPU: what they compute, and what they take for granted.

Formulas as in torch's aten/src/ATen/native/cuda/Normalization.cuh; sums are in float32, or in
float64 for float64.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

NAMES = (
    "batch_norm_stats",
    "batch_norm_gather_stats_with_counts",
    "batch_norm_elemt",
    "batch_norm_backward_reduce",
    "batch_norm_backward_elemt",
)


def wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def by_channel(x: Tensor) -> Tensor:
    """A vector of C, to be broadcast over N x C x H x W."""
    return x.view(-1, 1, 1)


def batch_norm_stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(wide(x), (0, 2, 3), correction=0)
    return mean, (variance + eps).rsqrt()


def batch_norm_gather_stats_with_counts(
    x: Tensor,
    means: Tensor,
    inverses: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    """One rank after another; the number of pixels so far is an integer, a rank's own is not."""
    assert counts.dtype == running_mean.dtype and means.dtype == inverses.dtype == wide(x).dtype
    mean, square, before = torch.zeros_like(means[0]), torch.zeros_like(means[0]), 0
    for count, m, inverse in zip(counts, means, inverses, strict=True):
        factor = 1 / (before + count)
        square = square + (inverse.reciprocal().square() - eps) * count
        square = square + (mean - m).square() * before * count * factor
        mean = before * factor * mean + count * factor * m
        before = int(before + count)
    running_mean.lerp_(mean, momentum)
    running_var.lerp_(square / (before - 1), momentum)
    return mean, (square / before + eps).rsqrt()


def batch_norm_elemt(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    inverse: Tensor,
    eps: float,
) -> Tensor:
    mean, inverse, weight, bias = map(by_channel, (mean, inverse, weight, bias))
    return ((wide(x) - mean) * inverse * weight + bias).to(x.dtype)


def batch_norm_backward_reduce(
    gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    inverse: Tensor,
    weight: Tensor,
    *wanted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    assert wanted == (True, True, True)
    sum_g = wide(gradient).sum((0, 2, 3))
    sum_gx = (wide(gradient) * (wide(x) - by_channel(mean))).sum((0, 2, 3))
    return sum_g, sum_gx, (sum_gx * inverse).to(weight), sum_g.to(weight)


def batch_norm_backward_elemt(
    gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    inverse: Tensor,
    weight: Tensor,
    sum_g: Tensor,
    sum_gx: Tensor,
    counts: Tensor,
) -> Tensor:
    """The kernel reads memory: the same layout of gradient and x, int32 one after another."""
    layouts = [y.is_contiguous(memory_format=torch.channels_last) for y in (gradient, x)]
    assert all(layouts) and gradient.dtype == x.dtype
    assert counts.dtype == torch.int32 and counts.is_contiguous()
    assert all(each.is_contiguous() for each in (mean, inverse, weight, sum_g, sum_gx))
    n = counts.sum()
    slope = by_channel(inverse.square() * sum_gx / n)
    rest = wide(gradient) - by_channel(sum_g / n) - (wide(x) - by_channel(mean)) * slope
    return (rest * by_channel(weight * inverse)).to(x.dtype)


@contextmanager
def stand_ins() -> Iterator[list[tuple[str, tuple]]]:
    """Within it torch calls these instead of CUDA's. Gives the calls: name and arguments."""
    calls: list[tuple[str, tuple]] = []

    def noting(name):
        def call(*given):
            calls.append((name, given))
            return globals()[name](*given)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in NAMES:
            patch.setattr(torch, name, noting(name))
        yield calls
