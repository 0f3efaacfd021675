import os

import pytest
import torch
from torch import Tensor

from service.engine.kernels.arena import Arena


@pytest.fixture(autouse=True)
def each_tensor_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under AddressSanitizer, give each tensor memory of its own: inside an arena no overflow would be seen."""

    def zeros(_: Arena, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype)

    if "MINIGPT_SANITIZED" in os.environ:
        monkeypatch.setattr(Arena, "zeros", zeros)
