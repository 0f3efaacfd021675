"""What the next step computes: decodes first, then prefill chunks, within a budget of tokens and the free pages."""

import math
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from service.engine.page_pool import PagePool
from service.engine.sequence import Sequence

# The unit of cost is a token that has few tokens before it.
FIXED_COST = 4
"""Cost of any step: the weights are read, Python runs. Measured in bf16: about 7; less is assumed, to be safe."""
POSITIONS = 384
"""A token costs 1 more for each so many tokens before it in full pages: it attends to them. A slot is never full."""
PREFILL_SHARE = 2
"""The prefill in a step may cost twice the rest of it, for each sequence that waits. So beside one long prompt a token
comes after at most 3 times the usual time, and many waiting prompts do not wait for a few running streams."""


class ScheduledChunk(NamedTuple):
    """What a step computes of one sequence: its next tokens, and after the last known one a draft, if it has any."""

    sequence: Sequence
    num_tokens: int
    """Tokens that are computed, the draft included."""
    draft: tuple[int, ...] = ()
    """Guesses at the tokens that follow the last known one; this step checks them."""

    @property
    def token_ids(self) -> list[int]:
        """What is computed."""
        first = self.sequence.num_computed_tokens
        known = self.sequence.token_ids[first : first + self.num_tokens]
        return [*known, *self.draft]

    @property
    def reaches_end(self) -> bool:
        """Whether the last known token is there: the next one is drawn from its logits."""
        return self.num_tokens >= self.sequence.num_to_compute

    @property
    def num_logits(self) -> int:
        """Of how many of these tokens, the last ones, the logits are wanted."""
        if self.sequence.wants_prompt_logprobs or self.draft:
            return self.num_tokens
        return int(self.reaches_end)


class Scheduler:
    """Lets sequences join and leave between steps.

    The oldest sequence always proceeds, so nobody starves: when pages run out, the newest one gives its own back and
    computes them again later (preemption by recompute), or finds them in the cache.

    Args:
        pool: The pages; at least one full context of them.
        max_num_seqs: Sequences in one step.
        max_step_tokens: Tokens in one step, at least `max_num_seqs`.
    """

    def __init__(self, pool: PagePool, max_num_seqs: int, max_step_tokens: int) -> None:
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        """Oldest first."""
        self.num_preempted = 0
        """Sequences that lost their pages in the last step."""
        self.num_queried_tokens = 0
        """Tokens of the sequences that were admitted in the last step, for the first time, and looked up."""
        self.num_found_tokens = 0
        """Of these, the ones that the cache had."""
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

    def schedule(self, draft: tuple[int, ...] = ()) -> list[ScheduledChunk]:
        """Return the chunks of the next step, single tokens first; their pages are reserved. All must be computed.

        Args:
            draft: Guesses at what follows the only sequence, which decodes; left out where they do not fit.
        """
        self.num_preempted = self.num_queried_tokens = self.num_found_tokens = 0
        # Whoever is preempted here stands later in `running`: the loop has not come to it.
        decodes = [self._decode(s, draft) for s in self.running if s.num_to_compute == 1 and self._reserve(s)]
        prefills = self._prefill(len(decodes))
        return decodes + sorted(prefills, key=lambda chunk: chunk.num_tokens > 1)

    def _plan(self, sequence: Sequence, num_tokens: int) -> ScheduledChunk:
        self._pool.share(sequence, num_tokens)
        return ScheduledChunk(sequence, num_tokens)

    def _decode(self, sequence: Sequence, draft: tuple[int, ...]) -> ScheduledChunk:
        num_tokens = 1 + len(draft)
        has_room = num_tokens <= self._max_step_tokens
        if draft and has_room and self._pool.grow(sequence, sequence.num_computed_tokens + num_tokens):
            return ScheduledChunk(sequence, num_tokens, draft)  # its pages are shared once the guesses proved right
        return self._plan(sequence, 1)

    def _reserve(self, sequence: Sequence) -> bool:
        """Get a page for the last token, if need be from newer sequences; False when it was itself the newest."""
        while not self._pool.grow(sequence, len(sequence.token_ids)):
            newest = self.running.pop()
            self._pool.release(newest)
            self.waiting.appendleft(newest)
            self.num_preempted += 1
            if newest is sequence:
                return False
        return True

    def _prefill(self, num_decodes: int) -> list[ScheduledChunk]:
        """Plan prefill chunks beside `num_decodes` single tokens: where somebody streams, short ones."""
        chunks = []
        num_left = self._max_step_tokens - num_decodes
        shares = PREFILL_SHARE * max(1, len(self.waiting))  # each that waits has one: it is late by every step, too
        budget = shares * (FIXED_COST + num_decodes) if num_decodes else math.inf
        unfinished = self._unfinished()
        while num_left and budget >= 1 and (sequence := next(unfinished, None)):
            cost = 1 + self._pool.in_full_pages(sequence.num_computed_tokens) / POSITIONS
            num_tokens = max(1, int(min(sequence.num_to_compute, num_left, budget / cost)))
            chunks.append(self._plan(sequence, num_tokens))
            num_left -= num_tokens
            budget -= num_tokens * cost
            if num_tokens < sequence.num_to_compute:
                break  # what a rounded share leaves over is for nobody else: this one comes first
        return chunks

    def _unfinished(self) -> Iterator[Sequence]:
        """Yield those in the middle of their prefill; then, where nobody had to go, admit one after the other.

        One is admitted after all before it are planned to their end. So choices of one prompt that come together share
        its pages: those of the first are there to be found.
        """
        yield from [sequence for sequence in self.running if sequence.num_to_compute > 1]
        while self.waiting and not self.num_preempted and len(self.running) < self._max_num_seqs:
            sequence = self.waiting[0]
            # All of its known tokens must fit, or two half-done prefills could drive each other out for ever.
            if not self._pool.admit(sequence):
                return
            self.running.append(self.waiting.popleft())
            self._count_found(sequence)
            yield sequence

    def _count_found(self, sequence: Sequence) -> None:
        if sequence.num_cached_tokens is None:
            sequence.num_cached_tokens = min(sequence.num_computed_tokens, sequence.num_prompt_tokens)
            if self._pool.looks_up(sequence):
                self.num_queried_tokens += len(sequence.token_ids)
                self.num_found_tokens += sequence.num_computed_tokens
