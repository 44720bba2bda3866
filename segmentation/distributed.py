"""One process or many: set-up from torchrun's environment, sums over ranks, BatchNorm over ranks.

Every function works without a process group, as one rank of one.
"""

import atexit
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .errors import BadInput

T = TypeVar("T")


def setup(device: str | None = None, timeout_minutes: float = 10) -> torch.device:
    """Join the process group if torchrun started us, and choose the device: cuda (by LOCAL_RANK), mps or cpu.

    BadInput if the device asked for is not there. The backend is NCCL on GPUs with gloo beside it for CPU tensors.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if device == "cuda":
        device = f"cuda:{local_rank}"
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"--device {device}: {str(error).splitlines()[0]}; leave --device out") from error
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if "RANK" in os.environ and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        timeout = timedelta(minutes=timeout_minutes)
        store, own_rank, world = next(dist.rendezvous("env://", timeout=timeout))
        if os.environ.get("LOCAL_WORLD_SIZE") == str(world):
            # torchrun keeps its store over restarts, and in it the addresses of the ranks that died. The agents of
            # several nodes may count restarts differently, so there the keys stay as they are.
            store = dist.PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        dist.init_process_group(backend, store=store, rank=own_rank, world_size=world, timeout=timeout)
        atexit.register(leave)
    return chosen


def leave() -> None:
    """At the interpreter's end: leave the group, once gloo's threads are done with the last tensors.

    They drop them with the interpreter's lock, and a thread that asks for it later aborts the process. Sleeping gives
    it to them.
    """
    time.sleep(0.2)
    dist.destroy_process_group()


_alone = False


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() and not _alone else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() and not _alone else 1


@contextmanager
def alone() -> Iterator[None]:
    """Within it this rank is one of one: what it sums, it sums by itself."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


class AllReduceSum(torch.autograd.Function):
    """Sum over ranks, whose backward is a sum over ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return AllReduceSum.apply(gradient)


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum over ranks; its backward sums over ranks too. The tensor itself with one rank."""
    return x if world_size() == 1 else AllReduceSum.apply(x)


def gather(items: list) -> list:
    """The items of all ranks, in the order of the ranks, on every rank."""
    if world_size() == 1:
        return items
    lists: list = [None] * world_size()
    dist.all_gather_object(lists, items)
    return [item for each in lists for item in each]


def first_rank_first(action: Callable[[], T]) -> T:
    """Run on rank 0, then on the others, who find its files in place. A BadInput on rank 0 is raised on every rank."""
    problem: list[str | None] = [None]
    if rank() == 0:
        try:
            result = action()
        except BadInput as error:
            problem = [str(error)]
    if world_size() > 1:
        dist.broadcast_object_list(problem)
    if problem[0] is not None:
        raise BadInput(problem[0])
    return result if rank() == 0 else action()


def say(sentence: str) -> None:
    """Print once, not once a rank."""
    if rank() == 0:
        print(sentence, flush=True)


class BatchNormOverRanks(torch.autograd.Function):
    """Batch normalisation with the statistics of all ranks' images: one sum over ranks forward, one backward.

    Ioffe and Szegedy, 2015, arXiv:1502.03167, algorithm 1 and the gradients of its section 3. What touches every pixel
    is left to torch's own kernels, called as for known statistics; what these depend on is added by hand.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
        """x: N x C x H x W, N may be 0 -> the same, normalised; mean, variance (C) and count (1) of all ranks."""
        count = x.numel() // x.shape[1]
        sums = torch.zeros(2 * x.shape[1] + 1, dtype=torch.float64, device=x.device)
        if count:
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            mean, variance = (each.double() for each in torch.batch_norm_update_stats(wide, None, None, 0.0))
            sums = torch.cat((mean.new_full((1,), count), mean * count, (variance + mean.square()) * count))
        total, first, second = all_reduce_sum(sums).split((1, x.shape[1], x.shape[1]))
        mean = first / total
        variance = (second / total - mean.square()).clamp(min=0)
        mean, variance, total = mean.to(weight), variance.to(weight), total.to(weight)
        ctx.save_for_backward(x, weight, mean, variance, total)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, total)
        y = F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps) if count else x.clone()
        return y, mean, variance, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """With x^ = (x - mean) / s and sums over all ranks' g: dx = weight / s (g - sum g / n - x^ sum g x^ / n)."""
        x, weight, mean, variance, total = ctx.saved_tensors
        if x.numel():
            known = (weight, mean, variance, None, None, False, ctx.eps, (True, True, True))
            dx, d_weight, d_bias = torch.ops.aten.native_batch_norm_backward(gradient, x, *known)
        else:  # the kernels divide by the number of pixels
            dx, d_weight, d_bias = gradient.clone(), torch.zeros_like(weight), torch.zeros_like(weight)
        sum_gx, sum_g = all_reduce_sum(torch.stack((d_weight, d_bias))) / total
        inverse = torch.rsqrt(variance + ctx.eps)
        slope = weight * inverse.square() * sum_gx
        offset = weight * inverse * sum_g - slope * mean
        shape = (1, -1, 1, 1)
        dx.addcmul_(x, slope.neg().view(shape).to(x)).sub_(offset.view(shape).to(x))
        return dx, d_weight, d_bias, None


class SyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm whose statistics are those of the global batch, on any device (torch's SyncBatchNorm needs a GPU)."""

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W -> the same; N may differ between ranks, and be 0."""
        if not self.training or world_size() == 1:
            return super().forward(x)
        x, mean, variance, count = BatchNormOverRanks.apply(x, self.weight, self.bias, self.eps)
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        return x


def synchronise_batchnorm(model: nn.Module) -> nn.Module:
    """Turn every BatchNorm2d into SyncBatchNorm2d, in place; parameters, buffers and state dict stay what they were."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm2d
    return model
