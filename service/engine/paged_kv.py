"""Keys and values in pages: storage that a model's attention appends to and reads through `DecodeState`."""

from collections.abc import Sequence as Ordered

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from service.engine.scheduler import Work
from training.models.base import KVSpec


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
        self.page_size = page_size
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)

    @staticmethod
    def page_bytes(spec: KVSpec, page_size: int, dtype: torch.dtype) -> int:
        """Return what one page takes, keys and values of all layers."""
        return 2 * spec.n_layer * spec.n_kv_head * page_size * spec.head_dim * dtype.itemsize

    def state(self, works: Ordered[Work]) -> "PagedState":
        """Return the past of the sequences of one step."""
        return PagedState(self, works)

    def slots(self, work: Work, first: int, last: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Return the slots of the positions first … last - 1 of a sequence, `(last - first,)`."""
        positions = np.arange(first, last)
        pages = np.asarray(work.sequence.page_table, dtype=np.int64)
        return pages[positions // self.page_size] * self.page_size + positions % self.page_size


class PagedState:
    """The `DecodeState` of one step, its rows packed into one: B = 1, T = all tokens of the step.

    Works of one token come first and are attended to together; each longer prefill chunk on its own.
    """

    def __init__(self, kv: PagedKV, works: Ordered[Work]) -> None:
        self._kv = kv
        spans = [(work.sequence.num_computed_tokens, work.num_tokens) for work in works]
        device = kv.keys.device
        positions = np.concatenate([np.arange(first, first + count) for first, count in spans])
        written = np.concatenate([kv.slots(w, first, first + n) for w, (first, n) in zip(works, spans, strict=True)])
        self._positions = torch.from_numpy(positions).to(device).unsqueeze(0)  # (1, T)
        self._written = torch.from_numpy(written).to(device)  # (T,)
        decodes = [work for work in works if work.num_tokens == 1]
        self._num_decodes = len(decodes)
        if decodes:
            self._gathered, self._beyond = self._decode_index(decodes)
        self._chunks = [
            (torch.from_numpy(kv.slots(work, 0, first + count)).to(device), count)
            for work, (first, count) in zip(works, spans, strict=True)
            if count > 1
        ]

    def positions(self) -> Tensor:
        """Return the position of each token in its own sequence, `(1, T)`."""
        return self._positions

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        """Append keys and values, attend each token to its own sequence; `(1, T, H, D)` to `(1, T, H, D)`."""
        keys, values = self._kv.keys[layer], self._kv.values[layer]  # (G, slots, D)
        keys.index_copy_(1, self._written, k[0].transpose(0, 1).to(keys.dtype))
        values.index_copy_(1, self._written, v[0].transpose(0, 1).to(values.dtype))
        queries = q[0].to(keys.dtype)  # (T, H, D)
        parts = []
        if self._num_decodes:
            parts.append(self._attend_decodes(queries[: self._num_decodes], keys, values))
        start = self._num_decodes
        for slots, count in self._chunks:
            parts.append(_attend_chunk(queries[start : start + count], keys[:, slots], values[:, slots]))
            start += count
        return torch.cat(parts).unsqueeze(0).to(q.dtype)

    def _decode_index(self, decodes: list[Work]) -> tuple[Tensor, Tensor]:
        """Return the slots `(R·L,)` of the rows' pasts, padded to the longest L; where padding is, `(R, 1, L)`."""
        device = self._kv.keys.device
        lengths = [work.sequence.num_computed_tokens + 1 for work in decodes]
        longest = max(lengths)
        slots = np.zeros((len(decodes), longest), dtype=np.int64)
        for row, (work, length) in enumerate(zip(decodes, lengths, strict=True)):
            slots[row, :length] = self._kv.slots(work, 0, length)
            slots[row, length:] = slots[row, 0]  # its own: a weight of 0 times a stranger's NaN is NaN
        beyond = np.arange(longest)[None, :] >= np.asarray(lengths)[:, None]
        return torch.from_numpy(slots.ravel()).to(device), torch.from_numpy(beyond).to(device).unsqueeze(1)

    def _attend_decodes(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend one query a row: `(R, H, D)` to `(R, H, D)`.

        Two batched products instead of the fused kernel, which on CPUs costs 5 µs for each row and head.
        """
        (R, H, D), G = q.shape, keys.size(0)  # noqa: N806
        k = keys.index_select(1, self._gathered).view(G * R, -1, D)  # (G·R, L, D)
        v = values.index_select(1, self._gathered).view(G * R, -1, D)
        grouped = q.view(R, G, H // G, D).transpose(0, 1).reshape(G * R, H // G, D)
        scores = (grouped @ k.transpose(1, 2)).float().view(G, R, H // G, -1) * D**-0.5  # (G, R, H/G, L)
        weights = scores.masked_fill(self._beyond, float("-inf")).softmax(-1).to(v.dtype)
        y = weights.view(G * R, H // G, -1) @ v  # (G·R, H/G, D)
        return y.view(G, R, H // G, D).transpose(0, 1).reshape(R, H, D)


def _attend_chunk(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend the last T of L positions causally: q `(T, H, D)`, k and v `(G, L, D)`, to `(T, H, D)`."""
    (T, H, _), (G, L, _) = q.shape, k.shape  # noqa: N806
    mask = torch.ones(T, L, dtype=torch.bool, device=q.device).tril(L - T)
    y = F.scaled_dot_product_attention(q.transpose(0, 1)[None], k[None], v[None], attn_mask=mask, enable_gqa=G < H)
    return y[0].transpose(0, 1)
