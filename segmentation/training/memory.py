"""How much memory a training step needs, and how much is free."""

import math
import resource
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from ..distributed import alone
from ..errors import BadInput
from ..hardware import GIB, local_ranks

SIDE = 64  # of the square images, in pixels, that a step's memory is measured on
COMPILED = 0.8  # --compile computes some of what autograd keeps a second time: 0.87 to 0.98 remain
CGROUPS = {  # folder, files of limit and usage, by the controllers named in /proc/self/cgroup
    "": ("sys/fs/cgroup", "memory.max", "memory.current"),  # version 2
    "memory": (  # version 1
        "sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
    ),
}


def step_memory(
    model: nn.Module,
    criterion: nn.Module,
    images: float,
    size: tuple[int, int],
    *,
    amp: bool = False,
    compiled: bool = False,
    shards: int = 1,
) -> float:
    """Bytes that a training step needs beside the weights, at least; the model stays as it is.

    What autograd keeps of so many images of `size` (height, width), which goes as gradients come,
    and the optimizer's two moments of each weight, split into `shards`. The peak of a step is 1.06
    to 1.5 times as high, more with a frozen encoder: what lives for one operation is not counted.
    """
    one, two = (kept_by_autograd(model, criterion, n, amp) for n in (1, 2))
    pixels = images * size[0] * size[1]
    kept = 2 * one - two + (two - one) / SIDE**2 * pixels  # --amp's copies of weights do not grow
    kept *= COMPILED if compiled else 1
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    return max(kept, trained / shards) + 2 * trained / shards


def kept_by_autograd(model: nn.Module, criterion: nn.Module, images: int, amp: bool) -> int:
    """Bytes that autograd keeps of a forward of so many small images, each storage once."""
    device = next(model.parameters()).device
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    weights = [*model.parameters(), *buffers.values()]
    not_counted = {weight.untyped_storage().data_ptr() for weight in weights}
    found = {}

    def note(saved: Tensor) -> None:
        storage = saved.untyped_storage()
        found[storage.data_ptr()] = storage  # held, so that its place is not used again

    image = torch.zeros(images, 3, SIDE, SIDE, device=device)
    mask = torch.zeros(images, SIDE, SIDE, dtype=torch.int64, device=device)
    keys = torch.zeros(images, dtype=torch.int64, device=device)
    with alone(), saved_tensors_hooks(note, lambda nothing: nothing):
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            logits = functional_call(model, buffers, (image, keys))
        criterion(logits, mask)
    return sum(found[place].nbytes() for place in found.keys() - not_counted)


def check_memory(needed: float, device: torch.device, amp: bool) -> str:
    """What a step needs and what is free, in words. BadInput where it does not fit.

    `needed` is less than any such step took, so that what is refused cannot work.
    """
    free = free_memory(device)
    need = f"a training step needs at least {needed / GIB:.2f} GiB beside the weights"
    if free is None:
        return need
    need += f", {device} has {free / GIB:.2f} GiB free"
    if device.type == "cpu" and local_ranks() > 1:
        need += f" for each of {local_ranks()} processes"
    if needed > free:
        way = "" if amp else ", or --amp"
        raise BadInput(
            f"{need}: use --crop H W, a smaller --image-size or a smaller --batch-size{way}"
        )
    return need


def peak_memory(device: torch.device) -> float:
    """Bytes that this process has held at most: of its GPU, or else of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def free_memory(device: torch.device) -> float | None:
    """Bytes that this rank may still take on its device; None where that cannot be known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = free_in_machine() if device.type == "cpu" else None
    return None if free is None else free / local_ranks()


def free_in_machine(root: Path = Path("/")) -> float | None:
    """Bytes that Linux can still give to this process: in the machine, and in its control groups.

    A group counts the pages of files that were read, which go as soon as memory is wanted.
    """
    try:
        free: float = 1024 * numbers(root / "proc/meminfo")["MemAvailable:"]
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, KeyError):
        return None
    for group in groups:
        _, controllers, path = group.split(":", 2)
        if controllers not in CGROUPS:
            continue
        place, *files = CGROUPS[controllers]
        top = root / place
        folder = top / path.lstrip("/")  # from a container some folders above it are not seen
        while folder.is_relative_to(top):
            free = min(free, free_in_group(folder, *files))
            folder = folder.parent
    return max(0, free)


def free_in_group(folder: Path, limit: str, usage: str) -> float:
    """Bytes below the limit of a control group; infinite where it has none."""
    try:
        most = int((folder / limit).read_text())
        used = int((folder / usage).read_text())
        stat = numbers(folder / "memory.stat")
    except (OSError, ValueError):  # a limit of "max" is none
        return math.inf
    prefix = "total_" if "total_inactive_file" in stat else ""  # version 1: with its subgroups
    files = stat.get(f"{prefix}inactive_file", 0) + stat.get(f"{prefix}active_file", 0)
    return most - used + files


def numbers(path: Path) -> dict[str, int]:
    """A file of /proc with lines of a name, a number, and perhaps a unit."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0]: int(words[1]) for words in lines}
