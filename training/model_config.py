"""The shape of each family of models; `family` in a preset's [model] chooses one."""

from collections.abc import Collection, Mapping
from typing import Any, Literal

import msgspec

from training.settings import Settings, require

Activation = Literal["sigmoid", "tanh", "relu", "leaky_relu", "gelu", "silu", "relu2"]
"""An elementwise nonlinearity; `gelu` is its tanh approximation, `relu2` the square of relu."""
Cell = Literal["rnn", "lstm", "gru"]
Normalization = Literal["rmsnorm", "layernorm"]
Position = Literal["rope", "learned"]


class BaseConfig(Settings, frozen=True, kw_only=True, tag_field="family"):
    """What every family has."""

    vocab_size: int = 0
    """Entries of the vocabulary; 0 in a preset: the tokenizer decides."""
    context_length: int = 256
    """Tokens of a training window; what attends looks back over no more of them."""
    n_layer: int = 1
    n_embd: int = 256
    """Width of an embedding, and of what the head reads."""
    tie_embeddings: bool = False
    """One matrix for the embeddings and the head."""
    dropout: float = 0.0
    """Probability of zeroing an element while training; 0 ≤ x < 1."""

    def __post_init__(self) -> None:
        require_positive(self, "context_length", "n_layer", "n_embd")
        require(self.vocab_size >= 0, "vocab_size", self.vocab_size, "at least 1, or 0 to let the tokenizer decide")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "0 ≤ dropout < 1")


class GPTConfig(BaseConfig, frozen=True, kw_only=True, tag="gpt"):
    """The shape of a decoder-only transformer.

    The defaults are the Qwen3 layout, which other programs load; the classic GPT-2 is `position = "learned"`,
    `norm = "layernorm"`, `activation = "gelu"`, `qk_norm = false`, `bias = true`, `tie_embeddings = true`.
    """

    n_layer: int = 6
    n_head: int = 4
    n_kv_head: int | None = None
    """Heads of keys and values; fewer than `n_head` is grouped-query attention. `None`: as many as `n_head`."""
    head_dim: int | None = None
    """Width of one head; `None`: `n_embd / n_head`."""
    n_hidden: int | None = None
    """Width of the feed-forward layer; `None`: 8/3 of `n_embd` rounded up to 32s for swiglu, else 4 times."""
    activation: Literal["swiglu"] | Activation = "swiglu"
    norm: Normalization = "rmsnorm"
    norm_eps: float = 1e-6
    position: Position = "rope"
    rope_theta: float = 10_000.0
    qk_norm: bool = True
    bias: bool = False
    ngram_orders: tuple[int, ...] = ()
    """Lengths of n-grams, e.g. (2, 3): the embeddings of those that end at a token are added to its own."""
    ngram_rows: int = 16_384
    """Most rows of a table of n-grams; where there are more n-grams than rows, some share one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "n_head")
        if self.head_dim is None:
            divides = self.n_embd % self.n_head == 0
            require(divides, "n_head", self.n_head, f"must divide n_embd = {self.n_embd}, or give head_dim")
        heads = self.kv_heads
        require(heads >= 1 and self.n_head % heads == 0, "n_kv_head", heads, f"must divide n_head = {self.n_head}")
        require(self.head_width % 2 == 0, "head_dim", self.head_width, "must be even: RoPE turns pairs")
        require(self.hidden_width >= 1, "n_hidden", self.hidden_width, "at least 1")
        lengths = all(2 <= order <= 8 for order in self.ngram_orders)
        require(lengths, "ngram_orders", self.ngram_orders, "each length once, 2 to 8")
        require(self.ngram_rows >= 1, "ngram_rows", self.ngram_rows, "at least 1")

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


class RecurrentConfig(BaseConfig, frozen=True, kw_only=True, tag="recurrent"):
    """The shape of a recurrent network."""

    cell: Cell = "lstm"
    n_layer: int = 2
    n_hidden: int | None = None
    """Width of a layer's state; `None`: `n_embd`, any other is projected to it before the head."""
    activation: Literal["tanh", "relu"] = "tanh"
    """Of the cell `rnn`; the other cells have their own."""
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.hidden_width >= 1, "n_hidden", self.hidden_width, "at least 1")
        chosen = self.cell == "rnn" or self.activation == "tanh"
        require(chosen, "activation", self.activation, f"cell = '{self.cell}' has its own: leave it out")

    @property
    def hidden_width(self) -> int:
        """Width of a layer's state."""
        return self.n_embd if self.n_hidden is None else self.n_hidden


class MLPConfig(BaseConfig, frozen=True, kw_only=True, tag="mlp"):
    """The shape of a feed-forward network over a window of tokens."""

    window: int = 16
    """Tokens that a prediction reads."""
    n_embd: int = 64
    n_hidden: int = 512
    """Width of a hidden layer."""
    activation: Activation = "tanh"
    direct: bool = True
    """Join the embeddings to the output past the hidden layers too."""
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "n_hidden")
        require(self.window >= 2, "window", self.window, "at least 2")

    @property
    def hidden_width(self) -> int:
        """Width of a hidden layer."""
        return self.n_hidden


class ConvConfig(BaseConfig, frozen=True, kw_only=True, tag="conv"):
    """The shape of a causal convolutional network."""

    n_layer: int = 8
    kernel_size: int = 2
    """Positions that a layer reads, its dilation apart."""
    dilation_cycle: int = 8
    """Layers after which the dilation, 1 at first and `kernel_size` times as much with each layer, is 1 again."""
    n_hidden: int | None = None
    """Channels between a layer's convolution and its projection; `None`: `n_embd`."""
    activation: Activation | None = None
    """Of what is gated: `tanh` in WaveNet; `None` in gated linear units."""
    gate_activation: Activation = "sigmoid"
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "dilation_cycle")
        require(self.kernel_size >= 2, "kernel_size", self.kernel_size, "at least 2")
        require(self.hidden_width >= 1, "n_hidden", self.hidden_width, "at least 1")

    @property
    def hidden_width(self) -> int:
        """Channels between a layer's convolution and its projection."""
        return self.n_embd if self.n_hidden is None else self.n_hidden

    @property
    def dilations(self) -> tuple[int, ...]:
        """Distance between the positions that each layer reads."""
        return tuple(self.kernel_size ** (layer % self.dilation_cycle) for layer in range(self.n_layer))

    @property
    def receptive_field(self) -> int:
        """Tokens that a prediction can depend on."""
        return 1 + (self.kernel_size - 1) * sum(self.dilations)


ModelConfig = GPTConfig | RecurrentConfig | MLPConfig | ConvConfig
"""Any of them."""
DEFAULT_FAMILY = "gpt"


def differences(config: ModelConfig, other: ModelConfig, *, but: Collection[str]) -> dict[str, Any]:
    """Return the fields of `config`, with their values, that `other` has otherwise; those of `but` do not count."""
    if type(config) is not type(other):
        return {"family": type(config).__struct_config__.tag}
    fields = [field for field in config.__struct_fields__ if field not in but]
    return {field: value for field in fields if (value := getattr(config, field)) != getattr(other, field)}


def parse_model_config(table: Mapping[str, Any]) -> ModelConfig:
    """Check a table as read from TOML or JSON; without `family` it is a GPT's.

    Raises:
        msgspec.ValidationError: unknown key, wrong type or value.
    """
    return msgspec.convert({"family": DEFAULT_FAMILY, **table}, ModelConfig)


def require_positive(config: Settings, *fields: str) -> None:
    """Refuse a config of which one of `fields` is under 1.

    Raises:
        ValueError: naming the field.
    """
    for field in fields:
        require(getattr(config, field) >= 1, field, getattr(config, field), "at least 1")
