"""One request as the local queue keeps it: where it stands, its token log, and who follows it."""

import asyncio
from array import array
from dataclasses import dataclass, field

import msgspec

from service.protocol import Claim, Emission, End, Request, TokenLogprobs

Served = tuple[str, str]
"""A model's name and its revision."""


@dataclass(slots=True, eq=False)
class Entry:
    """A request: waiting (no worker, no end), running (a worker) or ended (an end)."""

    request: Request
    submitted: float
    """Time of the queue's clock."""
    deadline: float
    """Time of the queue's clock."""
    arrival: int
    """Number in the order of all submissions."""
    max_attempts: int
    epoch: int = 0
    claimed_at: int = 0
    """Tokens that were logged when its worker claimed it."""
    attempts: int = 0
    """Workers that died with it, by proof."""
    cancelled: bool = False
    worker: str | None = None
    queued_s: float | None = None
    """Seconds up to the first claim; `None` before it."""
    log: "array[int]" = field(default_factory=lambda: array("I"))
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    """Of each token of the log, or none of any."""
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    end: End | None = None
    watchers: set[asyncio.Event] = field(default_factory=set)
    """Set whenever something of it changes."""

    @property
    def tenant(self) -> str:
        """Whose it is."""
        return self.request.tenant

    @property
    def cost(self) -> int:
        """Tokens that it may occupy."""
        return self.request.cost

    @property
    def served(self) -> Served:
        """What must answer it."""
        return self.request.model, self.request.revision

    @property
    def is_suspect(self) -> bool:
        """Whether a worker died with it."""
        return self.attempts >= 1

    @property
    def has_last_chance(self) -> bool:
        """Whether it is given up when one more dies with it, so that it must run alone."""
        return self.is_suspect and self.attempts >= self.max_attempts - 1

    def called_off(self, now: float) -> End | None:
        """Return the end that awaits it when nobody wants it any more."""
        if self.cancelled:
            return End(finish_reason="abort")
        if now >= self.deadline:
            return End(finish_reason="abort", deadline_passed=True)
        return None

    def claim(self, worker: str, now: float) -> Claim:
        """Hand it to `worker`, with all that was logged."""
        self.worker = worker
        self.epoch += 1
        self.claimed_at = len(self.log)
        if self.queued_s is None:
            self.queued_s = now - self.submitted
        return Claim(request=self.request, epoch=self.epoch, token_ids=tuple(self.log))

    def take_back(self, *, died: bool) -> None:
        """Take it from its worker, which `died` with it or not: what that one still emits is fenced."""
        self.worker = None
        self.epoch += 1
        self.attempts += died

    def holds(self, emission: Emission) -> bool:
        """Tell whether the log already has these very tokens at their place: a retry."""
        there = self.log[emission.base : emission.base + len(emission.token_ids)]
        return tuple(there) == emission.token_ids

    def append(self, emission: Emission) -> None:
        """Log all tokens of `emission` (each below 2^32), with what is told of them, or, when one is none, nothing."""
        self.log.extend(array("I", emission.token_ids))
        self.logprobs.extend(emission.logprobs)
        if not self.prompt_logprobs:  # a worker that goes on computes the prompt's again
            self.prompt_logprobs = emission.prompt_logprobs
        if emission.token_ids or emission.prompt_logprobs:
            self._tell()

    def finish(self, end: End, now: float) -> None:
        """Close it; it keeps its prompt for who resumes the stream, but not one that nobody must touch again."""
        self.end = end
        self.worker = None
        if self.queued_s is None:
            self.queued_s = now - self.submitted
        if end.quarantined:
            self.request = msgspec.structs.replace(self.request, token_ids=())
        self._tell()

    def _tell(self) -> None:
        for changed in self.watchers:
            changed.set()
