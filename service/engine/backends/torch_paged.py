"""The runner over pages with torch: a forward pass a step, all chunks in one row; only what is sampled is projected."""

from collections.abc import Sequence as Ordered
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from service.engine.backends.base import Runner
from service.engine.backends.paged_kv import Attention, PagedKV, PagedState
from service.engine.backends.step_inputs import Integers, read_step, upload
from service.engine.scheduler import ScheduledChunk
from training.models.gpt import GPT


class TorchRunner(Runner):
    """Runs a model over paged keys and values.

    Args:
        model: In evaluation mode, on the device of `kv`.
        kv: Where the past is kept.
        attention: How it is read.
    """

    def __init__(self, model: GPT, kv: PagedKV, attention: Attention = PagedState) -> None:
        self._model = model
        self._kv = kv
        self._attention = attention

    @override
    @torch.inference_mode()
    def run(self, chunks: Ordered[ScheduledChunk]) -> Tensor:
        device = self._kv.keys.device
        inputs = read_step(chunks, self._kv.page_size, device, self._model.num_before)
        index = upload(index_wanted(chunks), device)  # before the pass: it is behind it that one waits
        hidden = self._model.hidden(inputs.token_ids, self._attention(self._kv, inputs))[0]  # (T, C)
        return self._model.lm_head(hidden.index_select(0, index)).float()


def index_wanted(chunks: Ordered[ScheduledChunk]) -> Integers:
    """Return which of a step's tokens, one chunk after the other, the logits are wanted of, `(S,)` int64."""
    ends = accumulate(chunk.num_tokens for chunk in chunks)
    wanted = [at for chunk, end in zip(chunks, ends, strict=True) for at in range(end - chunk.num_logits, end)]
    return np.asarray(wanted, dtype=np.int64)
