"""Homes of the queue: the same verbs, whoever carries them. Each lives in an event loop in a thread of its own."""

import asyncio
import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest

from service.config import QueueSettings
from service.protocol import Claim, Emission, EmitStatus, QueueStats, Request, SamplingParams, Update
from service.queue.base import WorkerQueue
from service.queue.link import LinkQueue, serve_link
from service.queue.local import LocalQueue

MODELS = {"tiny": "r1"}
TIMEOUT_S = 30.0
T = TypeVar("T")


class Clock:
    """A clock that only a test moves."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Watcher:
    """Reads the updates of one request, or of several, in the home's loop, to the end."""

    def __init__(self, home: "Home", *request_ids: str) -> None:
        self.updates: list[Update] = []
        self._home = home
        self._task = home.start(self._read(home.queue.watch(request_ids)))

    async def _read(self, watched) -> None:
        async for updates in watched:
            self.updates += updates

    @property
    def token_ids(self) -> list[int]:
        """All tokens seen, in order; fails on a gap, a repetition or a second end."""
        self._home.settle()
        seen: list[int] = []
        for update in self.updates:
            assert update.base == len(seen)
            seen += update.token_ids
        assert all(update.end is None for update in self.updates[:-1])
        return seen

    def to_end(self) -> Update:
        self._task.result(TIMEOUT_S)
        assert self.updates[-1].end is not None
        return self.updates[-1]


class Worker(WorkerQueue, Protocol):
    def close(self) -> None: ...


class Home:
    """A queue, its loop, its clock; `connect` makes the face of one worker."""

    def __init__(self, settings: QueueSettings) -> None:
        self.clock = Clock()
        self.queue = LocalQueue(settings, self.clock)
        self.settings = settings
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._tasks = []

    def start(self, coroutine: Coroutine[Any, Any, T]):
        self._tasks.append(asyncio.run_coroutine_threadsafe(coroutine, self._loop))
        return self._tasks[-1]

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(TIMEOUT_S)

    def do(self, function: Callable[..., T], *args: Any) -> T:
        async def run() -> T:
            return function(*args)

        return self.call(run())

    def settle(self) -> None:
        """Let everything run that can run now."""
        for _ in range(3):
            self.call(asyncio.sleep(0))

    def submit(self, *requests: Request) -> None:
        self.call(self.queue.submit(requests))

    def cancel(self, request_id: str) -> None:
        self.call(self.queue.cancel(request_id))

    def stats(self) -> QueueStats:
        return self.call(self.queue.stats())

    def reap(self) -> None:
        self.do(self.queue.reap)

    def watch(self, *request_ids: str) -> Watcher:
        return Watcher(self, *request_ids)

    def worker(self, models: dict[str, str] | None = None) -> Worker:
        worker = self.connect()
        worker.register(MODELS if models is None else models)
        return worker

    def kill(self, worker: Worker) -> None:
        """Let the worker die; return when the queue knows."""
        before = self.stats().workers
        worker.close()
        until = time.monotonic() + TIMEOUT_S
        while self.stats().workers == before:
            assert time.monotonic() < until

    def connect(self) -> Worker:
        raise NotImplementedError

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self.settle()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class DirectHome(Home):
    """The local queue, called in its own loop."""

    def connect(self) -> Worker:
        self._names = getattr(self, "_names", 0) + 1
        return DirectWorker(self, f"direct-{self._names}")


class DirectWorker:
    def __init__(self, home: Home, name: str) -> None:
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


class LinkHome(Home):
    """The local queue, reached through its socket."""

    def __init__(self, settings: QueueSettings) -> None:
        super().__init__(settings)
        self._folder = tempfile.TemporaryDirectory()
        self.path = Path(self._folder.name) / "link"
        self._workers: list[LinkQueue] = []
        self._server = self.call(serve_link(self.queue, self.path))

    def connect(self) -> Worker:
        self._workers.append(LinkQueue(self.path, TIMEOUT_S))
        return self._workers[-1]

    def close(self) -> None:
        for worker in self._workers:
            worker.close()
        self.do(self._server.close)
        self.call(self._server.wait_closed())
        super().close()
        self._folder.cleanup()


HOMES: dict[str, type[Home]] = {"local": DirectHome, "link": LinkHome}


@pytest.fixture(params=HOMES)
def open_home(request):
    """A function that opens this home with settings; the context manager closes it."""

    @contextlib.contextmanager
    def open_(**settings: Any) -> Iterator[Home]:
        home = HOMES[request.param](QueueSettings(**settings))
        try:
            yield home
        finally:
            home.close()

    return open_


@pytest.fixture
def home(open_home):
    with open_home() as home:
        yield home


@pytest.fixture(scope="session")
def make_request():
    def make(request_id: str, *, model="tiny", revision="r1", deadline=None, num_prompt=3, max_tokens=5) -> Request:
        params = SamplingParams(max_tokens=max_tokens, seed=7)
        prompt = tuple(range(num_prompt))
        return Request(
            id=request_id, model=model, revision=revision, token_ids=prompt, params=params, deadline=deadline
        )

    return make
