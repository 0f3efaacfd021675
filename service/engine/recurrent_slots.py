"""Slots: what a model of fixed state remembers of each sequence, and the runner that computes over them.

A slot is a page that holds a whole context: a sequence has one from its admission to its end, so pool and scheduler are
those of the pages. No part of it can be found again by another sequence: it tells of all tokens so far, or of none.
"""

from collections.abc import Sequence as Ordered
from itertools import groupby
from math import prod

import numpy as np
import torch
from torch import Tensor

from service.engine.runner import index_wanted
from service.engine.scheduler import Work
from service.engine.step_inputs import upload
from training.models.base import LanguageModel, SlotSpec, SlotState


class Slots:
    """The storage.

    Args:
        spec: What is kept of a sequence.
        num_slots: Sequences of which it is kept.
        dtype: Of what is kept.
        device: Where it stands.
    """

    def __init__(self, spec: SlotSpec, num_slots: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self.device = device
        self.tensors = {
            name: torch.zeros(num_slots, *shape, dtype=dtype, device=device) for name, shape in spec.shapes.items()
        }

    @staticmethod
    def slot_bytes(spec: SlotSpec, dtype: torch.dtype) -> int:
        """Return what one slot takes."""
        return dtype.itemsize * sum(map(prod, spec.shapes.values()))

    def clear(self, rows: Tensor) -> None:
        """Let the slots `(B,)` int64 be as before a first token, whatever a former sequence left there."""
        for tensor in self.tensors.values():
            tensor.index_fill_(0, rows, 0)


class SlotRows:
    """The `SlotState` of one call.

    Args:
        slots: The storage.
        rows: The slot of each row, `(B,)` int64.
    """

    def __init__(self, slots: Slots, rows: Tensor) -> None:
        self._tensors = slots.tensors
        self._rows = rows

    def read(self, name: str) -> Tensor:
        """Return a copy of `name` of the rows, `(B, *shape)`."""
        return self._tensors[name].index_select(0, self._rows)

    def write(self, name: str, value: Tensor) -> None:
        """Keep `name` of the rows, `(B, *shape)`."""
        kept = self._tensors[name]
        kept.index_copy_(0, self._rows, value.to(kept.dtype))


class SlotRunner:
    """Runs a model over slots: rows of equally many tokens in one call, so that none is padded.

    Args:
        model: In evaluation mode, on the device of `slots`.
        slots: Where the past is kept.
    """

    def __init__(self, model: LanguageModel[SlotState], slots: Slots) -> None:
        self._model = model
        self._slots = slots

    @torch.inference_mode()
    def run(self, works: Ordered[Work]) -> Tensor:
        """Compute the works; return the logits that they want, in their order, `(S, V)` float32."""
        if new := [work for work in works if not work.sequence.num_computed_tokens]:
            self._slots.clear(self._rows(new))
        calls = [self._call(list(alike)) for _, alike in groupby(works, key=lambda work: work.num_tokens)]
        hidden = torch.cat(calls).index_select(0, upload(index_wanted(works), self._slots.device))  # (S, C)
        return self._model.lm_head(hidden).float()

    def _call(self, works: Ordered[Work]) -> Tensor:
        """Compute works of T tokens each; return what the head reads of B·T tokens, `(B·T, C)`."""
        token_ids = upload(np.asarray([work.token_ids for work in works]), self._slots.device)  # (B, T)
        return self._model.hidden(token_ids, SlotRows(self._slots, self._rows(works))).flatten(0, 1)

    def _rows(self, works: Ordered[Work]) -> Tensor:
        return upload(np.asarray([work.sequence.page_table[0] for work in works]), self._slots.device)
