"""Weights as the kernels read them: copies in memory of our own, matrices packed; no parameter is left out."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from service.engine.kernels.arena import Arena
from service.engine.kernels.structures import PAGE_SIZE, Linear
from service.errors import SettingError

ComputeDtype = Literal["fp32", "bf16", "int8"]
"""What products are computed in."""
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
ZERO = 128
"""What stands for 0 among the int8 kernels' activations."""


class Weights:
    """Copies a model's parameters, keeps the copies while it lives, and knows which parameters were never read.

    Args:
        model: Whose.
        arena: Where the copies stand.
        compute_dtype: Of the products.
        panel: Outputs of a panel (`minigpt_panel`).
    """

    def __init__(self, model: nn.Module, arena: Arena, compute_dtype: ComputeDtype, panel: int) -> None:
        self._parameters = dict(model.named_parameters(remove_duplicate=False))
        self._unread = set(self._parameters)
        self._arena = arena
        self._compute_dtype = compute_dtype
        self._panel = panel
        self._kept: list[Tensor] = []

    def has(self, name: str) -> bool:
        """Whether the model has a parameter of this name."""
        return name in self._parameters

    def read(self, *names: str) -> Tensor:
        """Return parameters, joined along their outputs; they count as read."""
        self._unread.difference_update(names)
        return torch.cat([self._parameters[name].detach() for name in names])

    def keep(self, tensor: Tensor) -> int:
        """Copy a tensor as it is; return where the copy stands."""
        self._kept.append(self._arena.copy(tensor))
        return self._kept[-1].data_ptr()

    def pack_layers(self, *layers: str) -> Linear:
        """Pack the products of layers side by side, with their biases, if they have any."""
        biases = [f"{layer}.bias" for layer in layers if self.has(f"{layer}.bias")]
        weight = self.read(*(f"{layer}.weight" for layer in layers))
        return self.pack(weight, self.read(*biases) if biases else None)

    def pack(self, weight: Tensor, bias: Tensor | None = None) -> Linear:
        """Pack a `(N, K)` matrix and its `(N,)` bias, N rounded up to whole panels."""
        missing = whole(weight.size(0)) - weight.size(0)
        padded = F.pad(weight.float(), (0, 0, 0, missing))
        scales, offsets = None, None
        if self._compute_dtype == "int8":
            each = padded.abs().amax(1, keepdim=True).clamp_min(1e-30) / 127
            padded = (padded / each).round()
            scales, offsets = self.keep(each), self.keep((padded.sum(1) * ZERO).to(torch.int32))
        panels = _panels(padded.to(_DTYPES[self._compute_dtype]), self._panel)
        added = None if bias is None else self.keep(F.pad(bias.float(), (0, missing)))
        return Linear(self.keep(panels), scales, offsets, added, weight.size(1), padded.size(0))

    def require_all_read(self) -> None:
        """Refuse a model of which a parameter was left out: without it other logits would come out.

        Raises:
            SettingError: naming the parameters.
        """
        if self._unread:
            left = ", ".join(sorted(self._unread))
            raise SettingError(f"kernels = 'native': they do not read {left} of this model; choose --kernels torch")


def whole(size: int) -> int:
    """Round up to whole pages; whole panels then, too."""
    return -(-size // PAGE_SIZE) * PAGE_SIZE


def _panels(weight: Tensor, panel: int) -> Tensor:
    """Lay a `(N, K)` matrix out as panels of outputs, `(N / panel, K / width, panel, width)`, width values a lane."""
    width = 4 // weight.itemsize
    return weight.view(-1, panel, weight.size(1) // width, width).transpose(1, 2)
