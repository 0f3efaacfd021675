"""A decoder-only transformer: one definition for training, prefill and decode.

Parameters carry the names of Hugging Face's Qwen3, so a state dict of the default layout loads there as it is.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from training.model_config import GPTConfig
from training.models.activations import ACTIVATIONS
from training.models.attention import CausalSelfAttention, rotary_table
from training.models.base import AttentionState, KVSpec, LanguageModel, make_embedding
from training.models.dropout import DropoutMasks
from training.models.embeddings import NgramEmbeddings
from training.models.norms import make_norm


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv 2002.05202), or GPT-2's two layers with an activation in between."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.gated = config.activation == "swiglu"
        self.activation = ACTIVATIONS["silu" if config.activation == "swiglu" else config.activation]
        if self.gated:
            self.gate_proj = nn.Linear(config.n_embd, config.hidden_width, bias=config.bias)
        self.up_proj = nn.Linear(config.n_embd, config.hidden_width, bias=config.bias)
        self.down_proj = nn.Linear(config.hidden_width, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, T, C)` to `(B, T, C)`."""
        up = self.up_proj(x)  # (B, T, F)
        hidden = self.activation(self.gate_proj(x)) * up if self.gated else self.activation(up)
        return self.down_proj(hidden)


class Block(nn.Module):
    """Attention, then feed-forward, each normalized before and added to the residual stream."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = make_norm(config)
        self.self_attn = CausalSelfAttention(config, layer)
        self.post_attention_layernorm = make_norm(config)
        self.mlp = FeedForward(config)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        state: AttentionState | None,
        masks: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """Map `(B, T, C)` to `(B, T, C)`; `masks` drop out what attention and feed-forward add."""
        attended = self.self_attn(self.input_layernorm(x), rotary, state)
        x = x + (attended if masks is None else attended * masks[0])
        forwarded = self.mlp(self.post_attention_layernorm(x))
        return x + (forwarded if masks is None else forwarded * masks[1])


class Decoder(nn.Module):
    """Embeddings, blocks and the last norm."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = make_embedding(config.vocab_size, config.n_embd)
        if config.position == "learned":
            self.embed_positions = make_embedding(config.context_length, config.n_embd)
        if config.ngram_orders:
            self.embed_ngrams = NgramEmbeddings(
                config.ngram_orders, config.ngram_rows, config.vocab_size, config.n_embd
            )
        self.masks = DropoutMasks(config.dropout)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.norm = make_norm(config)

    def forward(self, token_ids: Tensor, state: AttentionState | None) -> Tensor:
        """Map `(B, T)` to `(B, T, C)`."""
        config = self.config
        positions = torch.arange(token_ids.size(1), device=token_ids.device) if state is None else state.positions()
        x = self.embed_tokens(token_ids)  # (B, T, C)
        if config.ngram_orders:
            x = x + self.embed_ngrams(token_ids, state)
        rotary = None
        if config.position == "learned":
            x = x + self.embed_positions(positions)
        else:
            rotary = rotary_table(positions, config.head_width, config.rope_theta)
        drops = self.training and config.dropout > 0
        if drops:
            x = x * self.masks.draw(x)
        for block in self.layers:
            x = block(x, rotary, state, (self.masks.draw(x), self.masks.draw(x)) if drops else None)
        return self.norm(x)


class GPT(LanguageModel[AttentionState]):
    """A mini-GPT.

    Args:
        config: Its shape; `vocab_size` must be set.
        generator: Source of the initial weights; None: torch's own.
    """

    def __init__(self, config: GPTConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.tie()
        self._initialize(generator)

    @property
    def embed_tokens(self) -> nn.Embedding:
        """The table of token embeddings, `(V, C)`."""
        return self.model.embed_tokens

    @property
    def state_spec(self) -> KVSpec:
        """What of the past the model needs kept."""
        config = self.config
        return KVSpec(
            n_layer=config.n_layer,
            n_kv_head=config.kv_heads,
            head_dim=config.head_width,
            max_context=config.context_length,
        )

    @property
    def num_before(self) -> int:
        """How many tokens before each one the embeddings read."""
        return max(self.config.ngram_orders, default=1) - 1

    @property
    def blocks(self) -> Iterable[nn.Module]:
        """The layers."""
        return self.model.layers

    def hidden(self, token_ids: Tensor, state: AttentionState | None = None) -> Tensor:
        """Return what the head reads, `(B, T)` int64 to `(B, T, C)`."""
        return self.model(token_ids, state)

    @torch.no_grad()
    def scale_logits(self, factor: float) -> None:
        """Make the logits `factor` times as large, for good."""
        scaled = self.model.norm if self.config.tie_embeddings else self.lm_head
        for parameter in scaled.parameters():
            parameter.mul_(factor)

    @torch.no_grad()
    def _initialize(self, generator: torch.Generator | None) -> None:
        """Draw weights so that every branch starts at zero and every product keeps its scale.

        Source: zero-initialized output projections, Goyal et al. 2017 (arXiv 1706.02677), section 5.1.
        """
        if self.lm_head.weight.is_meta:  # to be loaded
            return
        for name, parameter in self.named_parameters():
            if name.endswith(("bias", "o_proj.weight", "down_proj.weight")) or "ngram" in name:
                parameter.zero_()
            elif name == "lm_head.weight" or (self.config.tie_embeddings and "embed" in name):
                parameter.normal_(0.0, 0.02, generator=generator)
            elif "embed" in name:
                parameter.normal_(0.0, 0.5, generator=generator)
            elif parameter.dim() == 2:
                bound = math.sqrt(3.0 / parameter.size(1))
                parameter.uniform_(-bound, bound, generator=generator)
