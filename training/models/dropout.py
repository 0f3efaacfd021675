"""Dropout: the same features at every position of a row; or any elements, with masks that cost no random numbers."""

import torch
from torch import Tensor, nn

POOL_SIZE = 2**22
POOL_SEED = 0
ALIGNMENT = 64


class VariationalDropout(nn.Module):
    """Zero features of a row with one mask for all its positions, while training.

    Args:
        p: Probability of zeroing a feature, 0 ≤ p < 1; the rest are scaled by 1 / (1 - p).

    Source: Gal and Ghahramani 2016 (arXiv 1512.05287), section 4.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, T, C)` to the same shape."""
        if not self.training or self.p == 0:
            return x
        kept = 1.0 - self.p
        return x * x.new_empty(x.size(0), 1, x.size(2)).bernoulli_(kept).div_(kept)


class DropoutMasks:
    """Masks of single elements: stretches of one pool that is drawn once, each from a random place of it.

    On a CPU drawing a mask anew costs ten times the multiplication with it.

    Args:
        p: Probability of zeroing an element, 0 ≤ p < 1; the rest are scaled by 1 / (1 - p).

    Source: Srivastava et al. 2014, Journal of Machine Learning Research 15.
    """

    def __init__(self, p: float) -> None:
        self.p = p
        self._pool = torch.empty(0)

    def draw(self, x: Tensor) -> Tensor:
        """Return a mask of the shape and for the device of `x`, bf16; the place comes from torch's own generator."""
        if self._pool.numel() < 4 * x.numel() or self._pool.device != x.device:
            self._pool = self._fill(max(POOL_SIZE, 4 * x.numel())).to(x.device)
        place = ALIGNMENT * int(torch.randint((self._pool.numel() - x.numel()) // ALIGNMENT, ()))
        return self._pool[place : place + x.numel()].view(x.shape)

    def _fill(self, size: int) -> Tensor:
        kept = 1.0 - self.p
        drawn = torch.rand(size, generator=torch.Generator().manual_seed(POOL_SEED))
        return (drawn < kept).to(torch.bfloat16) / kept
