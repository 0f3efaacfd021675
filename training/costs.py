"""What training a model takes, by arithmetic alone: parameters, floating-point operations, memory."""

import msgspec

from training.config import Algorithm, TrainConfig
from training.model_config import ConvConfig, GPTConfig, MLPConfig, ModelConfig, RecurrentConfig


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of one model: its weights by what is done with them, and what a token does."""

    matrices: int
    """Weights in hidden matrices and kernels: each is multiplied for every token."""
    head: int
    """Weights of the output head, multiplied for every token as well."""
    embeddings: int
    """Weights in tables that are looked up; a table that the head shares counts there."""
    other: int
    """Norms and biases."""
    attention: int = 0
    """Multiplications of a token with those before it in its context, on average."""
    kept: int
    """Numbers that a token keeps for the backward pass."""

    @property
    def num_parameters(self) -> int:
        """All weights."""
        return self.matrices + self.head + self.embeddings + self.other

    @property
    def flops_per_token(self) -> int:
        """Floating-point operations of one token in a training step, forward and backward.

        Six for each multiplication: it is one with an addition, and backward there are two more. Embeddings, norms,
        biases, activations and the optimizer are left out.

        Source: Kaplan et al. 2020 (arXiv 2001.08361), section 2.1; PaLM (arXiv 2204.02311), appendix B, but causal.
        """
        return 6 * (self.matrices + self.head + self.attention)


def count_costs(config: ModelConfig) -> Costs:
    """Count for a model of any family.

    Args:
        config: Its shape; `vocab_size` must be set.
    """
    match config:
        case GPTConfig():
            return _count_gpt(config)
        case RecurrentConfig():
            return _count_recurrent(config)
        case MLPConfig():
            return _count_mlp(config)
        case ConvConfig():
            return _count_conv(config)


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that a training step takes."""

    weights: int
    gradients: int
    optimizer: int
    """Its state, and the average of the weights where one is kept."""
    activations: int
    """What one micro-batch keeps for the backward pass; an estimate."""

    @property
    def total(self) -> int:
        """Bytes of all."""
        return self.weights + self.gradients + self.optimizer + self.activations


def estimate_memory(config: TrainConfig, *, bf16: bool) -> Memory:
    """Estimate the memory of one process; weights, gradients and the optimizer's state are fp32.

    Args:
        config: The run; `model.vocab_size` must be set.
        bf16: Whether matrix products are bf16, and with them most of what is kept.
    """
    costs = count_costs(config.model)
    num_tokens = config.run.batch_size * config.model.context_length
    states = _STATES[config.optim.algorithm]
    hidden_states = 1 if config.optim.algorithm == "muon" else states
    numbers = hidden_states * costs.matrices + states * (costs.num_parameters - costs.matrices)
    numbers += costs.num_parameters if config.optim.ema_decay else 0
    return Memory(
        weights=4 * costs.num_parameters,
        gradients=4 * costs.num_parameters,
        optimizer=4 * numbers,
        activations=num_tokens * costs.kept * (3 if bf16 else 4),  # some stay fp32: softmax, norms, the residual
    )


_STATES: dict[Algorithm, int] = {
    "muon": 2,  # AdamW's part; a hidden matrix has one
    "adamw": 2,
    "adam": 2,
    "sgd": 0,
    "momentum": 1,
    "nesterov": 1,
    "adagrad": 1,
    "rmsprop": 1,
}
"""Numbers that an optimizer keeps for a weight."""


def _count_gpt(config: GPTConfig) -> Costs:
    width, vocab = config.n_embd, config.vocab_size
    wide, narrow = config.n_head * config.head_width, config.kv_heads * config.head_width
    hidden, context = config.hidden_width, config.context_length
    num_up = 2 if config.activation == "swiglu" else 1
    matrices = width * (2 * wide + 2 * narrow + (num_up + 1) * hidden)
    norm = width * (2 if config.norm == "layernorm" and config.bias else 1)
    biases = wide + 2 * narrow + width + num_up * hidden + width if config.bias else 0
    head_norms = 2 * config.head_width if config.qk_norm else 0
    positions = context if config.position == "learned" else 0
    ngrams = sum(min(config.ngram_rows, (vocab + 1) ** order) for order in config.ngram_orders)
    return Costs(
        matrices=config.n_layer * matrices,
        head=vocab * width,
        embeddings=_untied_embeddings(config) + (positions + ngrams) * width,
        other=config.n_layer * (2 * norm + head_norms + biases) + norm,
        attention=config.n_layer * wide * (context + 1),  # two products with (context + 1) / 2 positions
        kept=config.n_layer * (14 * width + 2 * num_up * hidden + config.n_head * context) + 2 * width + 3 * vocab,
    )


def _count_recurrent(config: RecurrentConfig) -> Costs:
    width, hidden = config.n_embd, config.hidden_width
    num_gates, num_kept = {"rnn": (1, 2), "gru": (3, 7), "lstm": (4, 16)}[config.cell]
    inputs = width + (config.n_layer - 1) * hidden
    gates = num_gates * hidden
    return Costs(
        matrices=gates * (inputs + config.n_layer * hidden) + (hidden * width if hidden != width else 0),
        head=config.vocab_size * width,
        embeddings=_untied_embeddings(config),
        other=config.n_layer * 2 * gates,
        kept=config.n_layer * num_kept * hidden + 2 * width + 3 * config.vocab_size,
    )


def _count_mlp(config: MLPConfig) -> Costs:
    width, hidden, reach = config.n_embd, config.n_hidden, config.window * config.n_embd
    layers = reach * hidden + (config.n_layer - 1) * hidden * hidden + hidden * width
    return Costs(
        matrices=layers + (reach * width if config.direct else 0),
        head=config.vocab_size * width,
        embeddings=_untied_embeddings(config),
        other=config.n_layer * hidden + width,
        kept=reach + config.n_layer * hidden + 2 * width + 3 * config.vocab_size,
    )


def _count_conv(config: ConvConfig) -> Costs:
    width, hidden = config.n_embd, config.hidden_width
    return Costs(
        matrices=config.n_layer * (2 * config.kernel_size + 1) * width * hidden,
        head=config.vocab_size * width,
        embeddings=_untied_embeddings(config),
        other=config.n_layer * (3 * width + 2 * hidden) + 2 * width,
        kept=config.n_layer * ((config.kernel_size + 2) * width + 3 * hidden) + 2 * width + 3 * config.vocab_size,
    )


def _untied_embeddings(config: ModelConfig) -> int:
    return 0 if config.tie_embeddings else config.vocab_size * config.n_embd
