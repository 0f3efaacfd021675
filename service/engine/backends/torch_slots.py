"""Slots: what a model of fixed state remembers of each sequence, and the runner that computes over them with torch.

A slot is a page that holds a whole context: a sequence has one from its admission to its end, so pool and scheduler are
those of the pages. No part of it can be found again by another sequence: it tells of all tokens so far, or of none.

Libraries choose the order of a product's sums by its shape. So every call has the same one, some rows of one token: its
logits are the same bits alone, in any batch and in any chunks.
"""

from collections.abc import Sequence as Ordered
from math import prod

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from service.engine.backends.base import Runner
from service.engine.backends.step_inputs import upload
from service.engine.scheduler import ScheduledChunk
from training.models.base import LanguageModel, SlotSpec, SlotState

ROWS_ON_CPU = 8
"""Of a call: with one row of its own a product reads its weights as long; more are wasted on a sequence alone."""


class Slots:
    """The storage, and one slot more, for rows that belong to nobody.

    Args:
        spec: What is kept of a sequence.
        num_slots: Sequences of which it is kept.
        dtype: Of what is kept.
        device: Where it stands.
    """

    def __init__(self, spec: SlotSpec, num_slots: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self.device = device
        self.spare = num_slots
        self.tensors = {
            name: torch.zeros(num_slots + 1, *shape, dtype=dtype, device=device) for name, shape in spec.shapes.items()
        }

    @staticmethod
    def slot_bytes(spec: SlotSpec, dtype: torch.dtype) -> int:
        """Return what one slot takes."""
        return dtype.itemsize * sum(map(prod, spec.shapes.values()))

    def clear_new(self, chunks: Ordered[ScheduledChunk]) -> None:
        """Let the slots of those that begin be as before a first token, whatever a former sequence left there."""
        if new := [chunk.sequence.page_table[0] for chunk in chunks if not chunk.sequence.num_computed_tokens]:
            rows = upload(np.asarray(new), self.device)
            for tensor in self.tensors.values():
                tensor.index_fill_(0, rows, 0)


class SlotRows(SlotState):
    """The state of one call.

    Args:
        slots: The storage.
        rows: The slot of each row, `(B,)` int64.
    """

    def __init__(self, slots: Slots, rows: Tensor) -> None:
        self._tensors = slots.tensors
        self._rows = rows

    @override
    def read(self, name: str) -> Tensor:
        return self._tensors[name].index_select(0, self._rows)

    @override
    def write(self, name: str, value: Tensor) -> None:
        kept = self._tensors[name]
        kept.index_copy_(0, self._rows, value.to(kept.dtype))


class TorchSlotRunner(Runner):
    """Runs a model over slots: a token of each of so many sequences in one call, over and over.

    Args:
        model: In evaluation mode, on the device of `slots`.
        slots: Where the past is kept.
        num_rows: Rows of every call.
    """

    def __init__(self, model: LanguageModel[SlotState], slots: Slots, num_rows: int = ROWS_ON_CPU) -> None:
        self._model = model
        self._slots = slots
        self._num_rows = num_rows

    @override
    @torch.inference_mode()
    def run(self, chunks: Ordered[ScheduledChunk]) -> Tensor:
        self._slots.clear_new(chunks)
        columns = [(chunk.token_ids, chunk.sequence.page_table[0]) for chunk in chunks]
        first_wanted = [chunk.num_tokens - chunk.num_logits for chunk in chunks]
        logits: dict[tuple[int, int], Tensor] = {}  # of a chunk, at one of its tokens: `(V,)`
        for at in range(max(chunk.num_tokens for chunk in chunks)):
            going = [index for index, chunk in enumerate(chunks) if at < chunk.num_tokens]
            for first in range(0, len(going), self._num_rows):
                rows = going[first : first + self._num_rows]
                hidden = self._call([(token_ids[at], slot) for token_ids, slot in (columns[index] for index in rows)])
                wanted = [(row, index) for row, index in enumerate(rows) if at >= first_wanted[index]]
                if wanted:
                    found = self._model.lm_head(hidden).float()  # (B, V)
                    logits |= {(index, at): found[row] for row, index in wanted}
        none = torch.empty(0, self._model.lm_head.out_features, device=self._slots.device)
        return torch.stack([logits[place] for place in sorted(logits)]) if logits else none

    def _call(self, tokens: Ordered[tuple[int, int]]) -> Tensor:
        """Compute at most B tokens, each with its slot; return what the head reads, `(B, C)`."""
        unused = [(0, self._slots.spare)] * (self._num_rows - len(tokens))
        token_ids, slots = upload(np.array([*tokens, *unused]).T.copy(), self._slots.device)
        return self._model.hidden(token_ids.unsqueeze(1), SlotRows(self._slots, slots)).squeeze(1)
