"""What a machine lacks is said in one sentence."""

import os
import platform
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from child_processes import ROOT
from conftest import run_script
from PIL import Image
from torch import Tensor, nn

import train
from segmentation import ResNet18UNet, hardware
from segmentation.arguments import training_arguments
from segmentation.errors import BadInput
from segmentation.evaluation.inference import predict
from segmentation.hardware import (
    announce,
    code_version,
    environment,
    out_of_memory_is_bad_input,
    prepare,
    usual_workers,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
FLAGS = (
    "--device",
    "cpu",
    "--model",
    "unet",
    "--encoder-weights",
    "none",
    "--workers",
    0,
    "--augment",
    0,
)
FLAGS += ("--batch-size", 8, "--image-size", 32, 32)


def run_out(monkeypatch: pytest.MonkeyPatch, error: BaseException | None, training: bool) -> None:
    """Every forward of a U-Net asks for too much, or raises this error."""

    def forward(model: nn.Module, image: Tensor, keys: Tensor | None = None) -> Tensor:
        if error is not None and model.training == training:
            raise error
        return torch.empty(2**48) if model.training == training else original(model, image, keys)

    original = ResNet18UNet.forward
    monkeypatch.setattr(ResNet18UNet, "forward", forward)
    monkeypatch.setattr("train.step_memory", lambda *_, **__: 0.0)  # which calls it too


CUDA_SAYS = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB"


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(None, marks=pytest.mark.slow),
        torch.OutOfMemoryError(CUDA_SAYS),
        pytest.param(MemoryError(), marks=pytest.mark.slow),
    ],
)
def test_running_out_of_memory_is_one_sentence(
    tiny_folder, tmp_path, small, capsys, monkeypatch, error
):
    out, images = tmp_path / "run", tmp_path / "images"
    flags = ("--data", tiny_folder, *FLAGS, "--out", out)
    assert run_script("train", *flags, "--epochs", 1) == 0
    before = (out / "last.pt").read_bytes()
    capsys.readouterr()
    amount = {None: f"{2**50} bytes", MemoryError: None}.get(error and type(error), "2.00 GiB")
    with monkeypatch.context() as patch:
        run_out(patch, error, training=True)
        assert run_script("train", *flags, "--epochs", 2, "--resume") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: out of memory") and said.count("\n") == 1 and "--crop" in said
    assert amount is None or amount in said
    assert (out / "last.pt").read_bytes() == before and not list(out.glob(".*.writing"))

    images.mkdir()
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(images / "a.png")
    run_out(monkeypatch, error, training=False)
    best = out / "best.pt"
    assert run_script("evaluate", best, "--images", images, "--out", tmp_path / "predicted") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: out of memory") and said.count("\n") == 1 and "--tile" in said
    assert not [path for path in (tmp_path / "predicted").rglob("*") if path.is_file()]
    assert run_script("ensemble", best, best, "--weights", 1, 1) == 2
    assert "--tile" in capsys.readouterr().err


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shapes"), out_of_memory_is_bad_input("..."):
        raise RuntimeError("shapes do not fit")


WHEEL = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
CARDS = [
    ("Tesla V100", (7, 0), WHEEL, False, "whl/cu126"),
    ("GTX 1080", (6, 1), [*WHEEL, "compute_120"], False, "whl/cu126"),
    ("tomorrow's card", (13, 0), WHEEL, False, "update torch"),
    ("tomorrow's card", (13, 0), [*WHEEL, "compute_120"], True, None),
    ("H100", (9, 0), ["sm_80", "sm_90a"], True, None),
    ("H100", (9, 0), ["sm_80", "sm_86"], False, "update torch"),
    ("RTX 4090", (8, 9), WHEEL, True, None),
    ("A100", (8, 0), ["sm_75", "sm_86"], False, "update torch"),
    ("T4", (7, 5), WHEEL, False, None),
    ("T4", (7, 5), WHEEL, True, "leave --amp out"),
    ("MI250", (9, 0), ["gfx90a", "gfx942"], True, None),
]


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize(("name", "capability", "built_for", "amp", "reason"), CARDS)
def test_cards_torch_cannot_use_are_refused(monkeypatch, name, capability, built_for, amp, reason):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built_for)
    if reason is None:
        prepare(GPU, amp)
        return
    with pytest.raises(BadInput) as error:
        prepare(GPU, amp)
    said = str(error.value)
    assert name in said and "{}.{}".format(*capability) in said and reason in said
    assert "\n" not in said and (amp or "--device cpu" in said)


FAULTS = """
import resource, torch
from segmentation.hardware import prepare

prepare(torch.device("cpu"), amp=False)
for _ in range(30):  # malloc settles within ten: small tensors split what was freed
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries have no such switch")
def test_prepared_processes_keep_freed_memory_for_the_next_tensors():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", FAULTS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    pages = 2**24 * 4 / 4096  # of the tensor: as many faults where memory is given back
    assert int(done.stdout) < pages / 10


@pytest.mark.usefixtures("settings")
def test_on_a_gpu_products_are_tf32_and_only_training_searches_for_kernels(monkeypatch):
    torch.set_float32_matmul_precision("highest")  # tests on a GPU may have changed them
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.enable_cudnn_sdp(True)
    prepare(CPU, amp=False)
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cudnn.benchmark
    assert torch.backends.cuda.cudnn_sdp_enabled()
    monkeypatch.setattr(hardware, "check_gpu", lambda device, amp: None)
    prepare(GPU, amp=False)
    assert torch.get_float32_matmul_precision() == "high"
    assert torch.backends.cudnn.benchmark
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    searched = []
    model = nn.Conv2d(3, 4, 1)
    model.register_forward_pre_hook(lambda *_: searched.append(torch.backends.cudnn.benchmark))
    predict(model, torch.rand(1, 3, 40, 40))
    assert searched == [False] and torch.backends.cudnn.benchmark


@pytest.mark.parametrize(
    ("flags", "slow"),
    [("fpu avx2 avx512f", True), ("fpu avx512_bf16", False), ("amx_bf16", False), (None, True)],
)
def test_a_processor_without_bfloat16_says_what_amp_costs(monkeypatch, capsys, flags, slow):
    monkeypatch.setattr(hardware, "processor_says", lambda key: flags if key == "flags" else None)
    for amp in (False, True):
        prepare(CPU, amp)
    assert capsys.readouterr().out.count("no bfloat16 instructions") == slow


def test_a_gpu_that_is_not_used_is_said_unless_the_cpu_was_asked_for(monkeypatch, capsys):
    def too_old() -> None:
        raise RuntimeError("The driver on your system is too old (found version 11040).\nMore")

    monkeypatch.setattr(torch.cuda, "init", too_old)
    for driver, asked, said in (("/bin/nvidia-smi", None, True), ("/bin/nvidia-smi", "cpu", False)):
        monkeypatch.setattr(hardware.shutil, "which", lambda name, driver=driver: driver)
        announce(CPU, asked)
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("device: cpu, ") and len(lines) == 1 + said
        assert not said or "no GPU is used" in lines[1]
        assert not said or lines[1].endswith("too old (found version 11040).")


@pytest.mark.parametrize("machine", [(16, 1, 8, 1), (16, 4, 4, 1), (6, 4, 1, 0), (2, 4, 1, 0)])
def test_workers_come_from_cores_and_ranks(monkeypatch, machine):
    cores, ranks, on_gpu, on_cpu = machine
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert usual_workers(GPU) == on_gpu
    assert usual_workers(CPU) == on_cpu


def git(folder: Path, *words: str) -> str:
    own = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    command = ["git", *own, *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch) -> Path:
    """A git checkout in whose place the package lies, and no installed version."""
    monkeypatch.setattr(hardware, "__file__", str(tmp_path / "segmentation" / "hardware.py"))
    (tmp_path / "train.py").write_text("one")
    for words in ("init -q", "add train.py", "commit -qm one", "tag -am v v1"):
        git(tmp_path, *words.split())
    return tmp_path


def test_a_run_names_its_commit(checkout: Path):
    commit = git(checkout, "rev-parse", "HEAD").strip()
    assert code_version() == f"commit {commit}" == environment(CPU)["code"]
    (checkout / "run.log").write_text("not of the code")
    assert code_version() == f"commit {commit}"
    (checkout / "train.py").write_text("two")
    assert code_version() == f"commit {commit}, modified"
    with patch.object(hardware, "rank", lambda: 1):
        assert commit not in environment(CPU)["code"]


def test_without_git_a_run_names_its_version(checkout: Path, monkeypatch):
    monkeypatch.setattr(hardware.metadata, "version", lambda name: f"of {name}")
    (checkout / ".git").rename(checkout / "elsewhere")
    assert code_version() == "version of segmentation"
    (checkout / "elsewhere").rename(checkout / ".git")
    (checkout / ".git" / "HEAD").write_text("damaged")
    assert code_version() == "version of segmentation"
    for failure in (FileNotFoundError("git"), subprocess.TimeoutExpired("git", 30)):
        with patch.object(subprocess, "check_output", side_effect=failure):
            assert code_version() == "version of segmentation"
    monkeypatch.undo()
    monkeypatch.setattr(hardware, "__file__", str(checkout / "nowhere" / "a" / "hardware.py"))
    missing = hardware.metadata.PackageNotFoundError("segmentation")
    with patch.object(hardware.metadata, "version", side_effect=missing):
        assert code_version() == "unknown"


def test_the_default_of_workers_is_told(monkeypatch, capsys, tiny_folder, tmp_path, small):
    seen = []
    loader = train.make_loader
    monkeypatch.setattr(train, "usual_workers", lambda device: 7)

    def noted(samples, order, workers, device):
        seen.append(workers)
        return loader(samples, order, 0, device)

    monkeypatch.setattr(train, "make_loader", noted)
    place = FLAGS.index("--workers")
    flags = ("--data", tiny_folder, *FLAGS[:place], *FLAGS[place + 2 :], "--epochs", 1)
    assert run_script("train", *flags, "--out", tmp_path / "run") == 0
    assert seen == [7]
    monkeypatch.setattr(sys, "argv", ["train.py", "--help"])
    with pytest.raises(SystemExit):
        training_arguments("")
    assert "default: 1, or 0 on one core; on a GPU from cores and ranks" in " ".join(
        capsys.readouterr().out.split()
    )
