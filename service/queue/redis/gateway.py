"""The `GatewayQueue` in Redis: submits, follows the token logs, and waits until an outage is over."""

import asyncio
import contextlib
import uuid
from array import array
from collections.abc import AsyncIterator, Sequence

import msgspec
import redis
from typing_extensions import override

from service.config import QueueSettings
from service.errors import BadRequest, NotFound, QueueFull, Unavailable
from service.protocol import DeadRequest, Idempotency, QueueStats, Request, Update
from service.queue.base import GatewayQueue
from service.queue.drain_rate import DrainRate
from service.queue.process_identity import ProcessIdentity
from service.queue.redis.address import Address
from service.queue.redis.connection import Connection
from service.queue.redis.library import Argument, line_of
from service.queue.redis.reader import LogState, Reader
from service.queue.redis.subscriptions import Subscriptions

SILENCE_S = 1.0
"""Seconds without a hint about a request after which its log is read: a hint may be lost."""
ABANDON_FOR_S = 60.0
"""Seconds for which a request is cancelled again and again that may have been accepted without our knowing."""
MILLISECONDS = 1000


class RedisQueue(GatewayQueue):
    """A `GatewayQueue` in Redis; works between entering and leaving its context.

    Where `submit` raises `Unavailable`, nothing will be computed for the call, whatever became of it; only one with an
    idempotency key may have been accepted, and whoever sends it again joins it.

    Args:
        url: One that `Address` takes.
        settings: Caps, and how long an ended request is kept.
        outage_patience_s: Seconds that an open stream waits for a queue that cannot be reached.

    Raises:
        SettingError: the URL is none.
    """

    def __init__(self, url: str, settings: QueueSettings, *, outage_patience_s: float = 15.0) -> None:
        self.address = Address(url)
        self._settings = settings
        self._patience_s = outage_patience_s
        self._id = uuid.uuid4().hex[:12]
        self._identity = ProcessIdentity.of_this_process()
        self._connection = Connection(self.address)
        self._call = self._connection.call
        self._subscriptions = Subscriptions(self._connection, self._id)
        self._drain = DrainRate()
        self._work_done = 0, 0.0
        """Tokens of cost that had ended at the last look, and the seconds in which something had been running."""
        self._encode = msgspec.msgpack.Encoder().encode
        self._requests = msgspec.msgpack.Decoder(Request)
        self._revisions = msgspec.msgpack.Decoder(list[str])
        self._identities = msgspec.msgpack.Decoder(ProcessIdentity)
        self._deaths = msgspec.msgpack.Decoder(tuple[Request, int, float])

    async def __aenter__(self) -> "RedisQueue":
        await self._connection.__aenter__()
        self._connection.start(self._subscriptions.keep_listening())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connection.__aexit__()

    @override
    async def submit(self, requests: Sequence[Request], idempotency: Idempotency | None = None) -> list[str]:
        if not requests:
            return []
        if self._connection.is_down:
            raise self._connection.unavailable()
        settings, first = self._settings, requests[0]
        keep_ms = round(settings.keep_ended_s * MILLISECONDS)
        args: list[Argument] = [self._id, settings.max_queue_depth, settings.max_queue_tokens]
        args += [settings.max_tenant_depth, keep_ms, settings.max_attempts, first.tenant]
        args += [idempotency.key, idempotency.digest] if idempotency is not None else ["", ""]
        args += [round(settings.max_age_s * MILLISECONDS) + keep_ms]
        for request in requests:
            args += self._flatten(request)
        try:
            outcome, *details = await self._call("submit", *args)
        except Unavailable:
            for request in requests if idempotency is None else ():  # with a key, whoever asks again joins it
                self._connection.start(self._abandon(request.id))
            raise
        except redis.OutOfMemoryError:
            raise QueueFull(
                "the queue is out of memory; retry later", retry_after_s=self._drain.retry_after_s(0)
            ) from None
        if outcome == b"conflict":
            reason = "was sent before with another body; give each request a key of its own"
            raise BadRequest(f"idempotency_key: {reason}", param="idempotency_key")
        if outcome == b"full":
            raise self._full(*details)
        return [id_.decode() for id_ in details[0].split()]

    @override
    async def find(self, answer_id: str) -> list[Request]:
        parts = await self._call("find", answer_id)
        bodies, prompts = parts[::2], parts[1::2]
        if not bodies or not all(bodies):
            raise NotFound(f"no answer '{answer_id}': it was never asked for, or ended too long ago")
        return [
            msgspec.structs.replace(self._requests.decode(body), token_ids=tuple(array("I", prompt)))
            for body, prompt in zip(bodies, prompts, strict=True)
        ]

    @override
    async def watch(self, request_ids: Sequence[str]) -> AsyncIterator[list[Update]]:
        changed = asyncio.Event()
        readers = [Reader(request_id, changed) for request_id in request_ids]
        self._subscriptions.add(readers)
        try:
            while reading := [reader for reader in readers if not reader.has_ended]:
                changed.clear()
                await self._read_logs([reader for reader in reading if reader.must_read_log])
                updates = [update for reader in reading if (update := reader.take()) is not None]
                if updates:
                    yield updates
                else:
                    await self._await_change(changed, reading)
        finally:
            self._subscriptions.remove(readers)

    @override
    async def cancel(self, request_id: str) -> None:
        try:
            await self._call("cancel", request_id)
        except Unavailable:
            self._connection.start(self._abandon(request_id))

    @override
    async def stats(self) -> QueueStats:
        counts, busy_s, workers = await self._call("stats")
        waiting, running, tokens, resumed, fenced, quarantined, drained = (int(count or 0) for count in counts)
        self._measure_drain(drained, float(busy_s))
        return QueueStats(
            waiting=waiting,
            running=running,
            waiting_tokens=tokens,
            workers=len(workers),
            drain_tokens_per_s=self._drain.tokens_per_s,
            revisions=frozenset(revision for packed in workers for revision in self._revisions.decode(packed)),
            resumed=resumed,
            fenced=fenced,
            quarantined=quarantined,
        )

    @override
    async def dead(self) -> list[DeadRequest]:
        deaths = [self._deaths.decode(packed) for packed in await self._call("dead")]
        return [
            DeadRequest(
                id=request.id,
                tenant=request.tenant,
                model=request.model,
                revision=request.revision,
                attempts=attempts,
                ended=ended,
            )
            for request, attempts, ended in deaths
        ]

    @override
    async def keep_reaping(self) -> None:
        while True:
            with contextlib.suppress(Unavailable):
                await self.reap()
                await self.stats()
            await asyncio.sleep(self._settings.lease_s / 5)

    async def reap(self) -> None:
        """Take back what overdue workers hold and what the provably dead held; end what is past its deadline."""
        ids_and_identities = await self._call("reap")
        workers = dict(zip(ids_and_identities[::2], ids_and_identities[1::2], strict=True))
        dead = [id_ for id_, who in workers.items() if self._identity.sees_dead(self._identities.decode(who))]
        if dead:
            await self._call("reap", *dead)

    async def _abandon(self, request_id: str) -> None:
        """Cancel what may be running, once the queue is there again."""
        with contextlib.suppress(Unavailable):
            await self._connection.persist("cancel", request_id, for_s=ABANDON_FOR_S)

    async def _read_logs(self, readers: Sequence[Reader]) -> None:
        if not readers:
            return
        for reader in readers:
            reader.must_read_log = False  # one that is invalidated from now on is read once more
        ids = [reader.id for reader in readers]
        answers = await self._connection.persist("watch", self._id, *ids, for_s=self._patience_s)
        for reader, answer in zip(readers, answers, strict=True):
            reader.read_log(None if answer is None else LogState(*answer))

    async def _await_change(self, changed: asyncio.Event, readers: Sequence[Reader]) -> None:
        try:
            async with asyncio.timeout(SILENCE_S):
                await changed.wait()
        except TimeoutError:
            for reader in readers:
                reader.must_read_log = True

    def _flatten(self, request: Request) -> list[Argument]:
        deadline_s = self._settings.max_age_s if request.deadline_s is None else request.deadline_s
        body = self._encode(msgspec.structs.replace(request, token_ids=()))
        return [
            *(request.id, request.tenant, request.priority, line_of(request.model, request.revision)),
            *(request.cost, deadline_s, request.num_choices, body, array("I", request.token_ids).tobytes()),
        ]

    def _full(self, waiting: int, tokens: int, tenant: bytes) -> QueueFull:
        retry_after_s = self._drain.retry_after_s(tokens)
        whose = "your share of the queue" if tenant else "the queue"
        message = f"{whose} is full: {waiting} requests ({tokens} tokens) wait; retry in {retry_after_s:.0f} s"
        return QueueFull(message, retry_after_s=retry_after_s)

    def _measure_drain(self, drained: int, busy_s: float) -> None:
        before, self._work_done = self._work_done, (drained, busy_s)
        self._drain.measure(max(0, drained - before[0]), max(0.0, busy_s - before[1]))
