"""What a model declares and what it asks of whoever serves it.

Dimension letters in shape comments: B rows, T positions of a row, C `n_embd`, H `n_head`, G `n_kv_head`, D `head_dim`,
F `n_hidden`, V `vocab_size`.
"""

from typing import Protocol

import msgspec
from torch import Tensor


class KVSpec(msgspec.Struct, frozen=True, kw_only=True):
    """State that grows: the keys and values of every position so far."""

    n_layer: int
    n_kv_head: int
    head_dim: int
    max_context: int
    """Positions after which the model has no more."""


class DecodeState(Protocol):
    """The past of the rows of one call, handed in by the engine; a model without it sees each row from zero."""

    def positions(self) -> Tensor:
        """Return the position of each token of this call in its own row, `(B, T)` int64."""

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
