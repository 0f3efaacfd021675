"""Memory for the kernels: none is taken before it is written to, and it comes in large pages.

What streams through a step misses the processor's table of small pages too often.
"""

import mmap
from collections.abc import Mapping

import torch
from torch import Tensor

CHUNK_BYTES = 64 * 2**20
"""Addresses taken at once; they cost nothing."""
ALIGNMENT = 64
"""Bytes of a cache line."""


class Arena:
    """Hands out tensors that stand close together."""

    def __init__(self) -> None:
        self._chunk = mmap.mmap(-1, ALIGNMENT)
        self._used = ALIGNMENT

    def zeros(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Return a tensor of zeros; it keeps its memory alive, whatever becomes of the arena."""
        count = torch.Size(shape).numel()
        size = -(-max(count, 1) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        if self._used + size > len(self._chunk):
            self._chunk, self._used = _map(max(size, CHUNK_BYTES)), 0
        tensor = torch.frombuffer(self._chunk, dtype=dtype, count=max(count, 1), offset=self._used)
        self._used += size
        return tensor[:count].view(shape)

    def rows(self, num_rows: int, widths: Mapping[str, int]) -> dict[str, Tensor]:
        """Return a float32 tensor `(num_rows, width)` for each name."""
        return {name: self.zeros(num_rows, width, dtype=torch.float32) for name, width in widths.items()}

    def copy(self, tensor: Tensor) -> Tensor:
        """Return a contiguous copy."""
        return self.zeros(*tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())


def _map(size: int) -> mmap.mmap:
    if not hasattr(mmap, "MADV_HUGEPAGE"):  # not Linux
        return mmap.mmap(-1, size)
    chunk = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    chunk.madvise(mmap.MADV_HUGEPAGE)
    return chunk
