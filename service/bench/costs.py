"""What computing a model takes, whoever does it."""

import msgspec

from training.model_config import GPTConfig

WEIGHT_BYTES = {"fp32": 4, "bf16": 2, "int8": 1}


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of one model in one arithmetic."""

    layer_weights: int
    """In the matrices of all layers."""
    head_weights: int
    weight_bytes: int
    """Of one weight."""
    kv_bytes: int
    """Keys and values of one token."""

    def flops(self, batch: int, prompt_tokens: int, max_tokens: int) -> int:
        """Return the multiplications and additions by weights for whole answers; of a prompt only its last logits."""
        positions = prompt_tokens + max_tokens - 1
        return 2 * batch * (self.layer_weights * positions + self.head_weights * max_tokens)

    def step_bytes(self, batch: int, prompt_tokens: int, max_tokens: int) -> float:
        """Return what a step that only decodes reads: weights once, keys and values half-way through the answers."""
        weights = (self.layer_weights + self.head_weights) * self.weight_bytes
        return weights + batch * self.kv_bytes * (prompt_tokens + max_tokens / 2)


def count_costs(config: GPTConfig, dtype: str) -> Costs:
    """Count for a model of the Qwen3 layout, or any other (without its biases).

    Args:
        config: Its shape.
        dtype: fp32, bf16 or int8.
    """
    wide, narrow = config.n_head * config.head_width, config.kv_heads * config.head_width
    num_mlp = 3 if config.activation == "swiglu" else 2
    layer = config.n_embd * (2 * wide + 2 * narrow + num_mlp * config.hidden_width)
    return Costs(
        layer_weights=config.n_layer * layer,
        head_weights=config.n_embd * config.vocab_size,
        weight_bytes=WEIGHT_BYTES[dtype],
        kv_bytes=config.n_layer * 2 * narrow * (4 if dtype == "fp32" else 2),
    )
