"""Memory: how much was held, and whether an error says that there is no more."""

import resource
import sys

import torch

BYTES_PER_MAXRSS = 1 if sys.platform == "darwin" else 1024


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most that this process held: on the GPU for one, else in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * BYTES_PER_MAXRSS


def is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """Tell whether `error` says that memory ran out: torch has no type of its own for that of the CPU."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
