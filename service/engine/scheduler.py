"""What the next step computes: decodes first, then prefill chunks, within a budget of tokens and the free pages."""

from collections import deque
from typing import NamedTuple

from service.engine.sequence import Sequence
from service.engine.state_pool import PagePool


class Work(NamedTuple):
    """A share of a step: the next `num_tokens` uncomputed tokens of a sequence."""

    sequence: Sequence
    num_tokens: int

    @property
    def num_logits(self) -> int:
        """Of how many of these tokens, the last ones, the logits are wanted: of none unless the last known is there."""
        return int(self.num_tokens == self.sequence.num_to_compute)


class Scheduler:
    """Lets sequences join and leave between steps.

    The oldest sequence always proceeds, so nobody starves: when pages run out, the newest one gives its own back and
    computes them again later (preemption by recompute).

    Args:
        pool: The pages; at least one full context of them.
        max_num_seqs: Sequences in one step.
        max_step_tokens: Tokens in one step, at least `max_num_seqs`.
    """

    def __init__(self, pool: PagePool, max_num_seqs: int, max_step_tokens: int) -> None:
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        """Oldest first."""
        self.num_preemptions = 0
        self._pool = pool
        self._max_num_seqs = max_num_seqs
        self._max_step_tokens = max_step_tokens

    def add(self, sequence: Sequence) -> None:
        """Let `sequence` wait for its turn."""
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence and free its pages."""
        (self.running if sequence in self.running else self.waiting).remove(sequence)
        self._pool.release(sequence)

    def schedule(self) -> list[Work]:
        """Return the work of the next step, single tokens first; its pages are reserved."""
        works: list[Work] = []
        budget = self._max_step_tokens
        num_preemptions = self.num_preemptions
        for sequence in sorted(self.running, key=lambda running: running.num_to_compute > 1):
            num_tokens = min(sequence.num_to_compute, budget)
            if num_tokens and self._reserve(sequence, num_tokens, works):
                works.append(Work(sequence, num_tokens))
                budget -= num_tokens
        if self.num_preemptions == num_preemptions:
            self._admit(works, budget)
        return sorted(works, key=lambda work: work.num_tokens > 1)

    def _reserve(self, sequence: Sequence, num_tokens: int, works: list[Work]) -> bool:
        """Get pages for `sequence`, if need be from newer ones; False when it was itself the newest, or went before."""
        while sequence in self.running:
            if self._pool.grow(sequence, sequence.num_computed_tokens + num_tokens):
                return True
            self._preempt(self.running[-1], works)
        return False

    def _preempt(self, sequence: Sequence, works: list[Work]) -> None:
        self.running.remove(sequence)
        self._pool.release(sequence)
        self.waiting.appendleft(sequence)
        self.num_preemptions += 1
        works[:] = [work for work in works if work.sequence is not sequence]

    def _admit(self, works: list[Work], budget: int) -> None:
        while self.waiting and budget and len(self.running) < self._max_num_seqs:
            sequence = self.waiting[0]
            # All of its known tokens must fit, or two half-done prefills could drive each other out for ever.
            if not self._pool.grow(sequence, len(sequence.token_ids)):
                return
            self.running.append(self.waiting.popleft())
            works.append(Work(sequence, min(sequence.num_to_compute, budget)))
            budget -= works[-1].num_tokens
