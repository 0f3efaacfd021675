"""One forward pass for a step: packs the works into one row, projects only what is sampled."""

from collections.abc import Sequence as Ordered
from itertools import accumulate

import torch
from torch import Tensor

from service.engine.paged_kv import PagedKV
from service.engine.scheduler import Work
from training.models.gpt import GPT


class ModelRunner:
    """Runs a model over paged keys and values.

    Args:
        model: In evaluation mode, on the device of `kv`.
        kv: Where the past is kept.
    """

    def __init__(self, model: GPT, kv: PagedKV) -> None:
        self._model = model
        self._kv = kv

    @torch.inference_mode()
    def run(self, works: Ordered[Work]) -> Tensor:
        """Compute the works; return the logits that they want, in their order, `(S, V)` float32."""
        ids: list[int] = []
        for sequence, num_tokens in works:
            first = sequence.num_computed_tokens
            ids += sequence.token_ids[first : first + num_tokens]
        device = self._kv.keys.device
        hidden = self._model.hidden(torch.tensor([ids], device=device), self._kv.state(works))[0]  # (T, C)
        ends = accumulate(work.num_tokens for work in works)
        wanted = [at for work, end in zip(works, ends, strict=True) for at in range(end - work.num_logits, end)]
        return self._model.lm_head(hidden[wanted]).float()
