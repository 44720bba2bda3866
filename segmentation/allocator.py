"""Memory that a training step frees is kept for the next one."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGEST = 2**30


def keep_freed_memory() -> None:
    """Stop malloc from giving large freed blocks back to the system; nothing happens where there is no glibc.

    Every step allocates the same activations, and each new page costs a fault: a fifth of a step on CPUs.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, LARGEST)
        mallopt(M_MMAP_THRESHOLD, LARGEST)
