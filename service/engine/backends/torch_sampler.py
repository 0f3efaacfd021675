"""The next token of each row from its logits: penalties, filters, one random number that (seed, position) fixes."""

from collections import Counter
from collections.abc import Iterable
from collections.abc import Sequence as Ordered
from functools import partial

import numpy as np
import torch
from torch import Tensor

from service.engine.backends.step_inputs import upload
from service.engine.sequence import Sequence
from service.protocol import SamplingParams

NOT_FINITE = -1
"""On the device: no token could be drawn."""
_MASK = (1 << 64) - 1


def uniform(seed: int, choice: int, position: int) -> float:
    """Return the random number of one token, 0 ≤ u < 1: a function of its arguments, on every machine the same.

    Args:
        seed: Of the request.
        choice: Index of the sequence among the choices of its prompt.
        position: Tokens generated before it.

    Source: SplitMix64 (Steele, Lea and Flood 2014, Fast splittable pseudorandom number generators).
    """
    state = _mix(_mix(seed & _MASK) ^ choice)
    return (_mix(state ^ position) >> 11) * 2.0**-53


def _mix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


@torch.inference_mode()
def sample(logits: Tensor, sequences: Ordered[Sequence], banned: Tensor) -> list[int | None]:
    """Draw the next token of each sequence.

    A row's token depends on nothing but its own logits and parameters.

    Args:
        logits: `(S, V)` float32; changed in place.
        sequences: The S sequences.
        banned: Ids that are never drawn, int64.

    Returns:
        A token id each; None where the logits are not finite.
    """
    finite = logits.isfinite().all(dim=-1)  # (S,)
    logits[:, banned] = float("-inf")
    for row, sequence in enumerate(sequences):
        _adjust(logits, row, sequence)
    drawn = logits.argmax(-1)
    if any(sequence.request.params.temperature > 0 for sequence in sequences):
        greedy = _column((s.request.params.temperature == 0 for s in sequences), logits.device).squeeze(1)
        drawn = drawn.where(greedy > 0, _draw(logits, sequences))
    token_ids = drawn.where(finite, NOT_FINITE).tolist()  # the only time that the host waits for the device
    return [None if token_id == NOT_FINITE else token_id for token_id in token_ids]


def _adjust(all_logits: Tensor, row: int, sequence: Sequence) -> None:
    """Apply bias and penalties to one row of `(S, V)`, in place.

    Source: repetition penalty, Keskar et al. 2019 (arXiv 1909.05858), section 4.1, over prompt and generated tokens;
    presence and frequency penalties as OpenAI defines them, over generated tokens.
    """
    params = sequence.request.params
    ids_of = partial(_upload, dtype=np.int64, device=all_logits.device)
    values_of = partial(_upload, dtype=np.float32, device=all_logits.device)
    if params.logit_bias:
        all_logits[row, ids_of(params.logit_bias)] += values_of(params.logit_bias.values())
    if params.repetition_penalty != 1.0:
        ids = ids_of(set(sequence.token_ids))
        seen = all_logits[row, ids]
        penalty = params.repetition_penalty
        all_logits[row, ids] = torch.where(seen > 0, seen / penalty, seen * penalty)
    if (params.presence_penalty or params.frequency_penalty) and sequence.num_generated:
        counts = Counter(sequence.generated)
        penalties = [params.presence_penalty + params.frequency_penalty * count for count in counts.values()]
        all_logits[row, ids_of(counts)] -= values_of(penalties)


def _draw(logits: Tensor, sequences: Ordered[Sequence]) -> Tensor:
    """Draw from each row by inversion of its distribution, in order of ids; `(S,)` int64."""
    params = [sequence.request.params for sequence in sequences]
    column = partial(_column, device=logits.device)
    probabilities = (logits.double() / column(p.temperature or 1.0 for p in params)).softmax(-1)  # (S, V)
    if any(p.top_k is not None or p.top_p < 1.0 or p.min_p > 0.0 for p in params):
        probabilities = _filter(probabilities, params)
    cumulative = probabilities.cumsum(-1)
    total = cumulative[:, -1:]
    numbers = column(uniform(p.seed, p.choice, s.num_generated) for p, s in zip(params, sequences, strict=True))
    # Below the total even where the product rounds up to it; then the first id whose cumulative share is greater.
    target = torch.minimum(numbers * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True).squeeze(1)


def _filter(probabilities: Tensor, params: Ordered[SamplingParams]) -> Tensor:
    """Set to 0 what top-k, then top-p, then min-p leave out of each row `(S, V)`; ties at a border stay in.

    Source: top-p, Holtzman et al. 2020 (arXiv 1904.09751); min-p, Nguyen et al. 2024 (arXiv 2407.01082).
    """
    column = partial(_column, device=probabilities.device)
    num_ids = probabilities.size(1)
    ordered = probabilities.sort(dim=-1, descending=True).values  # (S, V)
    last = column(min(p.top_k or num_ids, num_ids) - 1 for p in params).long()  # (S, 1)
    by_top_k = ordered.gather(1, last)
    kept = ordered.where(ordered >= by_top_k, 0.0)
    # 2 is never reached: a row without top-p keeps even what rounding hides from a sum of 1.
    shares = column(p.top_p if p.top_p < 1.0 else 2.0 for p in params) * kept.sum(-1, keepdim=True)
    num_below = (kept.cumsum(-1) < shares).sum(-1, keepdim=True)
    by_top_p = ordered.gather(1, num_below.clamp_max(num_ids - 1))
    by_min_p = ordered[:, :1] * column(p.min_p for p in params)
    border = torch.maximum(torch.maximum(by_top_k, by_top_p), by_min_p)
    return probabilities.where(probabilities >= border, 0.0)


def _column(values: Iterable[float], device: torch.device) -> Tensor:
    return _upload(values, np.float64, device).unsqueeze(1)  # (S, 1)


def _upload(values: Iterable[float], dtype: type[np.generic], device: torch.device) -> Tensor:
    return upload(np.fromiter(values, dtype), device)
