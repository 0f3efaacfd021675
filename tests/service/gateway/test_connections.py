"""Clients that are slow, silent, endless, broken or gone."""

import contextlib
import json
import socket

import pytest

from tests.fleet.sockets import read_to_end
from tests.fleet.waiting import wait_until

END_OF_HEADER = b"\r\n\r\n"


def request_bytes(body: dict, *headers: str, method: str = "POST", path: str = "/generate") -> bytes:
    content = json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: test", f"Content-Length: {len(content)}", *headers]
    return "\r\n".join(lines).encode() + END_OF_HEADER + content


def read_until(connection: socket.socket, wanted: bytes) -> bytes:
    received = b""
    while wanted not in received:
        chunk = connection.recv(65_536)
        assert chunk, received
        received += chunk
    return received


@pytest.fixture(scope="module")
def hasty(start_gateway):
    """A gateway that hardly waits for what a client sends: for requests that never come."""
    with start_gateway(receive_timeout_s=0.3) as gateway:
        yield gateway


RECEIVE_TIMEOUT_S, PING_S = 1.5, 0.1


@pytest.fixture(scope="module")
def brisk(start_gateway):
    """A gateway that waits as long as a request takes to come, however busy the machine is, and not for readers."""
    with start_gateway(receive_timeout_s=RECEIVE_TIMEOUT_S, write_timeout_s=0.3, ping_s=PING_S) as gateway:
        yield gateway


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_ends_all_its_sequences(gateway, stream):
    with gateway.connect() as connection:
        connection.sendall(request_bytes({"prompt": f"endless {stream}", "n": 3, "stream": stream}))
        claimed = gateway.engine.wait_for_claims(f"endless {stream}", 3)
    gateway.engine.wait_for_cancels(claimed)


def test_a_client_that_goes_away_in_mid_stream_ends_its_sequence(gateway):
    with gateway.connect() as connection:
        connection.sendall(request_bytes({"prompt": "endless mid-stream", "stream": True}))
        read_until(connection, b"data: {")
    gateway.engine.wait_for_cancels(gateway.engine.wait_for_claims("endless mid-stream"))


@pytest.mark.parametrize(
    "sent",
    [
        b"POST /gener",
        b"POST /generate HTTP/1.1\r\nHost: test\r\nX-Slow: ",
        b'POST /generate HTTP/1.1\r\nHost: test\r\nContent-Length: 20\r\n\r\n{"prompt": ',
        b"POST /generate HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
    ],
)
def test_a_request_that_stops_half_way_is_refused_and_closed(hasty, sent):
    with hasty.connect() as connection:
        connection.sendall(sent)
        answer = read_to_end(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"x-request-id: " in answer
    assert json.loads(answer.partition(END_OF_HEADER)[2])["error"]["message"].endswith("within 0.3 s")


def test_a_header_that_drips_does_not_gain_time(hasty):
    with hasty.connect() as connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.settimeout(0.02)
        connection.sendall(b"GET /livez HTTP/1.1\r\nX-Drip: ")
        for _ in range(500):
            connection.sendall(b"x")
            with contextlib.suppress(TimeoutError):
                assert connection.recv(65_536).startswith(b"HTTP/1.1 400 ")
                return
        pytest.fail("the connection is still open")


def test_a_second_request_has_its_own_deadline(brisk):
    with brisk.connect() as connection:
        connection.sendall(request_bytes({}, method="GET", path="/livez"))
        assert b"HTTP/1.1 200 " in read_until(connection, b'"alive"}')
        connection.sendall(b"GET /livez HT")
        assert read_to_end(connection).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("sent", [b"", b"\r\n"])
def test_a_silent_connection_is_closed(hasty, sent):
    with hasty.connect() as connection:
        connection.sendall(sent)
        read_to_end(connection)


def test_many_idle_connections_keep_nobody_out_and_are_closed(brisk):
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(brisk.connect()) for _ in range(200)]
        assert brisk.generate(prompt="Once", max_tokens=3).status_code == 200
        assert [read_to_end(connection) for connection in idle] == [b""] * 200


def test_one_connection_too_many_is_told_so(start_gateway):
    with start_gateway(max_connections=3) as gateway, contextlib.ExitStack() as stack:
        for _ in range(2):  # the test's own client holds the third
            stack.enter_context(gateway.connect())
        refused = stack.enter_context(gateway.connect())
        answer = read_to_end(refused)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1\r\n" in answer
    assert b'"code":"unavailable"' in answer


def test_a_client_that_reads_nothing_is_closed_and_its_sequence_ends(brisk):
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", brisk.port))
        connection.sendall(request_bytes({"prompt": "endless unread", "stream": True}))
        brisk.engine.wait_for_cancels(brisk.engine.wait_for_claims("endless unread"))


def test_for_a_client_that_reads_slowly_little_is_kept_here(start_gateway):
    with start_gateway(write_timeout_s=1e6) as gateway, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", gateway.port))
        connection.sendall(request_bytes({"prompt": "endless slow", "stream": True}))
        ((request_id, _),) = gateway.engine.wait_for_claims("endless slow").items()
        connections = gateway.server.server_state.connections
        wait_until(lambda: any(one.flow.write_paused for one in list(connections)), "the client is behind")
        [slow] = [one for one in list(connections) if one.flow.write_paused]
        with gateway.client.stream("GET", f"/streams/{request_id.removesuffix('-0')}") as answer:
            read_lines = answer.iter_lines()
            for _ in range(1000):  # frames that go to another meanwhile
                next(read_lines)
        assert slow.transport.get_write_buffer_size() < 200_000


def test_a_long_silence_is_bridged_by_comments(brisk):
    with brisk.connect() as connection:
        connection.sendall(request_bytes({"prompt": "mute", "stream": True}))
        answer = read_until(connection, b": ping\n\n")
    assert b"content-type: text/event-stream\r\n" in answer
    assert b"data:" not in answer


def chunked(size: int, chunk: int = 10_000):
    for _ in range(size // chunk):
        yield b"x" * chunk


@pytest.mark.parametrize("size", [270_000, 10_000_000])
@pytest.mark.parametrize("declared", [True, False])
def test_a_body_over_the_cap_is_a_413(gateway, size, declared):
    content = b"x" * size if declared else chunked(size)
    answer = gateway.client.post("/generate", content=content)
    assert answer.status_code == 413
    assert answer.headers["connection"] == "close"
    assert answer.json()["error"]["code"] == "body_too_large"


def test_a_body_at_the_cap_is_taken(gateway):
    content = json.dumps({"prompt": "x"}).encode()
    answer = gateway.client.post("/generate", content=content + b" " * (262_144 - len(content)))
    assert answer.status_code == 200


def test_an_endless_body_is_cut_after_its_413(gateway):
    with gateway.connect() as connection:
        connection.sendall(b"POST /generate HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(10_000):
                connection.sendall(b"10000\r\n" + b"x" * 65_536 + b"\r\n")
            pytest.fail("600 MB were taken")


def test_a_body_that_stays_over_the_cap_is_told_at_once(gateway):
    with gateway.connect() as connection:
        connection.sendall(b"POST /generate HTTP/1.1\r\nHost: test\r\nContent-Length: 999999\r\n\r\n{")
        assert read_until(connection, b"body_too_large").startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "sent", [b"no http at all\r\n\r\n", b"BREW /metrics HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00"]
)
def test_what_is_no_http_is_refused_in_the_envelope(gateway, sent):
    with gateway.connect() as connection:
        connection.sendall(sent)
        answer = read_to_end(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"code":"invalid_request"' in answer
    assert b"x-request-id: " in answer


def test_an_endless_header_is_refused(gateway):
    with gateway.connect() as connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(b"GET /livez HTTP/1.1\r\nX-Long: ")
        for _ in range(1000):
            connection.sendall(b"x" * 65_536)
        pytest.fail("65 MB were taken")


def test_requests_in_one_packet_are_answered_in_turn(gateway):
    with gateway.connect() as connection:
        first = request_bytes({"prompt": "Once", "max_tokens": 40, "stream": True})
        second = request_bytes({}, "Connection: close", method="GET", path="/livez")
        connection.sendall(first + second)
        answer = read_to_end(connection)
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert answer.index(b"[DONE]") < answer.index(b'"alive"')


def test_a_stream_outlives_the_deadline_for_receiving(brisk):
    with brisk.connect() as connection:
        connection.sendall(request_bytes({"prompt": "mute", "stream": True}) + b"\r\n")
        for _ in range(round(2 * RECEIVE_TIMEOUT_S / PING_S)):
            read_until(connection, b": ping\n\n")
