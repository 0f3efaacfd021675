"""The shape of each family of models; `family` in a preset's [model] chooses one."""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from training.settings import Settings, require

Activation = Literal["swiglu", "gelu"]
Normalization = Literal["rmsnorm", "layernorm"]
Position = Literal["rope", "learned"]


class GPTConfig(Settings, frozen=True, kw_only=True, tag_field="family", tag="gpt"):
    """The shape of a decoder-only transformer.

    The defaults are the Qwen3 layout, which other programs load; the classic GPT-2 is `position = "learned"`,
    `norm = "layernorm"`, `activation = "gelu"`, `qk_norm = false`, `bias = true`, `tie_embeddings = true`.
    """

    vocab_size: int = 0
    """Entries of the vocabulary; 0 in a preset: the tokenizer decides."""
    context_length: int = 256
    """Tokens that a position may look back over, itself included."""
    n_layer: int = 6
    n_head: int = 4
    n_kv_head: int | None = None
    """Heads of keys and values; fewer than `n_head` is grouped-query attention. `None`: as many as `n_head`."""
    n_embd: int = 256
    """Width of the residual stream."""
    head_dim: int | None = None
    """Width of one head; `None`: `n_embd / n_head`."""
    n_hidden: int | None = None
    """Width of the feed-forward layer; `None`: 8/3 of `n_embd` rounded up to 32s for swiglu, 4 times for gelu."""
    activation: Activation = "swiglu"
    norm: Normalization = "rmsnorm"
    norm_eps: float = 1e-6
    position: Position = "rope"
    rope_theta: float = 10_000.0
    qk_norm: bool = True
    bias: bool = False
    tie_embeddings: bool = False
    dropout: float = 0.0
    """Probability of zeroing an element of the residual branches while training; 0 ≤ x < 1."""

    def __post_init__(self) -> None:
        for field in ("context_length", "n_layer", "n_head", "n_embd"):
            require(getattr(self, field) >= 1, field, getattr(self, field), "at least 1")
        require(self.vocab_size >= 0, "vocab_size", self.vocab_size, "at least 1, or 0 to let the tokenizer decide")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "0 ≤ dropout < 1")
        if self.head_dim is None:
            divides = self.n_embd % self.n_head == 0
            require(divides, "n_head", self.n_head, f"must divide n_embd = {self.n_embd}, or give head_dim")
        heads = self.kv_heads
        require(heads >= 1 and self.n_head % heads == 0, "n_kv_head", heads, f"must divide n_head = {self.n_head}")
        require(self.head_width % 2 == 0, "head_dim", self.head_width, "must be even: RoPE turns pairs")
        require(self.hidden_width >= 1, "n_hidden", self.hidden_width, "at least 1")

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    @property
    def head_width(self) -> int:
        """Width of one head."""
        return self.n_embd // self.n_head if self.head_dim is None else self.head_dim

    @property
    def hidden_width(self) -> int:
        """Width of the feed-forward layer."""
        if self.n_hidden is not None:
            return self.n_hidden
        return -(-8 * self.n_embd // 96) * 32 if self.activation == "swiglu" else 4 * self.n_embd


ModelConfig = GPTConfig
"""Any of them."""
DEFAULT_FAMILY = "gpt"


def parse_model_config(table: Mapping[str, Any]) -> ModelConfig:
    """Check a table as read from TOML or JSON; without `family` it is a GPT's.

    Raises:
        msgspec.ValidationError: unknown key, wrong type or value.
    """
    return msgspec.convert({"family": DEFAULT_FAMILY, **table}, ModelConfig)
