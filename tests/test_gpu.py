"""What only a real GPU can show; this file is also the script of its ranks. Skipped without one."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import run_script
from torch import nn

from segmentation.checkpoint import read_checkpoint
from segmentation.hardware import prepare
from segmentation.models.mix_transformer import attend
from segmentation.training.sync_batchnorm import SyncBatchNorm2d

ROOT = Path(__file__).resolve().parents[1]
CUDA = "cuda:0"
# dtype of the maps -> relative and absolute error of float32 sums in another order
TOLERANCES = {torch.float32: (1e-4, 1e-5), torch.bfloat16: (2e-2, 2e-2)}

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def check_batchnorm(sizes: list[int], dtype: torch.dtype) -> None:
    """Ranks with so many images of a batch normalise as BatchNorm2d does with the whole batch."""
    torch.manual_seed(0)
    rank, channels = dist.get_rank(), 24
    x = (3 * torch.randn(sum(sizes), channels, 33, 20, device=CUDA) + 5).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    cotangent = torch.randn_like(x)
    rows = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    whole, sync = nn.BatchNorm2d(channels, device=CUDA), SyncBatchNorm2d(channels, device=CUDA)
    all_x, own_x = x.clone().requires_grad_(), x[rows].clone().requires_grad_()
    expected, found = whole(all_x), sync.with_cuda_kernels(own_x)
    expected.backward(cotangent)
    found.backward(cotangent[rows])
    d_weight, d_bias = sync.weight.grad, sync.bias.grad
    dist.all_reduce(d_weight)
    dist.all_reduce(d_bias)
    pairs = {
        "output": (found, expected[rows]),
        "gradient": (own_x.grad, all_x.grad[rows]),
        "weight": (d_weight / x[:, 0].numel(), whole.weight.grad / x[:, 0].numel()),
        "bias": (d_bias / x[:, 0].numel(), whole.bias.grad / x[:, 0].numel()),
        "mean": (sync.running_mean, whole.running_mean),
        "variance": (sync.running_var, whole.running_var),
    }
    relative, absolute = TOLERANCES[dtype]
    for name, (own, other) in pairs.items():
        torch.testing.assert_close(own, other, rtol=relative, atol=absolute, msg=name)
    assert own_x.grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_batchnorm_over_one_rank_by_nccl(dtype):
    dist.init_process_group("cpu:gloo,cuda:nccl", store=dist.HashStore(), rank=0, world_size=1)
    try:
        check_batchnorm([4], dtype)
    finally:
        dist.destroy_process_group()


def test_batchnorm_over_two_ranks_that_share_a_gpu():
    """One of them without an image, too; by gloo, as NCCL takes one rank a GPU."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__]
    done = subprocess.run(
        [sys.executable, *command],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize("length", [1, 4, 16, 64])
def test_attention_to_low_scores_has_finite_gradients(length):
    """cuDNN's has not, where the last tile of keys is not full."""
    prepare(torch.device(CUDA), amp=True)
    query = torch.randn(2, 3, 64, 32, device=CUDA, dtype=torch.bfloat16)
    key, value = torch.randn(2, 2, 3, length, 32, device=CUDA, dtype=torch.bfloat16)
    query[..., 0], key[..., 0] = 1, -120 * math.sqrt(32)
    inputs = [x.detach().requires_grad_() for x in (query, key, value)]
    attend(*inputs).square().sum().backward()
    assert all(x.grad.isfinite().all() for x in inputs)


@pytest.mark.parametrize("how", [[], ["--amp"], ["--amp", "--compile"]])
@pytest.mark.parametrize("model", ["unet", "segformer"])
def test_training(tiny_folder, tmp_path, model, how):
    if model == "segformer":
        how = ["--drop-path", "0.1", "--dropout", "0.1", *how]
    flags = ["--encoder-weights", "none", "--epochs", "2", "--batch-size", "4", "--augment", "0"]
    where = ["--data", str(tiny_folder), "--device", "cuda", "--out", str(tmp_path)]
    assert run_script("train", "--model", model, *flags, *how, *where) == 0
    history = read_checkpoint(tmp_path / "last.pt")["history"]
    assert len(history) == 2
    assert all(math.isfinite(row["train_loss"]) for row in history)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    for dtype in TOLERANCES:
        for sizes in ([3, 1], [0, 4]):
            check_batchnorm(sizes, dtype)
    dist.destroy_process_group()
