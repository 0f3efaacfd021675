"""Keys and values in pages: storage that a model's attention appends to and reads through `AttentionState`."""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from service.engine.backends.step_inputs import StepInputs
from training.models.base import AttentionState, KVSpec

FLASH_PAGE_SIZE = 256
"""Flash attention reads pages of this many tokens, or of a multiple, in place."""


class PagedKV:
    """The storage.

    Args:
        spec: Layers and heads of the model.
        num_pages: Pages there are.
        page_size: Tokens in a page.
        dtype: Of keys and values.
        device: Where they stand.
    """

    def __init__(
        self, spec: KVSpec, num_pages: int, page_size: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        # Heads before slots: one gather gives each head's keys of a row as one contiguous matrix.
        shape = (spec.n_layer, spec.n_kv_head, num_pages * page_size, spec.head_dim)
        self.num_pages = num_pages
        self.page_size = page_size
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)

    @staticmethod
    def page_bytes(spec: KVSpec, page_size: int, dtype: torch.dtype) -> int:
        """Return what one page takes, keys and values of all layers."""
        return 2 * spec.n_layer * spec.n_kv_head * page_size * spec.head_dim * dtype.itemsize

    def pages(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return keys and values of one layer page by page, `(P, page_size, G, D)` each; nothing is copied."""
        keys, values = (
            stored[layer].view(-1, self.num_pages, self.page_size, stored.size(-1)).permute(1, 2, 0, 3)
            for stored in (self.keys, self.values)
        )
        return keys, values

    def append(self, k: Tensor, v: Tensor, slots: Tensor, layer: int) -> None:
        """Write keys and values `(1, T, G, D)` of one layer to their slots, `(T,)` int64."""
        for stored, new in ((self.keys[layer], k), (self.values[layer], v)):
            stored.index_copy_(1, slots, new[0].transpose(0, 1).to(stored.dtype))


Attention = Callable[[PagedKV, StepInputs], AttentionState]
"""Makes the state of one step."""


class PagedState(AttentionState):
    """The `AttentionState` of one step, its rows packed into one: B = 1, T = all tokens of the step.

    Rows of one token are attended to together; each longer prefill chunk on its own.
    """

    def __init__(self, kv: PagedKV, inputs: StepInputs) -> None:
        self._kv = kv
        self._inputs = inputs
        self._written = inputs.slots.long()
        self._num_decodes = inputs.counts.count(1)

    @override
    def positions(self) -> Tensor:
        return self._inputs.positions

    @override
    def before(self, distance: int) -> Tensor:
        return self._inputs.before[distance - 1].long()

    @override
    def attend(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        self._kv.append(k, v, self._written, layer)
        keys, values = self._kv.keys[layer], self._kv.values[layer]  # (G, slots, D)
        queries = q[0].to(keys.dtype)  # (T, H, D)
        parts = []
        if self._num_decodes:
            parts.append(self._attend_decodes(queries[: self._num_decodes], keys, values))
        start = self._num_decodes
        for slots, count in self._chunks:
            parts.append(_attend_chunk(queries[start : start + count], keys[:, slots], values[:, slots]))
            start += count
        return torch.cat(parts).unsqueeze(0).to(q.dtype)

    @cached_property
    def _decode_index(self) -> tuple[Tensor, Tensor]:
        """The slots `(R·L,)` of the rows' pasts, padded to the longest L; where padding is, `(R, 1, L)`."""
        rows = slice(self._num_decodes)
        every = torch.arange(max(self._inputs.bounds[rows]), device=self._written.device)  # (L,)
        last = self._inputs.lengths[rows].unsqueeze(1) - 1  # (R, 1)
        # Padding reads the row's own last key again: a weight of 0 times a stranger's NaN is NaN.
        slots = self._slots(rows, torch.minimum(every, last))  # (R, L)
        return slots.flatten(), (every > last).unsqueeze(1)

    @cached_property
    def _chunks(self) -> list[tuple[Tensor, int]]:
        """Of each row of more than one token: the slots `(L,)` of its past, and how many are this step's."""
        return [self._chunk(row) for row in range(self._num_decodes, len(self._inputs.counts))]

    def _chunk(self, row: int) -> tuple[Tensor, int]:
        positions = torch.arange(self._inputs.bounds[row], device=self._written.device)
        return self._slots(slice(row, row + 1), positions.unsqueeze(0))[0], self._inputs.counts[row]

    def _slots(self, rows: slice, positions: Tensor) -> Tensor:
        """Return where the positions `(R, L)` of some rows stand, `(R, L)` int64."""
        page_size = self._kv.page_size
        pages = self._inputs.page_tables[rows].long().gather(1, positions // page_size)
        return pages * page_size + positions % page_size

    def _attend_decodes(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend one query a row: `(R, H, D)` to `(R, H, D)`.

        Two batched products instead of the fused kernel, which on CPUs costs 5 µs for each row and head.
        """
        (R, H, D), G = q.shape, keys.size(0)  # noqa: N806
        gathered, beyond = self._decode_index
        k = keys.index_select(1, gathered).view(G * R, -1, D)  # (G·R, L, D)
        v = values.index_select(1, gathered).view(G * R, -1, D)
        grouped = q.view(R, G, H // G, D).transpose(0, 1).reshape(G * R, H // G, D)
        scores = (grouped @ k.transpose(1, 2)).float().view(G, R, H // G, -1) * D**-0.5  # (G, R, H/G, L)
        weights = scores.masked_fill(beyond, float("-inf")).softmax(-1).to(v.dtype)
        y = weights.view(G * R, H // G, -1) @ v  # (G·R, H/G, D)
        return y.view(G, R, H // G, D).transpose(0, 1).reshape(R, H, D)


def _attend_chunk(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend the last T of L positions causally: q `(T, H, D)`, k and v `(G, L, D)`, to `(T, H, D)`."""
    (T, H, _), (G, L, _) = q.shape, k.shape  # noqa: N806
    mask = torch.ones(T, L, dtype=torch.bool, device=q.device).tril(L - T)
    y = F.scaled_dot_product_attention(q.transpose(0, 1)[None], k[None], v[None], attn_mask=mask, enable_gqa=G < H)
    return y[0].transpose(0, 1)
