"""Embeddings of the few tokens that end at a position, added to the token's own."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.models.base import AttentionState, make_embedding

_MULTIPLIER = 0x9E3779B97F4A7C15 - 2**64  # 2⁶⁴ divided by the golden ratio, as an int64
"""Source: multiplicative hashing, Knuth, The Art of Computer Programming 3, section 6.4."""


class NgramEmbeddings(nn.Module):
    """A table for each length of n-gram; n-grams that do not all fit share rows by a hash.

    Args:
        orders: Lengths n of the n-grams, each at least 2.
        num_rows: Most rows of a table.
        vocab_size: Entries V of the vocabulary; V itself stands for 'nothing before'.
        width: Of an embedding.

    Source: Svenstrup et al. 2017, Hash Embeddings (arXiv 1709.03933), with one hash; Joulin et al. 2016
    (arXiv 1607.01759) for n-grams as features.
    """

    def __init__(self, orders: tuple[int, ...], num_rows: int, vocab_size: int, width: int) -> None:
        super().__init__()
        self.base = vocab_size + 1
        self.num_rows = {order: min(num_rows, self.base**order) for order in orders}
        self.tables = nn.ModuleDict({str(order): make_embedding(rows, width) for order, rows in self.num_rows.items()})

    def forward(self, token_ids: Tensor, state: AttentionState | None) -> Tensor:
        """Map `(B, T)` to `(B, T, C)`."""
        total = torch.zeros((), device=token_ids.device)
        number = token_ids  # of the n-gram; its digits are the ids
        for order in range(2, max(self.num_rows) + 1):
            number = number + self.base ** (order - 1) * self._before(token_ids, order - 1, state)
            if order in self.num_rows:
                total = total + self.tables[str(order)](self._row(number, order))
        return total

    def _before(self, token_ids: Tensor, distance: int, state: AttentionState | None) -> Tensor:
        """Return the token `distance` places before each, `(B, T)`."""
        nothing = self.base - 1
        if state is None:
            return F.pad(token_ids, (distance, 0), value=nothing)[:, : token_ids.size(1)]
        return state.before(distance).masked_fill(state.positions() < distance, nothing)

    def _row(self, number: Tensor, order: int) -> Tensor:
        rows = self.num_rows[order]
        if rows == self.base**order:
            return number
        return ((number * _MULTIPLIER) >> 33 & 0x7FFFFFFF) % rows
