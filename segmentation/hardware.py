"""The machine: its name, and what of it torch can use."""

import ctypes
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path

import torch

from .distributed import rank, say, world_size
from .errors import BadInput

GIB = 2**30
MOST_WORKERS = 8
AMP_CAPABILITY = (8, 0)  # cuDNN has no bfloat16 convolutions below it
OLDER_CARDS = "pip install torch --index-url https://download.pytorch.org/whl/cu126"
BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}  # instructions: of x86, of x86, of ARM
OUT_OF_MEMORY = "out of memory|can't allocate memory|ALLOC_FAILED"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def prepare(device: torch.device, amp: bool) -> None:
    """What a device needs after `distributed.setup`. BadInput for a GPU that torch cannot use."""
    if device.type == "cuda":
        check_gpu(device, amp)
        torch.set_float32_matmul_precision("high")  # TF32, which convolutions have anyway
        torch.backends.cudnn.benchmark = True  # training has few sizes; predictions turn it off
        # cuDNN's attention is reported to give NaN backward on H100s (pytorch/pytorch#196678).
        torch.backends.cuda.enable_cudnn_sdp(False)
    keep_freed_memory()
    if device.type == "cpu" and amp and not has_bfloat16(device):
        say(
            "no bfloat16 instructions of this processor are known: --amp may be slower than without"
        )


def keep_freed_memory() -> None:
    """Stop malloc from giving large freed blocks back to the system; only glibc's can.

    Every step and every prediction allocates the same activations, and each new page costs a fault:
    a fifth of a step on CPUs, up to a third of a prediction.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, GIB)
        libc.mallopt(M_MMAP_THRESHOLD, GIB)


def check_gpu(device: torch.device, amp: bool) -> None:
    """BadInput for a card that this torch has no kernels for, or that is too old for --amp."""
    capability = torch.cuda.get_device_capability(device)
    version = "{}.{}".format(*capability)
    card = f"{torch.cuda.get_device_name(device)} has compute capability {version}"
    known = cuda_architectures()
    if known and not any(runs_on(capability, *each) for each in known):
        builds = ", ".join(torch.cuda.get_arch_list())
        advice = "update torch"
        if capability < min(version for _, version in known):
            advice = f"install the CUDA 12.6 build of torch ({OLDER_CARDS})"
        raise BadInput(f"{card}, this torch is built for {builds}: {advice}, or say --device cpu")
    if amp and capability < AMP_CAPABILITY:
        needed = "{}.{}".format(*AMP_CAPABILITY)
        raise BadInput(f"{card}, and bfloat16 needs {needed} or more: leave --amp out")


def cuda_architectures() -> list[tuple[str, tuple[int, int]]]:
    """What this torch is built for, as ("sm", (7, 5)); nothing where the GPUs are AMD's."""
    names = " ".join(torch.cuda.get_arch_list())
    found = re.findall(r"\b(sm|compute)_(\d+)(\d)[af]?\b", names)
    return [(kind, (int(major), int(minor))) for kind, major, minor in found]


def runs_on(capability: tuple[int, int], kind: str, version: tuple[int, int]) -> bool:
    """Kernels ("sm") run on cards of their own generation, PTX ("compute") on all later ones."""
    return version <= capability and (kind == "compute" or version[0] == capability[0])


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware, as far as is known."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= AMP_CAPABILITY
    flags = processor_says("flags") or processor_says("Features") or ""
    return device.type == "cpu" and not BFLOAT16.isdisjoint(flags.split())


def announce(device: torch.device, asked: str | None) -> None:
    """Print the device and, where nobody asked for the CPU, why a GPU of NVIDIA's is not used."""
    say(f"device: {device}, {hardware_of(environment(device))}")
    driver = shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists()
    if device.type == "cpu" and asked is None and driver:
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            say(f"no GPU is used, though NVIDIA's driver is installed: {reason}")


def environment(device: torch.device) -> dict:
    """Hardware and versions a run was made with."""
    if device.type == "cuda":
        processor = torch.cuda.get_device_name(device)
    else:
        processor = processor_says("model name") or platform.processor() or platform.machine()
    return {
        "device": device.type,
        "processor": processor,
        "ranks": world_size(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "code": code_version(),
    }


def code_version() -> str:
    """The commit of the checkout that the scripts lie in and whether it is modified, else the
    package's version. Whatever is missing for it stops no training. The first rank alone looks.
    """
    root = Path(__file__).resolve().parents[1]
    # A pattern that no tag matches, so that the commit is named by its hash.
    ask = ["git", "describe", "--always", "--abbrev=40", "--match=-", "--dirty=, modified"]
    with suppress(OSError, subprocess.SubprocessError, ValueError):
        # Another project's checkout may hold an installed package.
        if rank() == 0 and (root / ".git").exists():
            commit = subprocess.check_output(ask, cwd=root, stderr=subprocess.DEVNULL, timeout=30)
            return f"commit {commit.decode().strip()}"
    with suppress(metadata.PackageNotFoundError):
        return f"version {metadata.version('segmentation')}"
    return "unknown"


def hardware_of(machine: dict) -> str:
    """An `environment` in words."""
    ranks, threads = machine["ranks"], machine["threads"]
    processes = f"{ranks} process{'es' if ranks > 1 else ''}"
    return f"{machine['processor']}, {processes} of {threads} thread{'s' if threads > 1 else ''}"


def processor_says(key: str) -> str | None:
    """A line of /proc/cpuinfo, without its key; None where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    found = (line.split(":", 1)[1].strip() for line in lines if line.startswith(key))
    return next(found, None)


def local_ranks() -> int:
    """How many ranks share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def usual_workers(device: torch.device) -> int:
    """Processes that prepare samples, by default. One is too slow for a GPU.

    None on a CPU where it would take a core from a rank.
    """
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))  # those of this job
    own = cores // local_ranks()
    if device.type != "cuda":
        return int(own > 1)
    return max(1, min(MOST_WORKERS, own))


@contextmanager
def out_of_memory_is_bad_input(advice: str) -> Iterator[None]:
    """Running out of memory, on a device or in the machine, becomes BadInput. Also a decorator."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error)
        if not (isinstance(error, MemoryError) or re.search(OUT_OF_MEMORY, text)):
            raise
        asked = re.search(r"tried to allocate (\d\S* \w+)", text, re.IGNORECASE)
        more = f" when {asked[1]} more were needed" if asked else ""
        raise BadInput(f"out of memory{more}: {advice}") from error
