"""The queue inside the gateway's event loop. Its worker verbs take a worker's id; `server` calls them for processes."""

import asyncio
import contextlib
import itertools
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

from typing_extensions import override

from service.config import QueueSettings
from service.errors import QueueFull
from service.protocol import Claim, DeadRequest, Emission, EmitStatus, End, Idempotency, QueueStats, Request, Update
from service.queue.base import GatewayQueue
from service.queue.drain_rate import DrainRate
from service.queue.local.entry import Entry
from service.queue.local.registry import RequestRegistry
from service.queue.local.suspects import dead_request, given_up, is_cleared
from service.queue.local.waiting import Waiting
from service.queue.local.watch import watch
from service.queue.local.workers import Workers
from service.queue.rules import MAX_DEAD


class LocalQueue(GatewayQueue):
    """A `GatewayQueue`, and for each worker's id the verbs of a `WorkerQueue`. Every call belongs in one event loop.

    Args:
        settings: Caps, lease, attempts.
        clock: Seconds, Unix time; leases and deadlines go by it.
    """

    def __init__(self, settings: QueueSettings, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._clock = clock
        self._registry = RequestRegistry()
        self._waiting = Waiting()
        self._workers = Workers(settings.lease_s)
        self._dead: deque[DeadRequest] = deque(maxlen=MAX_DEAD)
        self._arrivals = itertools.count()
        self._drain = DrainRate()
        self._num_resumed = self._num_fenced = self._num_quarantined = 0

    # What the gateway calls

    @override
    async def submit(self, requests: Sequence[Request], idempotency: Idempotency | None = None) -> list[str]:
        joined = self._registry.joined(requests, idempotency)
        if joined is not None:
            return joined
        new = {request.id: request for request in requests if self._registry.get(request.id) is None}
        self._require_room(list(new.values()))
        entries = [self._enter(request) for request in new.values()]
        self._registry.add(entries, idempotency)
        for entry in entries:
            self._enqueue(entry)
        return [request.id for request in requests]

    @override
    async def find(self, answer_id: str) -> list[Request]:
        return self._registry.find(answer_id)

    @override
    def watch(self, request_ids: Sequence[str]) -> AsyncIterator[list[Update]]:
        return watch([self._registry.require(request_id) for request_id in request_ids])

    @override
    async def cancel(self, request_id: str) -> None:
        entry = self._registry.get(request_id)
        if entry is None or entry.end is not None:
            return
        entry.cancelled = True
        if entry.worker is None:
            self._end_if_called_off(entry)

    @override
    async def stats(self) -> QueueStats:
        now = self._pass_time()
        alive = self._workers.alive(now)
        return QueueStats(
            waiting=len(self._waiting),
            running=self._workers.num_held(),
            waiting_tokens=self._waiting.num_tokens,
            workers=len(alive),
            drain_tokens_per_s=self._drain.tokens_per_s,
            revisions=frozenset(revision for worker in alive for revision in worker.models.values()),
            resumed=self._num_resumed,
            fenced=self._num_fenced,
            quarantined=self._num_quarantined,
        )

    @override
    async def dead(self) -> list[DeadRequest]:
        return list(self._dead)

    @override
    async def keep_reaping(self) -> None:
        while True:
            before = self._clock()
            await asyncio.sleep(self._settings.lease_s / 5)
            if self._clock() - before < self._settings.lease_s:
                self.reap()

    def reap(self) -> None:
        """Take back what overdue workers hold, end what is past its deadline, forget what ended long ago."""
        now = self._clock()
        for name in self._workers.overdue(now):
            self._drop(name, died=False)  # a worker that says nothing may be asleep
        for entry in [*self._waiting, *self._workers.held()]:
            if now >= entry.deadline:
                self._end_if_called_off(entry)
        self._registry.forget(now - self._settings.keep_ended_s)

    # The workers' verbs

    def register(self, worker: str, models: dict[str, str]) -> None:
        """Let `worker` claim requests of `models` (name → revision); what it held before goes to others."""
        self.release(worker)
        self._workers.add(worker, models, self._clock())

    async def claim(self, worker: str, max_requests: int, wait_s: float) -> list[Claim]:
        """Take up to `max_requests`; wait up to `wait_s` for the first. None to one without a lease.

        Workers of a model that wait at once share what comes, so that they have equally much to do.
        """
        self.renew(worker)
        claims = self._take(worker, max_requests)
        if claims or wait_s <= 0:
            return claims
        with self._workers.waiting(worker) as changed, contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while not claims and self._workers.may_claim(worker):
                    await changed.wait()
                    changed.clear()
                    claims = self._take(worker, max_requests)
        return claims

    def emit(self, worker: str, emissions: Sequence[Emission]) -> list[EmitStatus]:
        """Append one step's tokens and ends, one status each; renews the lease. A GAP takes the request back."""
        self.renew(worker)
        statuses = [self._append(worker, emission) for emission in emissions]
        self._num_fenced += statuses.count(EmitStatus.FENCED)
        return statuses

    def renew(self, worker: str) -> bool:
        """Renew the lease; False when it was lost."""
        return self._workers.renew(worker, self._clock())

    def retire(self, worker: str) -> None:
        """Give `worker` nothing new; what it holds it keeps."""
        self._workers.retire(worker)

    def release(self, worker: str) -> None:
        """Hand everything claimed back to its old place, attempts unchanged; the worker claims no more."""
        self._drop(worker, died=False)

    def lose(self, worker: str) -> None:
        """Take everything from a worker that is known to be dead."""
        self._drop(worker, died=True)

    # How a request moves: it waits, is handed over, is taken back or ends

    def _enter(self, request: Request) -> Entry:
        now = self._clock()
        age_s = self._settings.max_age_s if request.deadline_s is None else request.deadline_s
        return Entry(request, now, now + age_s, next(self._arrivals), self._settings.max_attempts)

    def _enqueue(self, entry: Entry) -> None:
        self._waiting.add(entry)
        self._workers.wake()

    def _hand_over(self, entry: Entry, worker: str) -> Claim:
        self._waiting.serve(entry)
        self._workers.hold(worker, entry)
        claim = entry.claim(worker, self._clock())
        self._num_resumed += claim.epoch > 1
        return claim

    def _take_back(self, entry: Entry, *, died: bool) -> None:
        self._workers.let_go(entry)
        entry.take_back(died=died)
        end = entry.called_off(self._clock()) or given_up(entry)
        if end is None:
            self._enqueue(entry)
        else:
            self._close(entry, end)

    def _end_if_called_off(self, entry: Entry) -> bool:
        end = entry.called_off(self._clock())
        if end is not None:
            self._finish(entry, end)
        return end is not None

    def _finish(self, entry: Entry, end: End) -> None:
        self._pass_time()
        if entry.worker is None:
            self._waiting.remove(entry)
        else:
            self._workers.let_go(entry)
            self._drain.add(entry.cost)
        self._close(entry, end)

    def _close(self, entry: Entry, end: End) -> None:
        now = self._clock()
        entry.finish(end, now)
        self._registry.end(entry, now)
        if end.quarantined:
            self._num_quarantined += 1
            self._dead.appendleft(dead_request(entry, now))

    # What moves it

    def _take(self, name: str, max_requests: int) -> list[Claim]:
        worker = self._workers.get(name)
        if worker is None:
            return []
        self._pass_time()
        capacity, rivals = len(worker.claims) + max_requests, self._workers.rivals(worker)
        claims: list[Claim] = []
        while len(claims) < max_requests and (entry := self._waiting.next_for(worker, capacity, rivals)) is not None:
            if not self._end_if_called_off(entry):
                claims.append(self._hand_over(entry, name))
        return claims

    def _append(self, worker: str, emission: Emission) -> EmitStatus:
        entry = self._registry.get(emission.id)
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
            elif is_cleared(entry):
                entry.attempts = 0
                self._workers.wake()
            return EmitStatus.OK
        if emission.end is None and entry.holds(emission):
            return EmitStatus.OK
        self._take_back(entry, died=False)
        return EmitStatus.GAP

    def _drop(self, name: str, *, died: bool) -> None:
        worker = self._workers.get(name)
        if worker is None:
            return
        self._pass_time()
        for entry in list(worker.claims.values()):
            self._take_back(entry, died=died)
        self._workers.remove(name)

    def _require_room(self, requests: Sequence[Request]) -> None:
        fullness = self._waiting.fullness(requests, self._settings)
        if fullness is not None:
            self._pass_time()
            retry_after_s = self._drain.retry_after_s(self._waiting.num_tokens)
            raise QueueFull(f"{fullness}; retry in {retry_after_s:.0f} s", retry_after_s=retry_after_s)

    def _pass_time(self) -> float:
        now = self._clock()
        self._drain.advance(now, busy=self._workers.num_held() > 0)
        return now
