"""How much of the machine's memory an engine may take for what came before: pages of it."""

import contextlib
import ctypes
import gc
import sys
from pathlib import Path

import psutil
import torch

from service.config import EngineSettings
from service.errors import SettingError

CGROUP = Path("/sys/fs/cgroup")
MEMORY_SHARE = 0.5
"""Of the free memory that pages may take where no setting says how much."""


def count_pages(settings: EngineSettings, device: torch.device, page_bytes: int, context_pages: int) -> int:
    """Return how many pages `settings` come to on this machine.

    Args:
        settings: Of the engine.
        device: Where the pages stand.
        page_bytes: What one takes.
        context_pages: Pages of one full context.

    Raises:
        SettingError: they do not hold one full context, or are more than there is.
    """
    if settings.kv_cache_mb is None:
        within_memory = int(MEMORY_SHARE * _free_memory(device)) // page_bytes
        return max(context_pages, min(context_pages * settings.max_num_seqs, within_memory))
    num_pages = settings.kv_cache_mb * 2**20 // page_bytes
    if num_pages < context_pages:
        need_mb = -(-context_pages * page_bytes // 2**20)
        raise SettingError(
            f"kv_cache_mb = {settings.kv_cache_mb}: one full context takes {need_mb} MiB; give at least that"
        )
    free_mb = _free_memory(device) // 2**20
    if settings.kv_cache_mb > free_mb:  # the system might promise it all the same, and kill whoever takes it
        raise SettingError(f"kv_cache_mb = {settings.kv_cache_mb}: {free_mb} MiB of memory are free; give less")
    return num_pages


def free_in_container(cgroup: Path) -> int:
    """Return the bytes that a container may still take by its control group (version 2); no end of them without one."""
    try:
        limit, current = ((cgroup / name).read_text() for name in ("memory.max", "memory.current"))
        return int(limit) - int(current)
    except (OSError, ValueError):  # a limit of "max" is none
        return sys.maxsize


def give_back_memory() -> None:
    """Return to the system what was freed: the kernels have packed the weights, and glibc would keep the room."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(int(psutil.virtual_memory().available), free_in_container(CGROUP))
