"""What a training needs of a machine is known before it starts; what is lacking is said."""

import copy
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
from segmentation import ResNet18UNet, SegFormer, TverskyLoss, UFormer, hardware
from segmentation.arguments import training_arguments
from segmentation.errors import BadInput
from segmentation.evaluation.inference import predict
from segmentation.hardware import (
    GIB,
    announce,
    check_memory,
    code_version,
    environment,
    free_in_machine,
    free_memory,
    out_of_memory_is_bad_input,
    prepare,
    step_memory,
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


class Pixelwise(nn.Module):
    """Four classes of each pixel for itself: 16 weights, and what autograd keeps is known."""

    def __init__(self):
        super().__init__()
        self.classify = nn.Conv2d(3, 4, 1)

    def forward(self, image: Tensor, keys: Tensor | None = None) -> Tensor:
        return self.classify(image)


def frozen(model: nn.Module) -> nn.Module:
    model.encoder.eval().requires_grad_(False)
    return model


def regularised() -> nn.Module:
    return SegFormer(5, drop_path=0.1, dropout=0.1)


MODELS = {
    "segformer": regularised,
    "mlp": lambda: SegFormer(3, decoder="mlp"),
    "unet": lambda: ResNet18UNet(5),
    "uformer": lambda: UFormer(ResNet18UNet(3), SegFormer(3)),
    "frozen segformer": lambda: frozen(SegFormer(5)),
    "frozen unet": lambda: frozen(ResNet18UNet(5)),
}


def test_the_memory_of_a_step_by_hand():
    """Of a pixel: the image (3 floats), the probabilities (4 floats), the label (8 bytes)."""
    model, loss = Pixelwise(), TverskyLoss()
    a_pixel, moments = 3 * 4 + 4 * 4 + 8, 16 * 2 * 4
    for images, size in ((5, (100, 70)), (0.5, (4000, 6000))):
        kept = a_pixel * images * size[0] * size[1]
        needed = step_memory(model, loss, images, size)
        assert kept + moments <= needed <= kept + moments + 1000  # sums of classes
        assert step_memory(model, loss, images, size, shards=4) == needed - moments * 3 / 4
    assert kept * 0.8 < step_memory(model, loss, images, size, compiled=True) < kept * 0.81
    assert step_memory(model, loss, 0, (1, 1)) >= 16 * 3 * 4  # the gradients too


@pytest.mark.parametrize("amp", [False, True], ids=["float32", "amp"])
@pytest.mark.parametrize("name", MODELS)
def test_two_small_images_tell_what_a_large_batch_keeps(name: str, amp: bool):
    model, loss, kept = MODELS[name]().train(), TverskyLoss(), {}
    if name.startswith("frozen"):
        frozen(model)
    needed = step_memory(model, loss, 6, (160, 96), amp=amp)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    own = {each.untyped_storage().data_ptr() for each in (*model.parameters(), *model.buffers())}
    batch = torch.rand(6, 3, 160, 96), torch.arange(6)

    def note(saved: Tensor) -> Tensor:
        if (place := saved.untyped_storage().data_ptr()) not in own:
            kept[place] = saved.untyped_storage()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            logits = model(*batch)
        loss(logits, torch.zeros(6, 160, 96, dtype=torch.int64))
    expected = sum(storage.nbytes() for storage in kept.values())
    expected += sum(2 * 4 * parameter.numel() for parameter in trained)
    assert needed == pytest.approx(expected, rel=1e-3)


PEAK = """
import torch
from segmentation import ResNet18UNet, SegFormer, TverskyLoss
from segmentation.hardware import step_memory

def step(images, side):
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=AMP):
        logits = model(torch.rand(images, 3, side, side))
    loss(logits, torch.zeros(images, side, side).long()).backward()
    optimizer.step()

def most():
    lines = open("/proc/self/status").read().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

model, loss = MODEL(5), TverskyLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
step(1, 64)  # what the libraries take once
optimizer = torch.optim.Adam(model.parameters(), fused=True)
needed, before = step_memory(model, loss, 8, (256, 256), amp=AMP), most()
step(8, 256)
step(8, 256)
print(needed, most() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no file tells the peak")
@pytest.mark.parametrize(("model", "amp"), [("SegFormer", False), ("ResNet18UNet", True)])
def test_a_step_takes_what_was_said_and_not_much_more(model: str, amp: bool):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PEAK.replace("MODEL", model).replace("AMP", str(amp))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    needed, taken = map(float, done.stdout.split())
    assert needed < taken < 1.4 * needed


@pytest.mark.parametrize("name", MODELS)
def test_measuring_leaves_no_trace(name: str, small):
    model = MODELS[name]().train()
    before = copy.deepcopy(model)
    generator = torch.get_rng_state()
    step_memory(model, TverskyLoss(), 32, (256, 256))
    assert torch.equal(torch.get_rng_state(), generator)
    modes = [[part.training for part in each.modules()] for each in (model, before)]
    assert modes[0] == modes[1]
    state = model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in before.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def machine(root: Path, available: int, groups: str = "", **files: dict[str, str]) -> Path:
    """/proc and /sys of a machine with so many KiB available; files: a folder's, by name."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 9999 kB\nMemAvailable: {available} kB\n")
    (root / "proc/self/cgroup").write_text(groups)
    for folder, contents in files.items():
        (root / "sys/fs/cgroup" / folder).mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (root / "sys/fs/cgroup" / folder / name).write_text(content)
    return root


def test_free_memory_is_the_machines_where_no_group_has_a_limit(tmp_path: Path):
    assert free_in_machine(machine(tmp_path / "a", 1000)) == 1000 * 1024
    unlimited = {"memory.max": "max\n", "memory.current": "5\n", "memory.stat": "anon 5\n"}
    place = machine(tmp_path / "b", 1000, "0::/job\n", job=unlimited)
    assert free_in_machine(place) == 1000 * 1024
    assert free_in_machine(tmp_path / "none") is None


def test_free_memory_is_below_the_limit_of_any_group_above_but_for_files_that_were_read(tmp_path):
    two = {"memory.max": "90000", "memory.current": "70000"}
    two["memory.stat"] = "anon 5000\nactive_file 40000\ninactive_file 25000\n"
    inner = {"memory.max": "max", "memory.current": "1", "memory.stat": ""}
    place = machine(tmp_path / "2", 1000, "0::/job/step\n", job=two, **{"job/step": inner})
    assert free_in_machine(place) == 90000 - 5000
    one = {"memory.limit_in_bytes": "90000", "memory.usage_in_bytes": "70000"}
    one["memory.stat"] = "inactive_file 1\ntotal_inactive_file 25000\ntotal_active_file 40000\n"
    groups = "3:cpu:/a\n2:memory:/docker/5f0c\n0::/\n"  # a path that the container does not see
    place = machine(tmp_path / "1", 1000, groups, memory=one)
    assert free_in_machine(place) == 90000 - 5000
    place = machine(tmp_path / "0", 1, groups, memory=one)
    assert free_in_machine(place) == 1024


def test_ranks_share_their_machine_and_gpus_tell_what_they_have_free(monkeypatch):
    monkeypatch.setattr(hardware, "free_in_machine", lambda: 12 * GIB)
    assert free_memory(CPU) == 12 * GIB
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_memory(CPU) == 3 * GIB
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (70 * GIB, 80 * GIB))
    assert free_memory(GPU) == 70 * GIB
    assert free_memory(torch.device("mps")) is None


def test_what_does_not_fit_is_refused_with_both_figures_and_what_helps(monkeypatch):
    for free in (12.0 * GIB, None):
        monkeypatch.setattr(hardware, "free_memory", lambda device, free=free: free)
        assert "1.50 GiB" in check_memory(1.5 * GIB, CPU, amp=False)
    assert "GiB free" not in check_memory(1e6 * GIB, CPU, amp=False)  # not known
    monkeypatch.setattr(hardware, "free_memory", lambda device: 12.0 * GIB)
    assert "cpu has 12.00 GiB free" in check_memory(12 * GIB, CPU, amp=False)
    with pytest.raises(BadInput, match=r"at least 12.50 GiB .* cuda:0 has 12.00 GiB free") as error:
        check_memory(12.5 * GIB, GPU, amp=False)
    for flag in ("--crop", "--image-size", "--batch-size", "--amp"):
        assert flag in str(error.value)
    with pytest.raises(BadInput) as error:
        check_memory(12.5 * GIB, GPU, amp=True)
    assert "--amp" not in str(error.value)


def test_train_refuses_before_the_first_step(tiny_folder, tmp_path, monkeypatch, capsys):
    """736 bytes a pixel and the moments of 12 million weights, or these and the gradients."""
    weights = sum(parameter.numel() for parameter in ResNet18UNet(3).parameters())
    large = (736 * 8 * 128 * 128 + 2 * 4 * weights) / GIB
    small = 3 * 4 * weights / GIB
    flags = ("--data", tiny_folder, *FLAGS, "--epochs", 1, "--out", tmp_path / "run")
    monkeypatch.setattr(hardware, "free_memory", lambda device: (large + small) / 2 * GIB)
    assert run_script("train", *flags, "--image-size", 128, 128) == 2
    said = capsys.readouterr()
    assert f"at least {large:.2f} GiB" in said.err and "GiB free: use --crop" in said.err
    assert not (tmp_path / "run" / "last.pt").exists()
    assert run_script("train", *flags) == 0
    said = capsys.readouterr().out
    assert "device: cpu, " in said and "1 process of" in said
    assert f"memory: a training step needs at least {small:.2f} GiB beside the weights" in said


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
    model = Pixelwise()
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
