"""Weights as the kernels read them: copies in memory of our own, matrices packed."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from service.engine.kernels.arena import Arena
from service.engine.kernels.library import PAGE_SIZE, Linear

Arithmetic = Literal["fp32", "bf16", "int8"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
ZERO = 128
"""What stands for 0 among the int8 kernels' activations."""


class Weights:
    """Copies weights, and keeps them while it lives.

    Args:
        arena: Where to.
        arithmetic: Of the products.
        panel: Outputs of a panel (`minigpt_panel`).
    """

    def __init__(self, arena: Arena, arithmetic: Arithmetic, panel: int) -> None:
        self._arena = arena
        self._arithmetic = arithmetic
        self._panel = panel
        self._kept: list[Tensor] = []

    def keep(self, tensor: Tensor) -> int:
        """Copy a tensor as it is; return where the copy stands."""
        self._kept.append(self._arena.copy(tensor))
        return self._kept[-1].data_ptr()

    def pack(self, weight: Tensor, bias: Tensor | None = None) -> Linear:
        """Pack a `(N, K)` matrix and its `(N,)` bias, N rounded up to whole panels."""
        missing = whole(weight.size(0)) - weight.size(0)
        padded = F.pad(weight.detach().float(), (0, 0, 0, missing))
        scales, offsets = None, None
        if self._arithmetic == "int8":
            each = padded.abs().amax(1, keepdim=True).clamp_min(1e-30) / 127
            padded = (padded / each).round()
            scales, offsets = self.keep(each), self.keep((padded.sum(1) * ZERO).to(torch.int32))
        panels = _panels(padded.to(_DTYPES[self._arithmetic]), self._panel)
        added = None if bias is None else self.keep(F.pad(bias.detach().float(), (0, missing)))
        return Linear(self.keep(panels), scales, offsets, added, weight.size(1), padded.size(0))


def whole(size: int) -> int:
    """Round up to whole pages; whole panels then, too."""
    return -(-size // PAGE_SIZE) * PAGE_SIZE


def _panels(weight: Tensor, panel: int) -> Tensor:
    """Lay a `(N, K)` matrix out as panels of outputs, `(N / panel, K / width, panel, width)`, width values a lane."""
    width = 4 // weight.itemsize
    return weight.view(-1, panel, weight.size(1) // width, width).transpose(1, 2)
