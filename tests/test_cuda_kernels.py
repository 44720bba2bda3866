"""BatchNorm over ranks as GPUs compute it: what it gives CUDA's kernels, and what comes of it.

Needs no GPU: the kernels' formulas stand in for them, and CUDA's own kernels are run, without a
GPU, as far as their checks of arguments, which stand before the first use of the driver. This
file is also the script that runs them.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from unittest import mock

import cuda_kernels
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from segmentation.training.sync_batchnorm import AnyBatchNorm, CudaBatchNorm

ROOT = Path(__file__).resolve().parents[1]
EPS, MOMENTUM = 1e-5, 0.1
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
OPERATORS = 10  # at most, in each direction


@pytest.fixture(scope="module", autouse=True)
def group_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def inputs(dtype: torch.dtype, centre: float = 0) -> tuple[Tensor, Tensor, nn.BatchNorm2d]:
    """A batch of maps, channels last, with mean / std = centre; a gradient; a layer.

    The gradient has much of what BatchNorm takes from it: a mean, and the maps themselves.
    """
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 4, 8, 12, 12, generator=generator)
    gradient = noise + x + 1
    norm = nn.BatchNorm2d(8, EPS, MOMENTUM)
    nn.init.uniform_(norm.weight, 0.5, 1.5, generator=generator)
    nn.init.uniform_(norm.bias, -1, 1, generator=generator)
    x = (x + centre).to(dtype).contiguous(memory_format=torch.channels_last)
    return x, gradient.to(dtype), norm  # not channels last, which a gradient need not be


def ours(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    statistics = norm.running_mean, norm.running_var, MOMENTUM
    return CudaBatchNorm.apply(x, norm.weight, norm.bias, *statistics, EPS)


def torchs(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    statistics = norm.running_mean, norm.running_var, EPS, MOMENTUM
    return SyncBatchNorm.apply(x, norm.weight, norm.bias, *statistics, dist.group.WORLD, 1)


def any_device(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    return AnyBatchNorm.apply(x, norm.weight, norm.bias, EPS)[0]


def kernel_calls(apply, dtype: torch.dtype, channels_last: bool = False) -> list[tuple[str, tuple]]:
    """What forward and backward give the kernels."""
    x, gradient, norm = inputs(dtype)
    if channels_last:
        gradient = gradient.contiguous(memory_format=torch.channels_last)
    with cuda_kernels.stand_ins() as calls:
        apply(x.requires_grad_(), norm).backward(gradient)
    return calls


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_kernels_get_what_torchs_own_synchronised_batchnorm_gives_them(dtype):
    found = kernel_calls(ours, DTYPES[dtype], channels_last=True)
    expected = kernel_calls(torchs, DTYPES[dtype], channels_last=True)
    assert [name for name, _ in found] == [name for name, _ in expected]
    for (name, mine), (_, theirs) in zip(found, expected, strict=True):
        for own, other in zip(mine, theirs, strict=True):
            if not isinstance(own, Tensor):
                assert own == other, name
                continue
            assert own.dtype == other.dtype, name
            assert torch.equal(own.squeeze(), other.squeeze()), name
            if name != "batch_norm_gather_stats_with_counts":  # which reads with strides
                assert own.squeeze().stride() == other.squeeze().stride(), name


@pytest.mark.parametrize("centre", [0, 1, 4, 16])
@pytest.mark.parametrize("apply", [ours, any_device])
def test_bfloat16_is_rounded_once(apply, centre):
    """The gradient of the maps, against BatchNorm2d in float64."""
    x, gradient, norm = inputs(torch.bfloat16, centre)
    exact_x, own_x = x.double().requires_grad_(), x.clone().requires_grad_()
    norm.double()(exact_x).backward(gradient.double())
    with cuda_kernels.stand_ins():
        apply(own_x, norm.float()).backward(gradient)
    exact = exact_x.grad
    once = (exact.bfloat16().double() - exact).norm()
    assert (own_x.grad.double() - exact).norm() <= 1.5 * once


class Launches(TorchDispatchMode):
    """Counts operators that compute, each kernel that has a stand-in as one."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view and "empty" not in str(func):
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_few_operators_a_layer():
    x, gradient, norm = inputs(torch.float32)
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    patched = pytest.MonkeyPatch.context()  # undone before the stand-ins are
    with cuda_kernels.stand_ins(), patched as patch, Launches() as launches:
        for name in cuda_kernels.NAMES:
            patch.setattr(torch, name, as_one(getattr(torch, name), launches))
        y = ours(x.requires_grad_(), norm)
        forward = list(launches.names)
        y.backward(gradient)
    backward = launches.names[len(forward) :]
    assert len(forward) <= OPERATORS, forward
    assert len(backward) <= OPERATORS, backward


def as_one(kernel, launches: Launches):
    def call(*given):
        before = list(launches.names)
        result = kernel(*given)
        launches.names[:] = [*before, "kernel"]
        return result

    return call


@pytest.fixture(scope="module")
def ends() -> dict[str, str]:
    """Of each kernel with our arguments: how CUDA's own ends, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*cuda_kernels.NAMES, "native_batch_norm_backward"])
def test_cudas_own_kernels_take_our_arguments(ends, name, dtype):
    expected = (
        "driver" if torch.backends.cuda.is_built() and not torch.cuda.is_available() else "done"
    )
    assert expected in ends[f"{name} {dtype}"]


def end_of(name: str, given: tuple) -> str:
    """Run CUDA's own kernel. A build without it has its schema, which refuses other arguments."""
    operator = getattr(torch.ops.aten, name).default
    if torch.cuda.is_available():
        operator(*(x.cuda() if isinstance(x, Tensor) else x for x in given))
        torch.cuda.synchronize()
        return "done"
    if not torch.backends.cuda.is_built():
        with suppress(NotImplementedError):
            operator(*(x.to("meta") if isinstance(x, Tensor) else x for x in given))
        return "done"
    try:
        far = [
            Far(x) if isinstance(x, Tensor) else list(x) if isinstance(x, tuple) else x
            for x in given
        ]
        operator._op_dk(torch._C.DispatchKey.CUDA, *far)
    except RuntimeError as error:
        return str(error)
    return "no GPU, and no error"


class Far(Tensor):
    """A tensor that says it is on a GPU, and has no memory."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, near: Tensor) -> "Far":
        layout = {"strides": near.stride(), "dtype": near.dtype, "device": torch.device("cuda", 0)}
        return Tensor._make_wrapper_subclass(cls, near.size(), **layout)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        """Room for a result is all that the kernels ask for."""
        assert func is torch.ops.aten.empty_like.default, func
        return args[0]


def main() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    calls = {}
    backward = torch.ops.aten.native_batch_norm_backward
    for label, dtype in DTYPES.items():
        for name, given in kernel_calls(ours, dtype):
            calls[f"{name} {label}"] = name, given
        noted = mock.Mock(side_effect=backward)
        with mock.patch.object(torch.ops.aten, "native_batch_norm_backward", noted):
            kernel_calls(any_device, dtype, channels_last=True)
        calls[f"native_batch_norm_backward {label}"] = (
            "native_batch_norm_backward",
            noted.call_args.args,
        )
    pretend = getattr(torch._C, "_ensureCUDADeviceGuardSet", None)
    if pretend and torch.backends.cuda.is_built() and not torch.cuda.is_available():
        pretend()  # for good, so this is a process of its own; old torch misses the driver earlier
    print(json.dumps({label: end_of(*call) for label, call in calls.items()}))


if __name__ == "__main__":
    main()
