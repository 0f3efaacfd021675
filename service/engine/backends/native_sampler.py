"""What `torch_sampler` does, in one native call for all rows of a step."""

from array import array
from collections.abc import Iterable
from collections.abc import Sequence as Ordered
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from typing_extensions import override

from service.engine.backends.base import Sampler
from service.engine.backends.torch_sampler import NOT_FINITE
from service.engine.kernels.library import require_kernels
from service.engine.kernels.structures import Draw
from service.engine.sequence import Sequence


class _Plan(NamedTuple):
    """How the tokens of one sequence are drawn; all but its position and tokens."""

    draw: Draw
    penalizes: bool
    kept: tuple["array[int]", "array[float]"]
    """What `draw` points to."""


class NativeSampler(Sampler):
    """Draws by the kernels.

    Args:
        banned: Ids that are never drawn.
    """

    def __init__(self, banned: Iterable[int]) -> None:
        self._sample = require_kernels().minigpt_sample
        self._banned = array("q", banned)
        self._plans: WeakKeyDictionary[Sequence, _Plan] = WeakKeyDictionary()

    @override
    def __call__(self, logits: Tensor, sequences: Ordered[Sequence]) -> list[int | None]:
        count = len(sequences)
        draws, drawn, tokens = (Draw * count)(), array("q", bytes(8 * count)), []
        for row, sequence in enumerate(sequences):
            plan = self._plans.get(sequence)
            if plan is None:
                plan = self._plans[sequence] = _make_plan(sequence)
            plan.draw.position = sequence.num_generated
            if plan.penalizes:
                tokens.append(array("q", sequence.token_ids))
                plan.draw.token_ids, plan.draw.num_tokens = tokens[-1].buffer_info()
            draws[row] = plan.draw
        rows = (logits.data_ptr(), logits.stride(0), logits.size(1), draws, count)
        banned = self._banned.buffer_info()
        self._sample(*rows, *banned, torch.get_num_threads(), drawn.buffer_info()[0])
        return [None if token_id == NOT_FINITE else token_id for token_id in drawn]


def _make_plan(sequence: Sequence) -> _Plan:
    params = sequence.request.params
    bias_ids, bias = array("q", params.logit_bias), array("f", params.logit_bias.values())
    draw = Draw(
        seed=params.seed,
        choice=params.choice,
        temperature=params.temperature,
        top_p=params.top_p,
        min_p=params.min_p,
        top_k=params.top_k or 0,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        num_bias=len(bias_ids),
        bias_ids=bias_ids.buffer_info()[0],
        bias=bias.buffer_info()[0],
        num_prompt=sequence.num_prompt_tokens,
    )
    penalizes = params.repetition_penalty != 1.0 or bool(params.presence_penalty or params.frequency_penalty)
    return _Plan(draw, penalizes, (bias_ids, bias))
