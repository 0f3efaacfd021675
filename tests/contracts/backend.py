"""A backend of the queue: the same verbs, whoever carries them, in an event loop in a thread of its own.

What a test has of a backend, and nothing behind it:

- `submit(*requests, idempotency=None)` → ids in force, `find(answer_id)`, `cancel(id)`, `stats()`, `dead()`: the
  gateway's interface, called in the backend's loop; `watch(*ids)` → a `Watcher` that reads on its own.
- `worker(models)`: a worker's interface, registered; `connect()`: one that is not.
- `kill(worker)`: it dies while its lease holds, and the queue has proof; returns once what it held is back.
- `pass_time(seconds)`: the queue's clock, which stands still otherwise, goes on by so much: however long a test takes,
  a lease runs out by this and nothing else.
- `reap()`: one round of what `keep_reaping` repeats. No backend reaps by itself.
- `settings`: its `QueueSettings`.

A backend makes `queue` (a `GatewayQueue`) after `super().__init__`, and `connect`, `kill`, `pass_time` and `reap`.
"""

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from service.config import QueueSettings
from service.protocol import DeadRequest, Idempotency, QueueStats, Request, Update
from service.queue.base import GatewayQueue, WorkerQueue
from tests.fleet.waiting import PATIENCE_S

MODELS = {"tiny": "r1"}
T = TypeVar("T")


class Watcher:
    """Reads the updates of one request, or of several, in the backend's loop, to the end."""

    def __init__(self, backend: "Backend", *request_ids: str) -> None:
        self.updates: list[Update] = []
        self._news = threading.Condition()
        self._task = backend.start(self._read(backend.queue, request_ids))

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
            assert self._news.wait_for(lambda: len(self.token_ids) >= num_tokens, PATIENCE_S)
        return self.token_ids

    def to_end(self) -> Update:
        """Return the last update; raises what `watch` raises."""
        self._task.result(PATIENCE_S)
        assert self.updates[-1].end is not None
        return self.updates[-1]


class Worker(WorkerQueue, Protocol):
    def close(self) -> None: ...


class Backend:
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
        """Begin `coroutine` in the backend's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run `coroutine` in the backend's loop."""
        return self.start(coroutine).result(PATIENCE_S)


async def _end_all_tasks() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
