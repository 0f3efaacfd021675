"""How likely tokens were, from the model's own logits; only rows that want it are looked at."""

from collections.abc import Sequence as Ordered

import torch
from torch import Tensor

from service.engine.scheduler import ScheduledChunk
from service.engine.sequence import Sequence
from service.protocol import TokenLogprobs


class Drawn:
    """Log-probabilities of the rows that tokens are drawn from, kept before sampling changes the rows.

    Args:
        logits: `(S, V)`, as the model made them.
        sequences: The S sequences.
    """

    def __init__(self, logits: Tensor, sequences: Ordered[Sequence]) -> None:
        self._sequences = sequences
        self._rows = [row for row, s in enumerate(sequences) if s.request.params.logprobs is not None]
        self._logprobs = logits[self._rows].log_softmax(-1) if self._rows else None  # (rows, V)

    def tell(self, token_ids: Ordered[int | None]) -> list[tuple[TokenLogprobs, ...]]:
        """Return what is told of the tokens drawn: of each one entry, or none where it is not wanted."""
        entries: list[tuple[TokenLogprobs, ...]] = [()] * len(self._sequences)
        if self._logprobs is not None:
            drawn = [token_ids[row] or 0 for row in self._rows]
            counts = [_count(self._sequences[row]) for row in self._rows]
            for row, entry in zip(self._rows, _describe(self._logprobs, drawn, counts), strict=True):
                entries[row] = (entry,)
        return entries


def score_prompts(logits: Tensor, chunks: Ordered[ScheduledChunk]) -> Tensor:
    """Add to `prompt_logprobs` of the sequences that want them; before the chunks count as computed.

    Args:
        logits: Of the chunks, `(rows, V)`.
        chunks: In the order of the rows.

    Returns:
        The rows `(S, V)` of the S chunks that reach the end of their sequence: what the next tokens are drawn from.
    """
    last, end = [], 0
    for chunk in chunks:
        first, end = end, end + chunk.num_logits
        if chunk.reaches_end:
            last.append(end - 1)
        if chunk.sequence.wants_prompt_logprobs:
            _score(logits[first:end], chunk)
    return logits if len(last) == len(logits) else logits[last]


def _score(logits: Tensor, chunk: ScheduledChunk) -> None:
    sequence, first = chunk.sequence, chunk.sequence.num_computed_tokens
    # A token's logits tell of the next one. After a preemption some were scored before.
    known = len(sequence.prompt_logprobs)
    stop = min(first + chunk.num_tokens, sequence.num_prompt_tokens - 1)
    if known < stop:
        logprobs = logits[known - first : stop - first].log_softmax(-1)  # (stop - known, V)
        followers = sequence.token_ids[known + 1 : stop + 1]
        sequence.prompt_logprobs += _describe(logprobs, followers, [_count(sequence)] * len(followers))


def _count(sequence: Sequence) -> int:
    return sequence.request.params.logprobs or 0


def _describe(logprobs: Tensor, token_ids: Ordered[int], counts: Ordered[int]) -> list[TokenLogprobs]:
    """Look up one token in each row of `logprobs` `(R, V)`, and the row's likeliest, as many as `counts` says."""
    chosen = logprobs.gather(1, torch.tensor(token_ids, device=logprobs.device).unsqueeze(1)).squeeze(1)
    top = logprobs.topk(min(max(counts), logprobs.size(1)))
    rows = zip(token_ids, chosen.tolist(), top.indices.tolist(), top.values.tolist(), counts, strict=True)
    return [
        TokenLogprobs(token_id=token_id, logprob=logprob, top=tuple(zip(ids, values, strict=True))[:count])
        for token_id, logprob, ids, values, count in rows
    ]
