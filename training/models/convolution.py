"""A causal convolutional network: gated layers that look further and further back."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from training.model_config import ConvConfig
from training.models.activations import ACTIVATIONS
from training.models.base import LanguageModel, SlotSpec, SlotState, make_embedding
from training.models.dropout import VariationalDropout
from training.models.left_context import with_left_context


class GatedConvolution(nn.Module):
    """Normalize, convolve causally, gate, project, and add to the residual stream.

    The convolution is a product of one matrix and shifted copies side by side: on CPUs, in bf16, a tenth faster than
    torch's, and Muon moves its weight as it moves every matrix.

    Source: WaveNet (van den Oord et al. 2016, arXiv 1609.03499), equation 2; gated linear units, Dauphin et al. 2017
    (arXiv 1612.08083), equation 1.
    """

    def __init__(self, config: ConvConfig, layer: int) -> None:
        super().__init__()
        width = config.hidden_width
        self.name = f"layers.{layer}"
        self.kernel_size = config.kernel_size
        self.dilation = config.dilations[layer]
        self.norm = nn.LayerNorm(config.n_embd)
        self.convolution = nn.Linear(config.kernel_size * config.n_embd, 2 * width)
        self.projection = nn.Linear(width, config.n_embd)
        self.activation = ACTIVATIONS[config.activation] if config.activation else nn.Identity()
        self.gate_activation = ACTIVATIONS[config.gate_activation]
        self.dropout = VariationalDropout(config.dropout)

    @property
    def num_before(self) -> int:
        """Positions before its own that the layer reads over."""
        return (self.kernel_size - 1) * self.dilation

    def forward(self, x: Tensor, state: SlotState | None) -> Tensor:
        """Map `(B, T, C)` to `(B, T, C)`."""
        length = x.size(1)
        extended = with_left_context(self.norm(x), self.num_before, self.name, state)
        copies = [extended[:, i * self.dilation : i * self.dilation + length] for i in range(self.kernel_size)]
        filtered, gate = self.convolution(torch.cat(copies, dim=-1)).chunk(2, dim=-1)  # (B, T, F) each
        return x + self.dropout(self.projection(self.activation(filtered) * self.gate_activation(gate)))


class Convolution(LanguageModel[SlotState]):
    """A stack of gated causal convolutions.

    Args:
        config: Its shape; `vocab_size` must be set.
        generator: Source of the initial weights; None: torch's own.
    """

    def __init__(self, config: ConvConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.embedding = make_embedding(config.vocab_size, config.n_embd)
        self.dropout = VariationalDropout(config.dropout)
        self.layers = nn.ModuleList(GatedConvolution(config, layer) for layer in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.tie()
        self._initialize(generator)

    @property
    def embed_tokens(self) -> nn.Embedding:
        """The table of token embeddings, `(V, C)`."""
        return self.embedding

    @property
    def state_spec(self) -> SlotSpec:
        """What each layer read last."""
        reach = {layer.name: layer.num_before for layer in self.layers if isinstance(layer, GatedConvolution)}
        return SlotSpec(shapes={name: (num_before, self.config.n_embd) for name, num_before in reach.items()})

    @property
    def blocks(self) -> Iterable[nn.Module]:
        """The layers."""
        return self.layers

    def hidden(self, token_ids: Tensor, state: SlotState | None = None) -> Tensor:
        """Return what the head reads, `(B, T)` int64 to `(B, T, C)`."""
        x = self.dropout(self.embedding(token_ids))  # (B, T, C)
        for layer in self.layers:
            x = layer(x, state)
        return self.norm(x)

    @torch.no_grad()
    def _initialize(self, generator: torch.Generator | None) -> None:
        """Draw weights so that every branch starts at zero and every product keeps its scale."""
        if self.lm_head.weight.is_meta:  # to be loaded
            return
        for name, parameter in self.named_parameters():
            if name.endswith("bias") or "projection" in name:
                parameter.zero_()
            elif parameter.dim() == 2:
                std = 0.02 if parameter is self.lm_head.weight else parameter.size(1) ** -0.5
                parameter.normal_(0.0, std, generator=generator)
