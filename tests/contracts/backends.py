"""The backends of the queue: in its own loop, behind a socket, in a Redis."""

import itertools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import redis

from service.config import QueueSettings
from service.protocol import Claim, Emission, EmitStatus
from service.queue.local.gateway import LocalQueue
from service.queue.local.server import serve_workers
from service.queue.local.worker import SocketWorkerQueue
from service.queue.process_identity import ProcessIdentity
from service.queue.redis.gateway import RedisQueue
from service.queue.redis.library import library
from service.queue.redis.worker import RedisWorkerQueue
from tests.contracts.backend import Backend, Worker
from tests.fleet.redis_server import RedisServer
from tests.fleet.waiting import PATIENCE_S, wait_until

READ_TIME = "local time = call('TIME')"
COUNT_TIME = "local time = {1e6 + (call('GET', 'passed') or 0), 0}"
T = TypeVar("T")


class LocalBackend(Backend):
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
        """Call `function` in the backend's loop."""

        async def run() -> T:
            return function(*args)

        return self.call(run())


class DirectBackend(LocalBackend):
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
    def __init__(self, backend: DirectBackend, name: str) -> None:
        self._backend, self._name = backend, name

    def register(self, models: dict[str, str]) -> None:
        self._backend.do(self._backend.queue.register, self._name, models)

    def claim(self, max_requests: int, wait_s: float) -> list[Claim]:
        return self._backend.call(self._backend.queue.claim(self._name, max_requests, wait_s))

    def emit(self, emissions: Sequence[Emission]) -> list[EmitStatus]:
        return self._backend.do(self._backend.queue.emit, self._name, emissions)

    def renew(self) -> bool:
        return self._backend.do(self._backend.queue.renew, self._name)

    def retire(self) -> None:
        self._backend.do(self._backend.queue.retire, self._name)

    def release(self) -> None:
        self._backend.do(self._backend.queue.release, self._name)

    def close(self) -> None:
        self._backend.do(self._backend.queue.lose, self._name)


class SocketBackend(LocalBackend):
    """The local queue, reached through its socket."""

    def __init__(self, settings: QueueSettings) -> None:
        super().__init__(settings)
        self._folder = tempfile.TemporaryDirectory()
        self._path = Path(self._folder.name) / "queue"
        self._workers: list[SocketWorkerQueue] = []
        self._server = self.call(serve_workers(self.queue, self._path))

    def connect(self) -> Worker:
        self._workers.append(SocketWorkerQueue(self._path, PATIENCE_S))
        return self._workers[-1]

    def kill(self, worker: Worker) -> None:
        before = self.stats().workers
        worker.close()
        wait_until(lambda: self.stats().workers < before, "the queue knows that it is dead")

    def close(self) -> None:
        for worker in self._workers:
            worker.close()
        self.call(self._stop_serving())
        super().close()
        self._folder.cleanup()

    async def _stop_serving(self) -> None:
        self._server.close()
        await self._server.wait_closed()


class RedisBackend(Backend):
    """The queue in a real server; for the library there time stands still, but for what a test lets pass."""

    queue: RedisQueue

    def __init__(self, settings: QueueSettings, server: RedisServer) -> None:
        super().__init__(settings)
        self._url = server.url
        self._server = redis.Redis.from_url(server.url)
        self._server.flushall()
        _, text = library()
        counting = text.replace(READ_TIME, COUNT_TIME)
        assert counting != text
        self._server.function_load(counting, replace=True)
        self._workers: dict[int, tuple[RedisWorkerQueue, ProcessIdentity]] = {}
        self._identities = (
            ProcessIdentity(name=f"w{i}", machine=f"m{i}", pid=1, started=0.0) for i in itertools.count(1)
        )
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

    def _connect(self, identity: ProcessIdentity) -> RedisWorkerQueue:
        worker = RedisWorkerQueue(self._url, self.settings.lease_s, identity)
        self._workers[id(worker)] = worker, identity
        return worker
