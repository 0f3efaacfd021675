"""What a model of fixed reach needs of the past: the last positions before those of this call."""

import torch
from torch import Tensor

from training.models.base import SlotState


def with_left_context(x: Tensor, length: int, name: str, state: SlotState | None) -> Tensor:
    """Put the `length` positions before `x` to its left, and keep the last `length` of them all for the next call.

    Args:
        x: `(B, T, C)`.
        length: Positions, at least 1.
        name: Of the slots' tensor, `(length, C)` a row.
        state: The rows' past; None: zeros.

    Returns:
        `(B, length + T, C)`.
    """
    left = x.new_zeros(x.size(0), length, x.size(2)) if state is None else state.read(name).to(x.dtype)
    extended = torch.cat((left, x), dim=1)
    if state is not None:
        state.write(name, extended[:, -length:])
    return extended
