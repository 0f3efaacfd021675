"""The bad network is exactly as bad as it is told to be."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.fleet.proxy import HOST, Proxy
from tests.fleet.waiting import PATIENCE_S, wait_until


@pytest.fixture
def heard() -> list[bytes]:
    """What has arrived at the server."""
    return []


@pytest.fixture
def echo(heard) -> Iterator[int]:
    """Port of a server that sends back what it gets, and `bye` when the other side has closed its half."""
    with socket.create_server((HOST, 0)) as listener:
        threading.Thread(target=answer_all, args=(listener, heard), daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def answer_all(listener: socket.socket, heard: list[bytes]) -> None:
    with contextlib.suppress(OSError):
        while True:
            threading.Thread(target=answer, args=(listener.accept()[0], heard), daemon=True).start()


def answer(connection: socket.socket, heard: list[bytes]) -> None:
    with connection, contextlib.suppress(OSError):
        while data := connection.recv(65_536):
            heard.append(data)
            connection.sendall(data)
        connection.sendall(b"bye")


@pytest.fixture
def proxy(echo) -> Iterator[Proxy]:
    with Proxy(echo) as proxy:
        yield proxy


@pytest.fixture
def client(proxy) -> Iterator[socket.socket]:
    with connect(proxy) as client:
        yield client


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection((HOST, proxy.port), timeout=PATIENCE_S)


def ask(client: socket.socket, data: bytes) -> bytes:
    client.sendall(data)
    got = b""
    while len(got) < len(data):
        chunk = client.recv(65_536)
        if not chunk:
            break
        got += chunk
    return got


def test_it_passes_everything_on(proxy, client):
    data = bytes(range(256)) * 4000
    sending = threading.Thread(target=client.sendall, args=(data,))
    sending.start()
    got = b""
    while len(got) < len(data):
        got += client.recv(65_536)
    sending.join()
    assert got == data
    client.shutdown(socket.SHUT_WR)
    assert client.recv(10) == b"bye"
    assert (proxy.num_accepted, proxy.num_broken) == (1, 0)


def test_latency_holds_for_each_way(proxy, client):
    proxy.latency_s = 0.05
    began = time.monotonic()
    assert ask(client, b"one") == b"one"
    assert time.monotonic() - began >= 0.1


def test_a_narrow_way_takes_its_time(proxy, client):
    proxy.bytes_per_s = 100_000
    began = time.monotonic()
    assert ask(client, bytes(10_000)) == bytes(10_000)
    assert time.monotonic() - began >= 0.2


def test_a_black_hole_answers_nothing_and_heals(proxy, client):
    assert ask(client, b"one") == b"one"
    proxy.swallow()
    client.sendall(b"two")
    wait_until(lambda: proxy.num_swallowed, "something fell in")
    client.settimeout(0.05)
    with pytest.raises(TimeoutError):
        client.recv(10)
    proxy.heal()
    client.settimeout(PATIENCE_S)
    with pytest.raises(ConnectionResetError):
        client.recv(10)
    with connect(proxy) as again:
        assert ask(again, b"three") == b"three"


def test_replies_alone_can_vanish(proxy, client, heard):
    proxy.swallow(replies_only=True)
    client.sendall(b"one")
    wait_until(lambda: proxy.num_swallowed, "the reply fell in")
    assert heard == [b"one"]


def test_a_reset_is_one_and_new_connections_pass(proxy, client):
    assert ask(client, b"one") == b"one"
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        client.recv(10)
    assert proxy.num_broken == 1
    with connect(proxy) as again:
        assert ask(again, b"two") == b"two"


def test_a_cut_way_is_cut_until_it_heals(proxy, client):
    assert ask(client, b"one") == b"one"
    proxy.cut()
    assert client.recv(10) == b""
    with connect(proxy) as refused:
        assert refused.recv(10) == b""
    assert proxy.num_broken == 2
    proxy.heal()
    with connect(proxy) as again:
        assert ask(again, b"two") == b"two"


def test_a_half_closed_connection_still_takes(proxy, client):
    assert ask(client, b"one") == b"one"
    proxy.half_close()
    assert client.recv(10) == b""
    client.sendall(b"still here")


def test_nobody_at_the_target_is_a_reset(proxy):
    with socket.create_server((HOST, 0)) as nobody:
        proxy.target = nobody.getsockname()[1]
    with pytest.raises(ConnectionResetError), connect(proxy) as client:
        client.recv(10)
    wait_until(lambda: proxy.num_open == 0, "the connection is forgotten")
