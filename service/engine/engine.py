"""The engine: requests join and leave between steps, and each step computes a little of all of them."""

import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from service.engine.sampler import sample
from service.engine.scheduler import Scheduler, Work
from service.engine.sequence import Sequence
from service.engine.state_pool import PagePool
from service.protocol import Claim, End, FinishReason
from training.tokenizers.base import Tokenizer


class StepOutput(NamedTuple):
    """What a step made of one sequence."""

    id: str
    token_ids: tuple[int, ...]
    end: End | None


class StepStats(NamedTuple):
    """What the last step was."""

    batch_size: int = 0
    num_tokens: int = 0
    kv_cache_usage: float = 0.0
    num_preempted: int = 0


class Runner(Protocol):
    """What computes a step."""

    def run(self, works: list[Work]) -> Tensor:
        """Compute the works; return the logits that they want, in their order, `(S, V)` float32."""


class Engine:
    """Continues sequences.

    Args:
        runner: Computes logits.
        pool: Pages, as many as the runner's storage has.
        tokenizer: Of the model.
        max_context: Positions that the model has.
        max_num_seqs: Sequences in one step.
        max_step_tokens: Tokens in one step.
        device: Of the logits.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        runner: Runner,
        pool: PagePool,
        tokenizer: Tokenizer,
        *,
        max_context: int,
        max_num_seqs: int,
        max_step_tokens: int,
        device: torch.device,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.last_step = StepStats()
        self._runner = runner
        self._pool = pool
        self._scheduler = Scheduler(pool, max_num_seqs, max_step_tokens)
        self._tokenizer = tokenizer
        self._max_context = max_context
        self._max_num_seqs = max_num_seqs
        self._banned = torch.tensor(
            sorted(tokenizer.special_ids - {tokenizer.end_of_text_id}), dtype=torch.int64, device=device
        )
        self._sequences: dict[str, Sequence] = {}
        self._news: list[StepOutput] = []
        self._clock = clock

    @property
    def room(self) -> int:
        """How many more requests would be computed at once."""
        return max(0, self._max_num_seqs - len(self._sequences))

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do or to tell."""
        return bool(self._sequences or self._news)

    def add(self, claim: Claim) -> None:
        """Take a request; one that cannot be computed ends with an error at the next step."""
        sequence = Sequence(claim, self._tokenizer, self._clock())
        problem = self._problem(claim)
        if problem is not None:
            self._news.append(StepOutput(sequence.id, (), sequence.end("error", self._clock(), problem)))
            return
        self._sequences[sequence.id] = sequence
        self._scheduler.add(sequence)

    def abort(self, request_id: str) -> None:
        """Forget a request and free its pages; unknown: no error."""
        sequence = self._sequences.pop(request_id, None)
        if sequence is not None:
            self._scheduler.remove(sequence)

    def step(self) -> list[StepOutput]:
        """Compute one step; return the sequences with news."""
        num_preemptions = self._scheduler.num_preemptions
        works = self._scheduler.schedule()
        outputs, self._news = self._news, []
        if works:
            logits = self._runner.run(works)
            sampled = [work.sequence for work in works if work.num_logits]
            token_ids = sample(logits, sampled, self._banned) if sampled else []
            self._advance(works)
            outputs += [self._take(sequence, token) for sequence, token in zip(sampled, token_ids, strict=True)]
        self.last_step = StepStats(
            batch_size=len(works),
            num_tokens=sum(work.num_tokens for work in works),
            kv_cache_usage=self._pool.usage,
            num_preempted=self._scheduler.num_preemptions - num_preemptions,
        )
        return outputs

    def _problem(self, claim: Claim) -> str | None:
        request = claim.request
        if not request.token_ids or request.cost > self._max_context:
            return f"{request.cost} tokens do not fit a context of {self._max_context}"
        if not all(0 <= token_id < self._tokenizer.vocab_size for token_id in request.token_ids):
            return f"a token id is outside the vocabulary of {self._tokenizer.vocab_size}"
        if request.id in self._sequences:
            return "a request of this id is being computed"
        return None

    def _advance(self, works: list[Work]) -> None:
        for sequence, num_tokens in works:
            sequence.num_computed_tokens += num_tokens

    def _take(self, sequence: Sequence, token_id: int | None) -> StepOutput:
        """Append a token; let the sequence go if it ends here."""
        now = self._clock()
        if token_id is None:
            return self._finish(sequence, (), "error", "the model's logits are not finite")
        reason = sequence.append(token_id, now)
        if reason is None:
            return StepOutput(sequence.id, (token_id,), None)
        return self._finish(sequence, (token_id,), reason)

    def _finish(
        self, sequence: Sequence, token_ids: tuple[int, ...], reason: FinishReason, error: str | None = None
    ) -> StepOutput:
        self.abort(sequence.id)
        return StepOutput(sequence.id, token_ids, sequence.end(reason, self._clock(), error))
