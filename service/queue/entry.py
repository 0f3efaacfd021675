"""One request as the local queue keeps it: where it stands, its token log, and who watches it."""

import asyncio
from array import array
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import msgspec

from service.protocol import Claim, Emission, End, Request, Update


@dataclass(slots=True, eq=False)
class Entry:
    """A request: waiting (no worker, no end), running (a worker) or ended (an end)."""

    request: Request
    submitted: float
    """Time of the queue's clock."""
    arrival: int
    """Number in the order of all submissions."""
    epoch: int = 0
    attempts: int = 0
    """Workers that died with it."""
    cancelled: bool = False
    worker: str | None = None
    queued_s: float | None = None
    """Seconds up to the first claim; `None` before it."""
    log: "array[int]" = field(default_factory=lambda: array("I"))
    end: End | None = None
    _watchers: set[asyncio.Event] = field(default_factory=set)

    def called_off(self, now: float) -> End | None:
        """Return the end that awaits it when nobody wants it any more."""
        if self.cancelled:
            return End(finish_reason="abort")
        if self.request.deadline is not None and now >= self.request.deadline:
            return End(finish_reason="abort", deadline_passed=True)
        return None

    def claim(self, worker: str, now: float) -> Claim:
        """Hand it to `worker`, with all that was logged."""
        self.worker = worker
        self.epoch += 1
        if self.queued_s is None:
            self.queued_s = now - self.submitted
        return Claim(request=self.request, epoch=self.epoch, token_ids=tuple(self.log))

    def take_back(self) -> None:
        """Take it from its worker: what that one still emits is fenced."""
        self.worker = None
        self.epoch += 1

    def holds(self, emission: Emission) -> bool:
        """Tell whether the log already has these very tokens at their place: a retry."""
        there = self.log[emission.base : emission.base + len(emission.token_ids)]
        return tuple(there) == emission.token_ids

    def append(self, token_ids: tuple[int, ...]) -> None:
        """Log all of `token_ids` (each below 2^32) or, when one is none, nothing."""
        if token_ids:
            self.log.extend(array("I", token_ids))
            self._tell()

    def finish(self, end: End, now: float) -> None:
        """Close it; an ended request keeps no prompt."""
        self.end = end
        self.worker = None
        if self.queued_s is None:
            self.queued_s = now - self.submitted
        self.request = msgspec.structs.replace(self.request, token_ids=())
        self._tell()

    async def watch(self) -> AsyncIterator[Update]:
        """Yield the log from its first token, then what is added, up to the end."""
        news = asyncio.Event()
        self._watchers.add(news)
        try:
            sent = 0
            while True:
                news.clear()
                if len(self.log) > sent or self.end is not None:
                    update = self._since(sent)
                    sent = len(self.log)
                    yield update
                    if update.end is not None:
                        return
                await news.wait()
        finally:
            self._watchers.discard(news)

    def _since(self, base: int) -> Update:
        return Update(
            id=self.request.id,
            base=base,
            token_ids=tuple(self.log[base:]),
            end=self.end,
            queued_s=self.queued_s or 0.0,
        )

    def _tell(self) -> None:
        for watcher in self._watchers:
            watcher.set()
