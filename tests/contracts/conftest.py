"""Every test of a contract runs in each backend of the queue."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from service.config import QueueSettings
from tests.contracts.backend import Backend
from tests.contracts.backends import DirectBackend, RedisBackend, SocketBackend

BACKENDS: dict[str, type[Backend]] = {
    "local": DirectBackend,
    "socket": SocketBackend,
    "redis": RedisBackend,
    "valkey": RedisBackend,
}


@pytest.fixture(params=BACKENDS)
def open_backend(request):
    """A function that opens this backend with settings; the context manager closes it."""

    @contextlib.contextmanager
    def open_(**settings: Any) -> Iterator[Backend]:
        kind, options = BACKENDS[request.param], QueueSettings(**settings)
        if kind is RedisBackend:
            backend = RedisBackend(options, request.getfixturevalue("redis_servers")(request.param))
        else:
            backend = kind(options)
        try:
            yield backend
        finally:
            backend.close()

    return open_


@pytest.fixture
def backend(open_backend):
    with open_backend() as backend:
        yield backend
