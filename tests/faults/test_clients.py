"""Clients that leave, crawl or flood: they harm nobody, and nothing is computed for one who is gone."""

import contextlib
import json
import signal
import socket
import threading
from collections.abc import Iterator

import httpx
import pytest

from tests.faults.scene import Footprint, check_secrecy
from tests.fleet.client import Streamed, events
from tests.fleet.fleet import SLOW_S
from tests.fleet.sockets import read_to_end
from tests.fleet.waiting import PATIENCE_S, wait_until

LATE_TOKENS = 400
"""That a worker may compute for one who is gone, before it is told: far fewer than such a request wants."""

CRAWLER_BYTES = 32 * 2**20
"""Of a gateway's memory, while it waits for one who reads a byte a second."""


@pytest.fixture(autouse=True)
def harmless(fleet, scene) -> Iterator[None]:
    """Afterwards the fleet is as it was, and others are answered."""
    before = Footprint(fleet)
    yield
    before.check(fleet)
    check_secrecy(fleet)
    with scene(count=2, num_tokens=20):
        pass


def aborted(fleet) -> float:
    return sum(gateway.metric("requests_total", ".*abort.*") for gateway in fleet.gateways)


@contextlib.contextmanager
def streaming(fleet, body) -> Iterator[Iterator[str]]:
    """The lines of a stream without an idempotency key: when its client leaves, nobody wants it."""
    with (
        httpx.Client(base_url=fleet.urls[0], timeout=PATIENCE_S, trust_env=False) as http,
        http.stream("POST", "/generate", json=body | {"stream": True}) as response,
    ):
        yield response.iter_lines()


def test_gone_before_the_first_token(fleet, bodies):
    [body] = bodies(1, 100, num_prompt=1900)
    before = aborted(fleet)
    for worker in fleet.workers:
        worker.pause()
    with streaming(fleet, body):
        wait_until(lambda: fleet.num_open(), "it is accepted")
    wait_until(lambda: aborted(fleet) == before + 1, "it is cancelled")
    for worker in fleet.workers:
        worker.resume()


def test_gone_in_mid_stream(fleet, bodies):
    before, rows = aborted(fleet), fleet.num_rows()
    fleet.set_pace(SLOW_S)  # what is computed of them is by mistake then, not because it went too fast to be stopped
    wanted = bodies(4, 1900)
    for body in wanted:
        with streaming(fleet, body) as lines:
            next(lines)
    wait_until(lambda: aborted(fleet) == before + len(wanted), "they are cancelled")
    wait_until(lambda: fleet.num_open() == 0, "nothing runs any more")
    assert fleet.num_rows() - rows < len(wanted) * LATE_TOKENS


def test_gone_while_queued(fleet, bodies):
    before, rows = aborted(fleet), fleet.num_rows()
    for worker in fleet.workers:
        worker.pause()
    wanted = bodies(24, 1900)
    with contextlib.ExitStack() as stack:
        for body in wanted:
            stack.enter_context(streaming(fleet, body))
        assert fleet.num_open() == len(wanted)
    wait_until(lambda: aborted(fleet) == before + len(wanted), "they are cancelled")
    for worker in fleet.workers:
        worker.resume()
    wait_until(lambda: fleet.num_open() == 0, "nothing runs any more")
    assert fleet.num_rows() - rows < len(wanted) * LATE_TOKENS


def test_one_who_reads_late(fleet, oracle, bodies):
    """It is computed at its own pace, and he gets all of it."""
    [body] = bodies(1, 1900)
    with streaming(fleet, body) as lines:
        wait_until(lambda: fleet.num_open() == 0, "it is computed, read or not")
        got = Streamed()
        for event_id, data in events(lines):
            got.take(event_id, data)
    oracle.check(body, got)


@pytest.mark.chaos
def test_one_byte_a_second(fleet, scene, bodies):
    """What he does not take is not kept for him here, others are served, and in the end he is closed out."""
    [body] = bodies(1, 1900)
    gateway, over = fleet.gateways[0], threading.Event()
    before = gateway.usage.memory_info().rss
    with connect(fleet, receive_bytes=4096) as client:
        ask = json.dumps(body | {"n": 16, "logprobs": 5, "stream": True}).encode()
        client.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(ask), ask))
        reading = threading.Thread(target=crawl, args=(client, over))
        reading.start()
        with scene(count=4) as running:
            running.wait_for_tokens()
            assert is_connected(gateway, client), "it is still being served"
        assert gateway.usage.memory_info().rss < before + CRAWLER_BYTES
        wait_until(lambda: not is_connected(gateway, client), "it is closed")
        over.set()
        reading.join()


@pytest.mark.parametrize("size", [300_000, 10_000_000])
def test_a_body_that_is_too_large(fleet, size):
    response = httpx.post(f"{fleet.urls[0]}/generate", content=b"x" * size, timeout=PATIENCE_S, trust_env=False)
    assert response.status_code == 413


def test_a_body_that_never_ends(fleet):
    with connect(fleet) as client:
        client.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
        with contextlib.suppress(OSError):
            for _ in range(100):
                client.sendall(chunk)
        assert b" 413 " in read_to_end(client)


def test_a_thousand_idle_sockets(fleet, scene):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(connect(fleet)) for _ in range(1000)]
        gateway = fleet.gateways[0]
        wait_until(lambda: gateway.usage.num_fds() >= len(sockets), "all are accepted")
        with scene(count=4, num_tokens=100):
            pass


@pytest.mark.chaos
@pytest.mark.parametrize(
    "sent", [b"", b"GET /livez HTTP/1.1\r\nHo", b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"]
)
def test_one_who_never_finishes_its_sentence(fleet, sent):
    with connect(fleet) as client:
        client.sendall(sent)
        read_to_end(client)  # up to the end: it is closed


def test_a_gateway_killed_and_its_streams_read_on_at_another(scene, fleet):
    with scene() as running:
        running.wait_for_tokens(20)
        fleet.gateways[0].kill()
        assert running.num_unfinished() > 0
    assert fleet.gateways[0].exits[-1] == -signal.SIGKILL
    assert any(got.num_breaks for got in running.streams)


def connect(fleet, receive_bytes: int | None = None) -> socket.socket:
    client = socket.socket()
    client.settimeout(PATIENCE_S)
    if receive_bytes is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    client.connect(("127.0.0.1", fleet.gateways[0].port))
    return client


def is_connected(gateway, client: socket.socket) -> bool:
    peers = {connection.raddr for connection in gateway.usage.net_connections("tcp")}
    return client.getsockname() in peers


def crawl(client: socket.socket, over: threading.Event) -> None:
    """Read a byte a second."""
    with contextlib.suppress(ConnectionResetError):
        while not over.wait(1.0):
            client.recv(1)
