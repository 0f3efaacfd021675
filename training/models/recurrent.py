"""Recurrent networks: what is known of the text so far is a vector in each layer, and every token moves it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from training.model_config import RecurrentConfig
from training.models.base import LanguageModel, SlotSpec, SlotState, make_embedding
from training.models.dropout import VariationalDropout

_CELLS: Mapping[str, Callable[..., Any]] = {
    "RNN_TANH": torch.rnn_tanh_cell,
    "RNN_RELU": torch.rnn_relu_cell,
    "LSTM": torch.lstm_cell,
    "GRU": torch.gru_cell,
}
"""One position of what torch's layers of these modes do to a whole window."""


class RecurrentLayer(nn.Module):
    """One of torch's layers, whose state comes and goes as `(S, F)` a row: an LSTM's h and c, the others' h alone.

    Source: Elman 1990 (Cognitive Science 14, 179–211), figure 2; Hochreiter and Schmidhuber 1997 (Neural Computation
    9, 1735–1780), section 4; Cho et al. 2014 (arXiv 1406.1078), equations 5 to 8.
    """

    def __init__(self, config: RecurrentConfig, layer: int) -> None:
        super().__init__()
        self.name = f"layers.{layer}"
        self.rnn = _make_rnn(config, config.hidden_width if layer else config.n_embd)
        self.is_lstm = config.cell == "lstm"

    def forward(self, x: Tensor, state: SlotState | None) -> Tensor:
        """Map `(B, T, …)` to `(B, T, F)`."""
        if state is None:
            return self.rnn(x)[0]
        past = state.read(self.name).to(x.dtype).transpose(0, 1).contiguous()  # (S, B, F)
        # One position is decoding: there a cell is up to thirty times faster than its layer.
        y, past = self._step(x, past) if x.size(1) == 1 else self._read(x, past)
        state.write(self.name, past.transpose(0, 1))
        return y

    def _read(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        y, last = self.rnn(x, torch.split(past, 1) if self.is_lstm else past)
        return y, torch.cat(last) if self.is_lstm else last

    def _step(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        cell, weights = _CELLS[self.rnn.mode], self.rnn.all_weights[0]
        last = cell(x[:, 0], past.unbind() if self.is_lstm else past[0], *weights)
        past = torch.stack(last) if self.is_lstm else last.unsqueeze(0)
        return past[0].unsqueeze(1), past


class Recurrent(LanguageModel[SlotState]):
    """An RNN, LSTM or GRU.

    Args:
        config: Its shape; `vocab_size` must be set.
        generator: Source of the initial weights; None: torch's own.
    """

    def __init__(self, config: RecurrentConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_width
        self.embedding = make_embedding(config.vocab_size, config.n_embd)
        self.layers = nn.ModuleList(RecurrentLayer(config, layer) for layer in range(config.n_layer))
        self.projection = nn.Identity() if width == config.n_embd else nn.Linear(width, config.n_embd, bias=False)
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
        """The state of each layer."""
        shape = (2 if self.config.cell == "lstm" else 1, self.config.hidden_width)
        return SlotSpec(shapes={f"layers.{layer}": shape for layer in range(self.config.n_layer)})

    def hidden(self, token_ids: Tensor, state: SlotState | None = None) -> Tensor:
        """Return what the head reads, `(B, T)` int64 to `(B, T, C)`."""
        x = self.dropout(self.embedding(token_ids))  # (B, T, C)
        for layer in self.layers:
            x = self.dropout(layer(x, state))  # (B, T, F)
        return self.projection(x)

    @torch.no_grad()
    def _initialize(self, generator: torch.Generator | None) -> None:
        """Draw weights: recurrent matrices that neither shrink nor grow a state, LSTMs that at first remember.

        Source: Saxe et al. 2014 (arXiv 1312.6120); forget gates, Jozefowicz et al. 2015 (PMLR 37).
        """
        if self.lm_head.weight.is_meta:  # to be loaded
            return
        for name, parameter in self.named_parameters():
            if "weight_hh" in name:
                for gate in torch.split(parameter, self.config.hidden_width):
                    nn.init.orthogonal_(gate, generator=generator)
            elif parameter.dim() == 2:
                parameter.normal_(0.0, parameter.size(1) ** -0.5, generator=generator)
            else:
                parameter.zero_()
                if self.config.cell == "lstm" and "bias_ih" in name:
                    parameter.chunk(4)[1].fill_(1.0)  # gates stand as input, forget, cell, output


def _make_rnn(config: RecurrentConfig, input_width: int) -> nn.RNNBase:
    match config.cell:
        case "rnn":
            return nn.RNN(input_width, config.hidden_width, nonlinearity=config.activation, batch_first=True)
        case "lstm":
            return nn.LSTM(input_width, config.hidden_width, batch_first=True)
        case "gru":
            return nn.GRU(input_width, config.hidden_width, batch_first=True)
