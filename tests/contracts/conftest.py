"""Homes of the queue: the same verbs, whoever carries them. Each lives in an event loop in a thread of its own.

What a test has of a home, and nothing behind it:

- `submit(*requests, idempotency=None)` → ids in force, `find(answer_id)`, `cancel(id)`, `stats()`, `dead()`: the
  gateway's face, called in the home's loop; `watch(*ids)` → a `Watcher` that reads on its own.
- `worker(models)`: a worker's face that has registered; `connect()`: one that has not.
- `kill(worker)`: it dies while its lease holds, and the queue has proof; returns once what it held is back.
- `pass_time(seconds)`: the queue's clock goes on by so much at once; a lease runs out by this and nothing else.
- `reap()`: one round of what `keep_reaping` repeats. No home reaps by itself.
- `settings`: its `QueueSettings`.

A home makes `queue` (a `GatewayQueue`) after `super().__init__`, and `connect`, `kill`, `pass_time` and `reap`. A clock
may run on between two `pass_time`s, for as long as a test takes: times in the tests are far longer or compared loosely.
"""

import asyncio
import contextlib
import itertools
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
import pytest
import redis

from service.config import QueueSettings
from service.identity import Identity
from service.protocol import (
    Claim,
    DeadRequest,
    Emission,
    EmitStatus,
    Idempotency,
    QueueStats,
    Request,
    Update,
)
from service.queue.base import GatewayQueue, WorkerQueue
from service.queue.link import LinkQueue, serve_link
from service.queue.local import LocalQueue
from service.queue.redis.gateway import RedisQueue
from service.queue.redis.library import library
from service.queue.redis.worker import RedisWorkerQueue
from tests.fleet.redis_server import RedisServer

MODELS = {"tiny": "r1"}
TIMEOUT_S = 30.0
T = TypeVar("T")


class Watcher:
    """Reads the updates of one request, or of several, in the home's loop, to the end."""

    def __init__(self, home: "Home", *request_ids: str) -> None:
        self.updates: list[Update] = []
        self._news = threading.Condition()
        self._task = home.start(self._read(home.queue, request_ids))

    async def _read(self, queue: GatewayQueue, request_ids: Sequence[str]) -> None:
        async for updates in queue.watch(request_ids):
            with self._news:
                self.updates += updates
                self._news.notify_all()

    @property
    def token_ids(self) -> list[int]:
        """All tokens seen up to now, of one request, in order; fails on a gap, a repetition or a second end."""
        seen: list[int] = []
        updates = list(self.updates)
        for update in updates:
            assert update.base == len(seen)
            seen += update.token_ids
        assert all(update.end is None for update in updates[:-1])
        return seen

    def wait_for(self, num_tokens: int) -> list[int]:
        """Return all tokens seen once they are so many."""
        with self._news:
            assert self._news.wait_for(lambda: len(self.token_ids) >= num_tokens, TIMEOUT_S)
        return self.token_ids

    def to_end(self) -> Update:
        """Return the last update; raises what `watch` raises."""
        self._task.result(TIMEOUT_S)
        assert self.updates[-1].end is not None
        return self.updates[-1]


class Worker(WorkerQueue, Protocol):
    def close(self) -> None: ...


class Home:
    """A queue, its loop, its clock; the module's docstring tells what is whose."""

    queue: GatewayQueue

    def __init__(self, settings: QueueSettings) -> None:
        self.settings = settings
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def connect(self) -> Worker:
        raise NotImplementedError

    def kill(self, worker: Worker) -> None:
        raise NotImplementedError

    def pass_time(self, seconds: float) -> None:
        raise NotImplementedError

    def reap(self) -> None:
        raise NotImplementedError

    def submit(self, *requests: Request, idempotency: Idempotency | None = None) -> list[str]:
        return self.call(self.queue.submit(requests, idempotency))

    def find(self, answer_id: str) -> list[Request]:
        return self.call(self.queue.find(answer_id))

    def watch(self, *request_ids: str) -> Watcher:
        return Watcher(self, *request_ids)

    def cancel(self, request_id: str) -> None:
        self.call(self.queue.cancel(request_id))

    def stats(self) -> QueueStats:
        return self.call(self.queue.stats())

    def dead(self) -> list[DeadRequest]:
        return self.call(self.queue.dead())

    def worker(self, models: dict[str, str] | None = None) -> Worker:
        worker = self.connect()
        worker.register(MODELS if models is None else models)
        return worker

    def close(self) -> None:
        self.call(_end_all_tasks())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def start(self, coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
        """Begin `coroutine` in the home's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run `coroutine` in the home's loop."""
        return self.start(coroutine).result(TIMEOUT_S)


async def _end_all_tasks() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class LocalHome(Home):
    """The local queue."""

    queue: LocalQueue

    def __init__(self, settings: QueueSettings) -> None:
        super().__init__(settings)
        self._now = 1_000_000.0
        self.queue = LocalQueue(settings, lambda: self._now)

    def pass_time(self, seconds: float) -> None:
        self._now += seconds

    def reap(self) -> None:
        self.do(self.queue.reap)

    def do(self, function: Callable[..., T], *args: Any) -> T:
        """Call `function` in the home's loop."""

        async def run() -> T:
            return function(*args)

        return self.call(run())


class DirectHome(LocalHome):
    """The local queue, called in its own loop."""

    def __init__(self, settings: QueueSettings) -> None:
        super().__init__(settings)
        self._num_workers = 0

    def connect(self) -> Worker:
        self._num_workers += 1
        return DirectWorker(self, f"direct-{self._num_workers}")

    def kill(self, worker: Worker) -> None:
        worker.close()


class DirectWorker:
    def __init__(self, home: DirectHome, name: str) -> None:
        self._home, self._name = home, name

    def register(self, models: dict[str, str]) -> None:
        self._home.do(self._home.queue.register, self._name, models)

    def claim(self, max_requests: int, wait_s: float) -> list[Claim]:
        return self._home.call(self._home.queue.claim(self._name, max_requests, wait_s))

    def emit(self, emissions: Sequence[Emission]) -> list[EmitStatus]:
        return self._home.do(self._home.queue.emit, self._name, emissions)

    def renew(self) -> bool:
        return self._home.do(self._home.queue.renew, self._name)

    def retire(self) -> None:
        self._home.do(self._home.queue.retire, self._name)

    def release(self) -> None:
        self._home.do(self._home.queue.release, self._name)

    def close(self) -> None:
        self._home.do(self._home.queue.lose, self._name)


class LinkHome(LocalHome):
    """The local queue, reached through its socket."""

    def __init__(self, settings: QueueSettings) -> None:
        super().__init__(settings)
        self._folder = tempfile.TemporaryDirectory()
        self._path = Path(self._folder.name) / "link"
        self._workers: list[LinkQueue] = []
        self._server = self.call(serve_link(self.queue, self._path))

    def connect(self) -> Worker:
        self._workers.append(LinkQueue(self._path, TIMEOUT_S))
        return self._workers[-1]

    def kill(self, worker: Worker) -> None:
        before = self.stats().workers
        worker.close()
        until = time.monotonic() + TIMEOUT_S
        while self.stats().workers == before:
            assert time.monotonic() < until

    def close(self) -> None:
        for worker in self._workers:
            worker.close()
        self.call(self._stop_serving())
        super().close()
        self._folder.cleanup()

    async def _stop_serving(self) -> None:
        self._server.close()
        await self._server.wait_closed()


class RedisHome(Home):
    """The queue in a real server, by the server's own time, to which the library there adds what a test lets pass."""

    queue: RedisQueue

    def __init__(self, settings: QueueSettings, server: RedisServer) -> None:
        super().__init__(settings)
        self._url = server.url
        self._server = redis.Redis.from_url(server.url)
        self._server.flushall()
        _, text = library()
        shifted = text.replace(READ_TIME, f"{READ_TIME}\n  time[1] = time[1] + (call('GET', 'passed') or 0)")
        assert shifted != text
        self._server.function_load(shifted, replace=True)
        self._workers: dict[int, tuple[RedisWorkerQueue, Identity]] = {}
        self._identities = (Identity(name=f"w{i}", machine=f"m{i}", pid=1, started=0.0) for i in itertools.count(1))
        self.queue = RedisQueue(self._url, settings)
        self.call(self.queue.__aenter__())

    def connect(self) -> Worker:
        return self._connect(next(self._identities))

    def kill(self, worker: Worker) -> None:
        identity = self._workers[id(worker)][1]
        successor = self._connect(msgspec.structs.replace(identity, machine="another"))
        successor.register({})
        successor.release()

    def pass_time(self, seconds: float) -> None:
        self._server.incrbyfloat("passed", seconds)
        for key in self._server.scan_iter():
            left_ms = self._server.pttl(key)
            if left_ms >= 0:
                self._server.pexpire(key, round(left_ms - seconds * 1000))

    def reap(self) -> None:
        self.call(self.queue.reap())

    def close(self) -> None:
        for worker, _ in self._workers.values():
            worker.close()
        self.call(self.queue.__aexit__())
        super().close()
        self._server.close()

    def _connect(self, identity: Identity) -> RedisWorkerQueue:
        worker = RedisWorkerQueue(self._url, self.settings.lease_s, identity)
        self._workers[id(worker)] = worker, identity
        return worker


HOMES: dict[str, type[Home]] = {"local": DirectHome, "link": LinkHome, "redis": RedisHome, "valkey": RedisHome}
READ_TIME = "local time = call('TIME')"


@pytest.fixture(params=HOMES)
def open_home(request):
    """A function that opens this home with settings; the context manager closes it."""

    @contextlib.contextmanager
    def open_(**settings: Any) -> Iterator[Home]:
        kind, options = HOMES[request.param], QueueSettings(**settings)
        if kind is RedisHome:
            home = RedisHome(options, request.getfixturevalue("redis_servers")(request.param))
        else:
            home = kind(options)
        try:
            yield home
        finally:
            home.close()

    return open_


@pytest.fixture
def home(open_home):
    with open_home() as home:
        yield home
