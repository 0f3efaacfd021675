"""Causal self-attention with rotary positions and normalized queries and keys."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.model_config import GPTConfig
from training.models.base import AttentionState
from training.models.norms import RMSNorm

QUERY_BLOCK = 128
"""Queries that attend together on CPUs while training."""


def rotary_table(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of the rotation of each position, `(…, 1, D/2)` each, ready to broadcast over heads.

    Args:
        positions: `(…)` int64.
        head_dim: Width D of a head, even.
        theta: Base of the wavelengths.

    Source: RoFormer (Su et al. 2021, arXiv 2104.09864), section 3.4.2.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angles = positions.float().unsqueeze(-1) * theta**-exponents  # (…, D/2)
    return angles.cos().unsqueeze(-2), angles.sin().unsqueeze(-2)


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turn `x` `(…, H, D)` by its position; the pairs are the two halves of a head, as in Llama and Qwen."""
    cos, sin = table
    first, second = x.chunk(2, dim=-1)  # (…, H, D/2)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend from each position to itself and all before it.

    Args:
        q: `(B, T, H, D)`.
        k: `(B, T, G, D)`, G a divisor of H.
        v: `(B, T, G, D)`.

    Returns:
        `(B, T, H, D)`.

    Source: Attention Is All You Need (Vaswani et al. 2017), equation 1.
    """
    group = q.size(2) // k.size(2)
    if q.is_cpu and q.requires_grad:
        return _plain_attention(q, k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H or G, T, D)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=group > 1).transpose(1, 2)


def _plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend by plain products: on CPUs, forward and backward, faster than the fused kernel.

    Block by block of queries, so that little of what is masked anyway is computed: a quarter less for two blocks.
    """
    B, T, H, D = q.shape  # noqa: N806
    q, k, v = (x.transpose(1, 2).reshape(B * H, T, D) for x in (q * D**-0.5, k, v))
    blocks = [_attend_block(q, k, v, first, min(T, first + QUERY_BLOCK)) for first in range(0, T, QUERY_BLOCK)]
    return torch.cat(blocks, dim=1).view(B, H, T, D).transpose(1, 2)


def _attend_block(q: Tensor, k: Tensor, v: Tensor, first: int, last: int) -> Tensor:
    """Attend the queries `first` to `last` (of B·H rows, `(B·H, T, D)`) to all keys before `last`."""
    future = torch.full((last - first, last), float("-inf"), dtype=q.dtype, device=q.device).triu(1 + first)
    scores = torch.baddbmm(future, q[:, first:last], k[:, :last].transpose(1, 2))  # (B·H, block, last)
    return scores.softmax(dim=-1).to(v.dtype) @ v[:, :last]


class CausalSelfAttention(nn.Module):
    """Project to queries, keys and values, attend to the past, project back."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_width
        width, kv_width = config.n_head * self.head_dim, config.kv_heads * self.head_dim
        self.q_proj = nn.Linear(config.n_embd, width, bias=config.bias)
        self.k_proj = nn.Linear(config.n_embd, kv_width, bias=config.bias)
        self.v_proj = nn.Linear(config.n_embd, kv_width, bias=config.bias)
        self.o_proj = nn.Linear(width, config.n_embd, bias=config.bias)
        if config.qk_norm:
            self.q_norm = RMSNorm(self.head_dim, config.norm_eps)
            self.k_norm = RMSNorm(self.head_dim, config.norm_eps)
        self.qk_norm = config.qk_norm

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None, state: AttentionState | None) -> Tensor:
        """Map `(B, T, C)` to `(B, T, C)`; `rotary` is None for learned positions."""
        B, T, _ = x.shape  # noqa: N806
        q = self.q_proj(x).view(B, T, -1, self.head_dim)  # (B, T, H, D)
        k = self.k_proj(x).view(B, T, -1, self.head_dim)  # (B, T, G, D)
        v = self.v_proj(x).view(B, T, -1, self.head_dim)  # (B, T, G, D)
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        y = causal_attention(q, k, v.to(q.dtype)) if state is None else state.attend(q, k, v, self.layer)
        return self.o_proj(y.reshape(B, T, -1))
