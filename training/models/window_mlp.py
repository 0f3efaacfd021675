"""The neural probabilistic language model: a fixed window of embeddings through hidden layers."""

import torch
from torch import Tensor, nn

from training.model_config import MLPConfig
from training.models.activations import ACTIVATIONS
from training.models.base import LanguageModel, SlotSpec, SlotState, make_embedding
from training.models.dropout import VariationalDropout
from training.models.left_context import with_left_context


class WindowMLP(LanguageModel[SlotState]):
    """A multilayer perceptron that reads the embeddings of the last `window` tokens side by side.

    Args:
        config: Its shape; `vocab_size` must be set.
        generator: Source of the initial weights; None: torch's own.

    Source: Bengio et al. 2003, A Neural Probabilistic Language Model (JMLR 3, 1137–1155), equation 1.
    """

    def __init__(self, config: MLPConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.embedding = make_embedding(config.vocab_size, config.n_embd)
        reach = config.window * config.n_embd
        self.layers = nn.ModuleList(
            nn.Linear(config.n_hidden if layer else reach, config.n_hidden) for layer in range(config.n_layer)
        )
        self.output = nn.Linear(config.n_hidden, config.n_embd)
        self.direct = nn.Linear(reach, config.n_embd, bias=False) if config.direct else None
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = VariationalDropout(config.dropout)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.tie()
        self._initialize(generator)

    @property
    def embed_tokens(self) -> nn.Embedding:
        """The table of token embeddings, `(V, C)`."""
        return self.embedding

    @property
    def state_spec(self) -> SlotSpec:
        """The embeddings of the last tokens."""
        return SlotSpec(shapes={"window": (self.config.window - 1, self.config.n_embd)})

    def hidden(self, token_ids: Tensor, state: SlotState | None = None) -> Tensor:
        """Return what the head reads, `(B, T)` int64 to `(B, T, C)`."""
        num_before, length = self.config.window - 1, token_ids.size(1)
        extended = with_left_context(self.embedding(token_ids), num_before, "window", state)  # (B, W - 1 + T, C)
        windows = torch.cat([extended[:, i : i + length] for i in range(num_before + 1)], dim=-1)  # (B, T, W·C)
        x = windows
        for layer in self.layers:
            x = self.dropout(self.activation(layer(x)))  # (B, T, F)
        x = self.output(x)
        return x if self.direct is None else x + self.direct(windows)

    @torch.no_grad()
    def _initialize(self, generator: torch.Generator | None) -> None:
        if self.lm_head.weight.is_meta:  # to be loaded
            return
        for parameter in self.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0.0, parameter.size(1) ** -0.5, generator=generator)
            else:
                parameter.zero_()
