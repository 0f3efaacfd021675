"""Memory: how it is kept, how much was held, and whether an error says that there is no more."""

import ctypes
import resource
import sys

import torch

BYTES_PER_MAXRSS = 1 if sys.platform == "darwin" else 1024

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""


def keep_freed_memory() -> None:
    """Let this process keep what it frees, where its allocator is glibc's: a step takes the same memory as the last.

    As glibc comes, it gives back what is free at the end of its heap, and each page of what is taken next is a fault
    that the system answers with zeros.

    Source: mallopt(3).
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None:
        mallopt(M_MMAP_THRESHOLD, 32 * 2**20)  # the most that glibc takes
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most that this process held: on the GPU for one, else in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * BYTES_PER_MAXRSS


def is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """Tell whether `error` says that memory ran out: torch has no type of its own for that of the CPU."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
