"""What the machine can do at most, measured: products of large matrices, and reading memory once."""

import time
from collections.abc import Callable, Sequence

import msgspec
import torch

SIZES = (512, 1024, 2048)
"""Of square matrices; which of them is fastest depends on caches and threads."""
READ_BYTES = 2**29
"""More than any cache holds."""
CPU_CHUNKS = 16
"""Parts in which a CPU reads them: one at least is read while nothing else runs."""
PATIENCE_S = 0.4
"""Seconds that one thing is tried again and again; the best time counts."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The best of some tries."""

    dtype: str
    """Of the products."""
    flops: float
    """Multiplications and additions a second in a product of large matrices."""
    read_bytes: float
    """Bytes a second of numbers that are read once, from memory."""

    def best(self, other: "Limits") -> "Limits":
        """Return the better of two measurements: whatever disturbs one only lowers it."""
        flops, read_bytes = max(self.flops, other.flops), max(self.read_bytes, other.read_bytes)
        return Limits(dtype=self.dtype, flops=flops, read_bytes=read_bytes)


def measure_limits(dtype: str, device: torch.device) -> Limits:
    """Measure with torch's threads.

    Args:
        dtype: fp32, bf16 or int8; for int8 too the products are bf16.
        device: What is measured.
    """
    wanted = torch.float32 if dtype == "fp32" else torch.bfloat16
    return Limits(
        dtype=str(wanted).removeprefix("torch."),
        flops=max(_product_flops(size, wanted, device) for size in SIZES),
        read_bytes=_read_bytes(device),
    )


def _product_flops(size: int, dtype: torch.dtype, device: torch.device) -> float:
    left, right = (torch.full((size, size), 0.5, dtype=dtype, device=device) for _ in range(2))
    return 2 * size**3 / _best_seconds([lambda: left @ right], device)


def _read_bytes(device: torch.device) -> float:
    num_chunks = CPU_CHUNKS if device.type == "cpu" else 1
    chunks = torch.ones(num_chunks, READ_BYTES // num_chunks // 4, device=device)
    return READ_BYTES / num_chunks / _best_seconds([chunk.max for chunk in chunks], device)


def _best_seconds(works: Sequence[Callable[[], object]], device: torch.device) -> float:
    """Return the seconds of the fastest of `works`, which take the same time but for what disturbs them."""
    for work in works:
        work()
    began = time.perf_counter()
    best = min(_seconds(work, device) for work in works)
    while time.perf_counter() - began < PATIENCE_S:
        best = min([best, *(_seconds(work, device) for work in works)])
    return best


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    _finish(device)
    began = time.perf_counter()
    work()
    _finish(device)
    return time.perf_counter() - began


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
