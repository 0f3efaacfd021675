"""A real server, clean before each test and whole after it; a way there that can be made a bad one; and workers."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator

import msgspec
import pytest

from service.config import QueueSettings
from service.queue.process_identity import ProcessIdentity
from service.queue.redis.connection import TICK_S
from service.queue.redis.gateway import RedisQueue
from service.queue.redis.worker import RedisWorkerQueue
from tests.fleet.proxy import HOST, Proxy
from tests.fleet.redis_server import find_programs

in_each_loop = pytest.mark.parametrize(
    "anyio_backend", [("asyncio", {"use_uvloop": False}), ("asyncio", {"use_uvloop": True})], ids=["asyncio", "uvloop"]
)
"""Runs a test in each kind of loop that gateways run in."""


@contextlib.asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """Fail where it takes longer, as the loop counts: in turns of a tick. A machine that lags has fewer of them."""
    passed_s = 0.0

    async def count() -> None:
        nonlocal passed_s
        while True:
            await asyncio.sleep(TICK_S)
            passed_s += TICK_S

    counting = asyncio.create_task(count())
    yield
    counting.cancel()
    assert passed_s < seconds


@pytest.fixture
def server(redis_servers):
    """A server that tests may stop, starve and flush; it has the default settings again after each."""
    server = redis_servers(next(iter(find_programs()), "redis"))
    with server.client() as client:
        client.flushall()
        client.function_flush()
    yield server
    server.resume()
    with server.client() as client:
        client.config_set("maxmemory", 0, "min-replicas-to-write", 0)


@pytest.fixture
def client(server):
    """Looks into the server."""
    with server.client() as client:
        yield client


@pytest.fixture
def proxy(server):
    """The way to the server."""
    with Proxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def far_url(proxy) -> str:
    """The server's, by way of the proxy."""
    return f"redis://{HOST}:{proxy.port}/0"


@pytest.fixture
def submit(server, make_request):
    """A function that submits requests of these ids at once, as a gateway does, for tests that are no coroutines."""

    async def do(ids):
        async with RedisQueue(server.url, QueueSettings()) as queue:
            await queue.submit([make_request(request_id) for request_id in ids])

    return lambda *ids: asyncio.run(do(ids))


@pytest.fixture
def connect():
    """A function that makes a worker's face, of a name and a machine of its own: none sees another dead."""
    identities = (ProcessIdentity(name=f"w{i}", machine=f"m{i}", pid=1, started=0.0) for i in itertools.count())
    opened = []

    def make(url, lease_s=20.0, **fields):
        identity = msgspec.structs.replace(next(identities), **fields)
        opened.append(RedisWorkerQueue(url, lease_s, identity))
        return opened[-1]

    yield make
    for worker in opened:
        worker.close()


@pytest.fixture
def make_worker(connect):
    """A function that makes one that has registered."""

    def make(url, lease_s=20.0, **fields):
        worker = connect(url, lease_s, **fields)
        worker.register({"tiny": "r1"})
        return worker

    return make
