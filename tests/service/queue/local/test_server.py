"""What is no frame closes its own connection and nothing else; a late reply never reaches the next call."""

import asyncio
import contextlib
import socket
import tempfile
import threading
from pathlib import Path

import msgspec
import pytest

from service.config import QueueSettings
from service.errors import SettingError, Unavailable
from service.protocol import Emission
from service.queue.local.gateway import LocalQueue
from service.queue.local.server import serve_workers
from service.queue.local.wire import (
    LENGTH,
    MAX_FRAME_BYTES,
    ClaimCall,
    EmitCall,
    RegisterCall,
    RenewCall,
    queue_url,
    socket_path,
)
from service.queue.local.worker import SocketWorkerQueue
from tests.claims import make_request
from tests.fleet.waiting import PATIENCE_S

REQUEST = make_request("a")
REGISTER = RegisterCall(models={"tiny": "r1"})


def framed(*messages: object) -> bytes:
    payloads = [msgspec.msgpack.encode(message) for message in messages]
    return b"".join(LENGTH.pack(len(payload)) + payload for payload in payloads)


@contextlib.asynccontextmanager
async def served_queue():
    queue = LocalQueue(QueueSettings())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "queue"
        server = await serve_workers(queue, path)
        try:
            yield queue, path
        finally:
            server.close()
            await server.wait_closed()


async def reply_to(reader: asyncio.StreamReader) -> object:
    (size,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
    return msgspec.msgpack.decode(await reader.readexactly(size))


CLAIMED = Emission(id="a", epoch=1, base=0, token_ids=(1,))
GARBAGE = {
    "no MessagePack": LENGTH.pack(2) + b"\xc1\xff",
    "an empty frame": LENGTH.pack(0),
    "an unknown verb": framed({"type": "drop"}),
    "a wrong type": framed({"type": "claim", "max_requests": "many", "wait_s": 0.0}),
    "an unknown field": framed({"type": "renew", "really": True}),
    "a frame too long": LENGTH.pack(MAX_FRAME_BYTES + 1),
    "a token that is none": framed(EmitCall(emissions=(msgspec.structs.replace(CLAIMED, token_ids=(1, -1)),))),
    "a token too large": framed(EmitCall(emissions=(msgspec.structs.replace(CLAIMED, token_ids=(1, 2**32)),))),
    "a call before the reply": framed(ClaimCall(max_requests=1, wait_s=60.0), RenewCall()),
    "HTTP": b"GET / HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
async def test_garbage_closes_its_connection_and_the_request_goes_on_elsewhere(garbage):
    async with served_queue() as (queue, path):
        await queue.submit([REQUEST])
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(framed(REGISTER, ClaimCall(max_requests=1, wait_s=0.0)))
        assert await reply_to(reader) == "worker-1"
        assert len(await reply_to(reader)) == 1
        writer.write(garbage)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        heir = SocketWorkerQueue(path, PATIENCE_S)
        await asyncio.to_thread(heir.register, {"tiny": "r1"})
        [claim] = await asyncio.to_thread(heir.claim, 9, PATIENCE_S)
        assert (claim.request, claim.token_ids) == (REQUEST, ())
        heir.close()


async def test_a_frame_may_come_byte_by_byte():
    async with served_queue() as (_, path):
        reader, writer = await asyncio.open_unix_connection(path)
        for byte in framed(REGISTER):
            writer.write(bytes([byte]))
            await writer.drain()
        assert await reply_to(reader) == "worker-1"
        writer.write(framed(RenewCall()))
        assert await reply_to(reader) is True
        writer.close()
        await writer.wait_closed()


async def test_a_worker_that_goes_while_it_waits_is_gone_at_once():
    async with served_queue() as (queue, path):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(framed(REGISTER))
        await reply_to(reader)
        writer.write(framed(ClaimCall(max_requests=1, wait_s=1e6)))
        writer.close()
        await writer.wait_closed()
        while (await queue.stats()).workers:
            await asyncio.sleep(0)
        await queue.submit([REQUEST])
        assert (await queue.stats()).waiting == 1


@pytest.fixture
def listener(tmp_path):
    """A socket where nobody understands us."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "queue"))
        server.listen()
        yield server


@pytest.mark.parametrize("answer", [b"", LENGTH.pack(9) + b"cut", LENGTH.pack(2**32 - 1), framed("no bool")])
def test_a_queue_that_answers_nonsense_is_gone(listener, tmp_path, answer):
    def answer_once():
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(answer)

    thread = threading.Thread(target=answer_once)
    thread.start()
    queue = SocketWorkerQueue(tmp_path / "queue", PATIENCE_S)
    with pytest.raises(Unavailable):
        queue.renew()
    with pytest.raises(Unavailable):
        queue.renew()
    thread.join()


def test_a_reply_that_does_not_come_in_time_closes_the_link(listener, tmp_path):
    queue = SocketWorkerQueue(tmp_path / "queue", 0.01)
    connection, _ = listener.accept()
    with connection, pytest.raises(Unavailable, match="timed out"):
        queue.renew()
    with pytest.raises(Unavailable):
        queue.renew()


def test_no_queue_there_is_told(tmp_path):
    with pytest.raises(Unavailable, match="no queue at"):
        SocketWorkerQueue(tmp_path / "nobody", 1.0)


def test_an_address_names_its_socket(tmp_path):
    assert socket_path(queue_url(tmp_path / "queue")) == tmp_path / "queue"


@pytest.mark.parametrize("url", ["redis://localhost", "local://relative", "/tmp/link", ""])
def test_another_address_is_refused(url):
    with pytest.raises(SettingError, match="local:///path/to/socket"):
        socket_path(url)
