"""The queue inside the gateway's event loop. Its worker verbs take a worker's id; `link` carries them to processes."""

import asyncio
import itertools
import math
import time
from bisect import bisect_left, insort
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from service.config import QueueSettings
from service.errors import NotFound, QueueFull
from service.protocol import Claim, Emission, EmitStatus, End, QueueStats, Request, Update
from service.queue.drain_rate import DrainRate
from service.queue.entry import Entry
from service.queue.watch import watch

RETRY_AFTER_S = (1.0, 60.0)
"""Least and most that `QueueFull` asks a client to wait."""


@dataclass(slots=True)
class _Worker:
    models: dict[str, str]
    lease_end: float
    claims: dict[str, Entry] = field(default_factory=dict)


class LocalQueue:
    """A `GatewayQueue`, and for each worker's id the verbs of a `WorkerQueue`. Every call belongs in one event loop.

    Args:
        settings: Caps, lease, attempts.
        clock: Seconds, Unix time; leases and deadlines go by it.
    """

    def __init__(self, settings: QueueSettings, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._clock = clock
        self._entries: dict[str, Entry] = {}
        self._lines: defaultdict[tuple[str, str], list[Entry]] = defaultdict(list)
        self._waiting_tokens = 0
        self._workers: dict[str, _Worker] = {}
        self._ended: deque[tuple[float, str]] = deque()
        self._arrivals = itertools.count()
        self._waiting: dict[str, asyncio.Event] = {}
        """The claims that wait, by worker."""
        self._drain = DrainRate()
        self._num_resumed = self._num_fenced = self._num_quarantined = 0

    # The gateway's face

    async def submit(self, requests: Sequence[Request]) -> None:
        """Accept all of `requests` or none; an id that is known already is left as it is.

        Raises:
            QueueFull: over the cap of requests or of tokens.
        """
        new = {request.id: request for request in requests if request.id not in self._entries}
        self._require_room(new.values())
        now = self._clock()
        for request in new.values():
            entry = Entry(request, submitted=now, arrival=next(self._arrivals))
            self._entries[request.id] = entry
            self._enqueue(entry)

    def watch(self, request_ids: Sequence[str]) -> AsyncIterator[list[Update]]:
        """Yield what comes of any of them, from their first tokens on, each up to the update with its `end`.

        Raises:
            NotFound: one was never submitted, or forgotten since it ended.
        """
        for request_id in request_ids:
            if request_id not in self._entries:
                raise NotFound(f"no request '{request_id}': it was never submitted, or ended too long ago")
        return watch([self._entries[request_id] for request_id in request_ids])

    async def cancel(self, request_id: str) -> None:
        """End a request: at once if it waits, else at its worker's next emission. Unknown or ended: no error."""
        entry = self._entries.get(request_id)
        if entry is None or entry.end is not None:
            return
        entry.cancelled = True
        if entry.worker is None:
            self._end_if_called_off(entry)

    async def stats(self) -> QueueStats:
        """Count what waits and runs."""
        now = self._pass_time()
        alive = [worker for worker in self._workers.values() if worker.lease_end > now]
        return QueueStats(
            waiting=self._num_waiting(),
            running=self._num_running(),
            waiting_tokens=self._waiting_tokens,
            workers=len(alive),
            drain_tokens_per_s=self._drain.tokens_per_s,
            revisions=frozenset(revision for worker in alive for revision in worker.models.values()),
            resumed=self._num_resumed,
            fenced=self._num_fenced,
            quarantined=self._num_quarantined,
        )

    # The workers' verbs

    def register(self, worker: str, models: dict[str, str]) -> None:
        """Let `worker` claim requests of `models` (name → revision); what it held before goes to others."""
        self.release(worker)
        self._workers[worker] = _Worker(models, self._clock() + self._settings.lease_s)

    async def claim(self, worker: str, max_requests: int, wait_s: float) -> list[Claim]:
        """Take up to `max_requests`, oldest first; wait up to `wait_s` for the first. None to one without a lease.

        Workers of a model that wait at once share what comes, so that they have equally much to do.
        """
        claims = self._take(worker, max_requests)
        if claims or wait_s <= 0:
            return claims
        news = self._waiting[worker] = asyncio.Event()
        try:
            async with asyncio.timeout(wait_s):
                while not claims and not self._has_retired(worker):
                    await news.wait()
                    news.clear()
                    claims = self._take(worker, max_requests)
        except TimeoutError:
            pass
        finally:
            del self._waiting[worker]
            self._wake_takers()  # what it left is for the others alone now
        return claims

    def emit(self, worker: str, emissions: Sequence[Emission]) -> list[EmitStatus]:
        """Append one step's tokens and ends, one status each; renews the lease. A GAP takes the request back."""
        self.renew(worker)
        statuses = [self._append(worker, emission) for emission in emissions]
        self._num_fenced += statuses.count(EmitStatus.FENCED)
        return statuses

    def renew(self, worker: str) -> bool:
        """Renew the lease; False when it was lost."""
        holder = self._workers.get(worker)
        if holder is None:
            return False
        holder.lease_end = self._clock() + self._settings.lease_s
        return True

    def retire(self, worker: str) -> None:
        """Give `worker` nothing new; what it holds it keeps."""
        if worker in self._workers:
            self._workers[worker].models = {}
        self._wake_takers()

    def release(self, worker: str) -> None:
        """Hand everything claimed back to its old place, attempts unchanged; the worker claims no more."""
        self._drop(worker, died=False)

    def lose(self, worker: str) -> None:
        """Take everything from a worker that is known to be dead."""
        self._drop(worker, died=True)

    def reap(self) -> None:
        """Take back what overdue workers hold, end what waits past its deadline, forget what ended long ago."""
        now = self._clock()
        for name in [name for name, worker in self._workers.items() if worker.lease_end <= now]:
            self.lose(name)
        for entry in [entry for line in self._lines.values() for entry in line]:
            self._end_if_called_off(entry)
        while self._ended and self._ended[0][0] + self._settings.keep_ended_s <= now:
            del self._entries[self._ended.popleft()[1]]

    async def keep_reaping(self) -> None:
        """Reap for ever, five times in a lease; not after a sleep of this very process, in which nobody could renew."""
        while True:
            before = self._clock()
            await asyncio.sleep(self._settings.lease_s / 5)
            if self._clock() - before < self._settings.lease_s:
                self.reap()

    # How a request moves

    def _take(self, worker: str, max_requests: int) -> list[Claim]:
        if not self.renew(worker):
            return []
        holder, now = self._workers[worker], self._pass_time()
        share = min(max_requests, self._share(worker))
        claims: list[Claim] = []
        while len(claims) < share and (entry := self._oldest(holder.models)) is not None:
            if not self._end_if_called_off(entry):
                self._leave_line(entry)
                holder.claims[entry.request.id] = entry
                claims.append(entry.claim(worker, now))
        self._num_resumed += sum(claim.epoch > 1 for claim in claims)
        return claims

    def _append(self, worker: str, emission: Emission) -> EmitStatus:
        entry = self._entries.get(emission.id)
        if entry is None or entry.epoch != emission.epoch:
            return EmitStatus.FENCED
        if entry.worker != worker:
            retried = emission.end is not None and emission.end == entry.end and entry.holds(emission)
            return EmitStatus.OK if retried else EmitStatus.FENCED
        if self._end_if_called_off(entry):
            return EmitStatus.CANCEL
        if emission.base == len(entry.log):
            entry.append(emission)
            if emission.end is not None:
                self._finish(entry, emission.end)
            return EmitStatus.OK
        if emission.end is None and entry.holds(emission):
            return EmitStatus.OK
        self._take_back(entry, died=True)
        return EmitStatus.GAP

    def _drop(self, worker: str, *, died: bool) -> None:
        self._pass_time()
        holder = self._workers.get(worker)
        if holder is None:
            return
        for entry in list(holder.claims.values()):
            self._take_back(entry, died=died)
        del self._workers[worker]

    def _take_back(self, entry: Entry, *, died: bool) -> None:
        self._leave_worker(entry)
        entry.take_back()
        entry.attempts += died
        self._enqueue(entry)
        if not self._end_if_called_off(entry) and entry.attempts >= self._settings.max_attempts:
            error = f"{entry.attempts} workers failed with this request: it is given up"
            self._finish(entry, End(finish_reason="error", error=error))
            self._num_quarantined += 1

    def _end_if_called_off(self, entry: Entry) -> bool:
        end = entry.called_off(self._clock())
        if end is not None:
            self._finish(entry, end)
        return end is not None

    def _finish(self, entry: Entry, end: End) -> None:
        now = self._pass_time()
        if entry.worker is None:
            self._leave_line(entry)
        else:
            self._leave_worker(entry)
            self._drain.add(entry.request.cost)
        entry.finish(end, now)
        self._ended.append((now, entry.request.id))

    # Who waits where

    def _enqueue(self, entry: Entry) -> None:
        insort(self._line(entry), entry, key=_arrival)  # one that comes back is older than most: near the front
        self._waiting_tokens += entry.request.cost
        self._wake_takers()

    def _wake_takers(self) -> None:
        for news in self._waiting.values():
            news.set()

    def _leave_line(self, entry: Entry) -> None:
        line = self._line(entry)
        del line[bisect_left(line, entry.arrival, key=_arrival)]
        self._waiting_tokens -= entry.request.cost

    def _line(self, entry: Entry) -> list[Entry]:
        return self._lines[entry.request.model, entry.request.revision]

    def _leave_worker(self, entry: Entry) -> None:
        if entry.worker is not None:
            del self._workers[entry.worker].claims[entry.request.id]

    def _oldest(self, models: dict[str, str]) -> Entry | None:
        heads = [line[0] for served in models.items() if (line := self._lines.get(served))]
        return min(heads, key=_arrival, default=None)

    def _has_retired(self, worker: str) -> bool:
        return worker in self._workers and not self._workers[worker].models

    def _share(self, worker: str) -> int:
        """Return how many of the requests that wait are for `worker`, so that all who wait for them hold as many."""
        me = self._workers[worker]
        served = me.models.items()
        num_waiting = sum(len(self._lines.get(line, ())) for line in served)
        others = [self._workers[name] for name in self._waiting if name != worker and name in self._workers]
        loads = [len(other.claims) for other in others if not served.isdisjoint(other.models.items())]
        level = math.ceil((num_waiting + len(me.claims) + sum(loads)) / (1 + len(loads)))
        return max(0, level - len(me.claims))

    def _num_waiting(self) -> int:
        return sum(map(len, self._lines.values()))

    def _num_running(self) -> int:
        return sum(len(worker.claims) for worker in self._workers.values())

    def _require_room(self, requests: Iterable[Request]) -> None:
        costs = [request.cost for request in requests]
        waiting, tokens = self._num_waiting(), self._waiting_tokens
        deep = waiting + len(costs) > self._settings.max_queue_depth
        if costs and (deep or tokens + sum(costs) > self._settings.max_queue_tokens):
            self._pass_time()
            rate = self._drain.tokens_per_s
            least, most = RETRY_AFTER_S
            retry_after_s = min(max(tokens / rate, least), most) if rate > 0 else least
            message = f"the queue is full: {waiting} requests ({tokens} tokens) wait; retry in {retry_after_s:.0f} s"
            raise QueueFull(message, retry_after_s=retry_after_s)

    def _pass_time(self) -> float:
        now = self._clock()
        self._drain.advance(now, busy=self._num_running() > 0)
        return now


def _arrival(entry: Entry) -> int:
    return entry.arrival
