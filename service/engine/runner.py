"""One forward pass for a step: packs the works into one row, projects only what is sampled."""

from collections.abc import Sequence as Ordered
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from service.engine.paged_kv import Attention, PagedKV, PagedState
from service.engine.scheduler import Work
from service.engine.step_inputs import Integers, read_step, upload
from training.models.gpt import GPT


class ModelRunner:
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

    @torch.inference_mode()
    def run(self, works: Ordered[Work]) -> Tensor:
        """Compute the works; return the logits that they want, in their order, `(S, V)` float32."""
        device = self._kv.keys.device
        inputs = read_step(works, self._kv.page_size, device, self._model.num_before)
        index = upload(index_wanted(works), device)  # before the pass: it is behind it that one waits
        hidden = self._model.hidden(inputs.token_ids, self._attention(self._kv, inputs))[0]  # (T, C)
        return self._model.lm_head(hidden.index_select(0, index)).float()


def index_wanted(works: Ordered[Work]) -> Integers:
    """Return which of a step's tokens, one work after the other, the logits are wanted of, `(S,)` int64."""
    ends = accumulate(work.num_tokens for work in works)
    wanted = [at for work, end in zip(works, ends, strict=True) for at in range(end - work.num_logits, end)]
    return np.asarray(wanted, dtype=np.int64)
