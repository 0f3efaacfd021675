"""Every test of a contract runs in each home of the queue."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from service.config import QueueSettings
from tests.contracts.home import Home
from tests.contracts.homes import DirectHome, LinkHome, RedisHome

HOMES: dict[str, type[Home]] = {"local": DirectHome, "link": LinkHome, "redis": RedisHome, "valkey": RedisHome}


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
