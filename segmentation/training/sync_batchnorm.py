"""BatchNorm with the statistics of all ranks' images: N ranks normalise as one process does.

Ioffe and Szegedy, 2015, arXiv:1502.03167, algorithm 1 and the gradients of its section 3. Written
twice: with kernels that torch has for CUDA, a few launches per layer, and in operators that every
device has.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..distributed import all_gather_rows, all_reduce_sum, world_size

NO_PIXELS = 1e-30  # a rank's count where it has no image: CUDA's kernel divides by it


def widened(x: Tensor) -> Tensor:
    """x in float32, or in its own type if that is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class AnyBatchNorm(torch.autograd.Function):
    """One sum over ranks forward, one backward; per-pixel work by torch's eval-mode kernels.

    The gradient through mean and variance is added by hand: with x^ = (x - mean) / s, n pixels and
    sums over all ranks' gradients g, dx = weight / s (g - sum g / n - x^ sum g x^ / n).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
    ) -> tuple[Tensor, ...]:
        """x: N x C x H x W, N may be 0 -> normalised x, and mean, variance and count of all ranks.

        Mean and variance have C values, the count of pixels (of one channel) has one.
        """
        ctx.set_materialize_grads(False)
        C = x.shape[1]
        count = x.numel() // C
        if count:
            mean, variance = torch.batch_norm_update_stats(widened(x), None, None, 0.0)
            mean = mean.double()
            square = variance.double() + mean.square()
            sums = torch.cat((mean, square, mean.new_ones(1))) * count
        else:
            sums = weight.new_zeros(2 * C + 1, dtype=torch.float64)
        sums = all_reduce_sum(sums)
        total = sums[-1:]
        mean, square = (sums[:-1] / total).chunk(2)
        variance = (square - mean.square()).clamp(min=0)
        mean = mean.to(weight)
        variance = variance.to(weight)
        total = total.to(weight)
        ctx.save_for_backward(x, weight, mean, variance, total)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, total)
        y = F.batch_norm(x, mean, variance, weight, bias, eps=eps) if count else x.clone()
        return y, mean, variance, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance, total = ctx.saved_tensors
        dtype = x.dtype
        x = widened(x)  # dx is rounded once, at its end
        gradient = widened(gradient)
        inverse = torch.rsqrt(variance + ctx.eps)
        if x.numel():
            known = (weight, mean, variance, mean, inverse, False, ctx.eps, (True, True, True))
            dx, d_weight, d_bias = torch.ops.aten.native_batch_norm_backward(gradient, x, *known)
        else:  # the kernels divide by the number of pixels
            dx = gradient.clone()
            d_weight = torch.zeros_like(weight)
            d_bias = torch.zeros_like(weight)
        sum_gx, sum_g = all_reduce_sum(torch.stack((d_weight, d_bias))) / total
        # The kernel gave weight / s g; the formula above takes slope x + offset from it.
        slope = weight * inverse.square() * sum_gx
        offset = weight * inverse * sum_g - slope * mean
        dx.addcmul_(x, -slope[:, None, None])
        dx.sub_(offset[:, None, None])
        return dx.to(dtype), d_weight, d_bias, None


class CudaBatchNorm(torch.autograd.Function):
    """The kernels of torch's own SyncBatchNorm. They sum in float32, float64 inputs in float64."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        momentum: float,
        eps: float,
    ) -> Tensor:
        """x: N x C x H x W, N may be 0 -> the same, normalised. Updates the running statistics."""
        ctx.set_materialize_grads(False)
        x = x.contiguous(memory_format=torch.channels_last)
        C = x.shape[1]
        count = x.numel() // C
        if count:
            mean, inverse = torch.batch_norm_stats(x, eps)
        else:
            mean = torch.zeros_like(running_mean)
            inverse = torch.ones_like(running_mean)
        own_count = mean.new_full((1,), count or NO_PIXELS)
        own = torch.cat((mean, inverse, own_count))
        means, inverses, counts = all_gather_rows(own).split((C, C, 1), dim=1)
        counts = counts[:, 0]
        mean, inverse = torch.batch_norm_gather_stats_with_counts(
            x,
            means,
            inverses,
            running_mean,
            running_var,
            momentum,
            eps,
            counts,
        )
        ctx.save_for_backward(x, weight, mean, inverse, counts.int())
        if not count:
            return torch.empty_like(x)
        return torch.batch_norm_elemt(x, weight, bias, mean, inverse, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse, counts = ctx.saved_tensors
        if not x.numel():
            dist.all_reduce(mean.new_zeros(2, len(mean)))  # the other ranks wait for it
            d_weight = torch.zeros_like(weight)
            d_bias = torch.zeros_like(weight)
            return torch.empty_like(x), d_weight, d_bias, None, None, None, None
        # The kernels read memory: the gradient must lie there as x does.
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        known = (gradient, x, mean, inverse, weight)
        sum_g, sum_gx, d_weight, d_bias = torch.batch_norm_backward_reduce(*known, True, True, True)
        sums = torch.stack((sum_g, sum_gx))
        dist.all_reduce(sums)
        sum_g, sum_gx = sums
        dx = torch.batch_norm_backward_elemt(*known, sum_g, sum_gx, counts)
        return dx, d_weight, d_bias, None, None, None, None


class SyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm whose statistics are those of the global batch, on any device.

    torch's own SyncBatchNorm needs a GPU, and waits for it in every layer.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W -> the same; N may differ between ranks, and be 0."""
        if not self.training or world_size() == 1:
            return super().forward(x)
        self.num_batches_tracked.add_(1)
        # torch.compile fuses operators; the kernels it could only call one by one.
        if x.is_cuda and not torch.compiler.is_compiling():
            return self.with_cuda_kernels(x)
        return self.with_any_operators(x)

    def with_cuda_kernels(self, x: Tensor) -> Tensor:
        statistics = self.running_mean, self.running_var, self.momentum
        return CudaBatchNorm.apply(x, self.weight, self.bias, *statistics, self.eps)

    def with_any_operators(self, x: Tensor) -> Tensor:
        x, mean, variance, count = AnyBatchNorm.apply(x, self.weight, self.bias, self.eps)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        return x


def synchronise_batchnorm(model: nn.Module) -> None:
    """Turn every BatchNorm2d into SyncBatchNorm2d, in place; parameters and state dict stay."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm2d
