"""A step's memory is known before training starts; what does not fit is refused."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from child_processes import ROOT
from conftest import run_script
from torch import Tensor, nn

from segmentation import ResNet18UNet, SegFormer, TverskyLoss, UFormer
from segmentation.errors import BadInput
from segmentation.hardware import GIB
from segmentation.training import memory
from segmentation.training.memory import (
    check_memory,
    free_in_machine,
    free_memory,
    step_memory,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


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
    """Of a pixel: the image (3 floats), the probabilities (4 floats), the label and a flag (9)."""
    model, loss = Pixelwise(), TverskyLoss()
    a_pixel, moments = 3 * 4 + 4 * 4 + 9, 16 * 2 * 4
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
from segmentation.training.memory import step_memory

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
    monkeypatch.setattr(memory, "free_in_machine", lambda: 12 * GIB)
    assert free_memory(CPU) == 12 * GIB
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_memory(CPU) == 3 * GIB
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (70 * GIB, 80 * GIB))
    assert free_memory(GPU) == 70 * GIB
    assert free_memory(torch.device("mps")) is None


def test_what_does_not_fit_is_refused_with_both_figures_and_what_helps(monkeypatch):
    for free in (12.0 * GIB, None):
        monkeypatch.setattr(memory, "free_memory", lambda device, free=free: free)
        assert "1.50 GiB" in check_memory(1.5 * GIB, CPU, amp=False)
    assert "GiB free" not in check_memory(1e6 * GIB, CPU, amp=False)  # not known
    monkeypatch.setattr(memory, "free_memory", lambda device: 12.0 * GIB)
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
    flags = "--device cpu --model unet --encoder-weights none --workers 0 --augment 0".split()
    flags += "--epochs 1 --batch-size 8 --image-size 32 32".split()
    flags += ["--data", tiny_folder, "--out", tmp_path / "run"]
    monkeypatch.setattr(memory, "free_memory", lambda device: (large + small) / 2 * GIB)
    assert run_script("train", *flags, "--image-size", 128, 128) == 2
    said = capsys.readouterr()
    assert f"at least {large:.2f} GiB" in said.err and "GiB free: use --crop" in said.err
    assert not (tmp_path / "run" / "last.pt").exists()
    assert run_script("train", *flags) == 0
    said = capsys.readouterr().out
    assert "device: cpu, " in said and "1 process of" in said
    assert f"memory: a training step needs at least {small:.2f} GiB beside the weights" in said
