"""What a model declares and what it asks of whoever serves it.

Dimension letters in shape comments: B rows, T positions of a row, C `n_embd`, H `n_head`, G `n_kv_head`, D `head_dim`,
F `n_hidden`, V `vocab_size`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, Generic, Literal, Protocol, TypeVar

import msgspec
import torch
from torch import Tensor, nn
from typing_extensions import override

from training.errors import ConfigError

UNBOUNDED_CONTEXT = 2**16
"""What a model says that could go on for ever: the service counts with it."""


class KVSpec(msgspec.Struct, frozen=True, kw_only=True):
    """State that grows: the keys and values of every position so far."""

    n_layer: int
    n_kv_head: int
    head_dim: int
    max_context: int
    """Positions after which the model has no more."""


class SlotSpec(msgspec.Struct, frozen=True, kw_only=True):
    """State of a fixed size: what a recurrent net or a convolution remembers of all that came before."""

    shapes: Mapping[str, tuple[int, ...]]
    """Name → shape of one row; float, and zero before the first token."""
    max_context: int = UNBOUNDED_CONTEXT


StateSpec = KVSpec | SlotSpec


class AttentionState(Protocol):
    """The past of the rows of one call, handed in by the engine; a model without it sees each row from zero."""

    def positions(self) -> Tensor:
        """Return the position of each token of this call in its own row, `(B, T)` int64."""

    def before(self, distance: int) -> Tensor:
        """Return the token `distance` places before each token of this call, `(B, T)` int64; 0 where there is none."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        """Append `k`, `v` to the past of `layer` and attend causally to all of it.

        Args:
            q: Queries `(B, T, H, D)`, rotated.
            k: Keys `(B, T, G, D)`, rotated.
            v: Values `(B, T, G, D)`.
            layer: Index of the layer, 0 … n_layer - 1.

        Returns:
            `(B, T, H, D)`.
        """


class SlotState(Protocol):
    """The past of the rows of one call, in fixed tensors; every row has T tokens, none of them padding."""

    def read(self, name: str) -> Tensor:
        """Return `name` of the rows as it was after their last token, `(B, *shape)`."""

    def write(self, name: str, value: Tensor) -> None:
        """Keep `name` of the rows as it is after this call's last token, `(B, *shape)`."""


class CarriedState(SlotState):
    """A state that stays from call to call, rows in place: for text that is read on and on.

    Args:
        spec: What is kept.
        batch_size: Rows B.
        device: Where it stands.
    """

    def __init__(self, spec: SlotSpec, batch_size: int, device: torch.device) -> None:
        self.tensors = {name: torch.zeros(batch_size, *shape, device=device) for name, shape in spec.shapes.items()}

    @override
    def read(self, name: str) -> Tensor:
        return self.tensors[name]

    @override
    def write(self, name: str, value: Tensor) -> None:
        """Keep `name` of the rows, without its gradient: that is what truncates backpropagation through time."""
        self.tensors[name] = value.detach().to(self.tensors[name].dtype)


State = TypeVar("State", contravariant=True)
ParameterGroup = Literal["embed", "head", "matrix", "other"]
"""What a parameter is to the optimizer, which has a learning rate for each: a table, the head, a matrix, the rest."""


class LanguageModel(nn.Module, ABC, Generic[State]):
    """A model of the next token: its body makes `hidden`, its head the logits.

    Every family is such a module, without modes, built as `Family(config, generator)`; `embed_tokens` and `lm_head` may
    be one matrix.
    """

    config: Any
    """The table of `training.model_config` that it was made from."""
    lm_head: nn.Linear

    @property
    @abstractmethod
    def embed_tokens(self) -> nn.Embedding:
        """The table of token embeddings, `(V, C)`."""

    @property
    @abstractmethod
    def state_spec(self) -> StateSpec:
        """What of the past the model needs kept."""

    @property
    def blocks(self) -> Iterable[nn.Module]:
        """The parts that are worth compiling, each on its own."""
        return ()

    def group_of(self, name: str) -> ParameterGroup:
        """Return the group of a parameter by what it is a part of; a family with parts of another kind says it here."""
        module = self.get_submodule(name.rpartition(".")[0])
        if isinstance(module, nn.Embedding):
            return "embed"
        if module is self.lm_head:
            return "head"
        return "matrix" if self.get_parameter(name).dim() == 2 else "other"

    @abstractmethod
    def hidden(self, token_ids: Tensor, state: State | None = None) -> Tensor:
        """Return what the head reads, `(B, T)` int64 to `(B, T, C)`."""

    def forward(self, token_ids: Tensor, state: State | None = None) -> Tensor:
        """Return the logits of the next token at each position.

        Args:
            token_ids: `(B, T)` int64, 0 ≤ id < vocab_size.
            state: The rows' past; None: each row starts at position 0.

        Returns:
            `(B, T, V)`.
        """
        return self.lm_head(self.hidden(token_ids, state))

    @torch.no_grad()
    def scale_logits(self, factor: float) -> None:
        """Make the logits `factor` times as large, for good: by the head, or, where it is tied, by what it reads.

        Raises:
            ConfigError: a tied family whose body does not end in a scale of its own.
        """
        if self.config.tie_embeddings:
            raise ConfigError(
                "run.calibration_fraction: the head of this model is its embeddings, and cannot be scaled alone; "
                "set model.tie_embeddings = false"
            )
        for parameter in self.lm_head.parameters():
            parameter.mul_(factor)

    def tie(self) -> None:
        """Make the head read the embeddings' table, where the config says so."""
        if self.config.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight


def make_embedding(num_embeddings: int, width: int) -> nn.Embedding:
    """Make a table; on the meta device one that is not drawn, for drawing there imports torch's compiler."""
    table = torch.empty(num_embeddings, width)
    return nn.Embedding(num_embeddings, width, _weight=table if table.is_meta else None)
