"""Normalization of the residual stream and of single heads."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.model_config import GPTConfig


class RMSNorm(nn.Module):
    """Divide by the root mean square of the last dimension, times a learned weight.

    Source: Zhang and Sennrich 2019 (arXiv 1910.07467), equation 4.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Map `(…, width)` to the same shape and dtype."""
        # The weight follows x's dtype: under autocast a mixed call falls off torch's fused kernel.
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


def make_norm(config: GPTConfig) -> nn.Module:
    """Return the norm that `config.norm` names, over the width of the residual stream."""
    if config.norm == "rmsnorm":
        return RMSNorm(config.n_embd, config.norm_eps)
    return nn.LayerNorm(config.n_embd, eps=config.norm_eps, bias=config.bias)
