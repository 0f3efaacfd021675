"""The worker's verbs across a Unix socket: MessagePack frames behind their length, one reply to each call, in order.

A worker is two connections: claims wait on one while everything else passes on the other. When either closes, the
worker is dead and its requests go to another at once. What is no frame closes it.
"""

import asyncio
import contextlib
import itertools
import logging
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar, cast

import msgspec

from service.errors import SettingError, Unavailable
from service.protocol import Claim, Emission, EmitStatus, Wire
from service.queue.local import LocalQueue

MAX_FRAME_BYTES = 64 * 2**20
LENGTH = struct.Struct(">I")
SCHEME = "local://"

logger = logging.getLogger(__name__)


class RegisterCall(Wire, frozen=True, kw_only=True, tag="register"):
    """`WorkerQueue.register`; answered with the worker's name."""

    models: dict[str, str]


class JoinCall(Wire, frozen=True, kw_only=True, tag="join"):
    """Makes this connection another one of `worker`; answered with nil."""

    worker: str


class ClaimCall(Wire, frozen=True, kw_only=True, tag="claim"):
    """`WorkerQueue.claim`; answered with claims."""

    max_requests: int
    wait_s: float


class EmitCall(Wire, frozen=True, kw_only=True, tag="emit"):
    """`WorkerQueue.emit`; answered with statuses."""

    emissions: tuple[Emission, ...]


class RenewCall(Wire, frozen=True, kw_only=True, tag="renew"):
    """`WorkerQueue.renew`; answered with a bool."""


class RetireCall(Wire, frozen=True, kw_only=True, tag="retire"):
    """`WorkerQueue.retire`; answered with nil."""


class ReleaseCall(Wire, frozen=True, kw_only=True, tag="release"):
    """`WorkerQueue.release`; answered with nil."""


Call = RegisterCall | JoinCall | ClaimCall | EmitCall | RenewCall | RetireCall | ReleaseCall
Reply = TypeVar("Reply")


class FrameError(Exception):
    """What came is no frame, or no call is due."""


def socket_path(url: str) -> Path:
    """Return the path in `local:///path/to/socket`.

    Raises:
        SettingError: another kind of address.
    """
    path = Path(url.removeprefix(SCHEME))
    if not url.startswith(SCHEME) or not path.is_absolute():
        raise SettingError(f"queue = '{url}': write local:///path/to/socket")
    return path


def queue_url(path: Path) -> str:
    """Return the address of the queue behind the socket at `path`."""
    return f"{SCHEME}{path}"


async def serve_link(queue: LocalQueue, path: Path) -> asyncio.Server:
    """Serve `queue` to worker processes on a Unix socket at `path`, whose folder decides who may connect."""
    ids = itertools.count(1)
    loop = asyncio.get_running_loop()
    return await loop.create_unix_server(lambda: _Connection(queue, f"worker-{next(ids)}"), path)


class LinkQueue:
    """A `WorkerQueue` in another process.

    Args:
        path: The socket of `serve_link`.
        timeout_s: Seconds after which a reply that has not come never will.

    Raises:
        Unavailable: from every method, when the queue is gone; this object is of no more use then.
    """

    gather_s = 0.01

    def __init__(self, path: Path, timeout_s: float) -> None:
        self._path = path
        self._has_joined = False
        self._calls = _Channel(path, timeout_s)
        self._claims = _Channel(path, timeout_s)
        self._has_joined = False
        self._nothing = msgspec.msgpack.Decoder(None)
        self._name = msgspec.msgpack.Decoder(str)
        self._claimed = msgspec.msgpack.Decoder(list[Claim])
        self._statuses = msgspec.msgpack.Decoder(list[EmitStatus])
        self._bool = msgspec.msgpack.Decoder(bool)

    def register(self, models: dict[str, str]) -> None:
        """Say which models (name → revision) this worker serves."""
        name = self._call(self._calls, RegisterCall(models=models), self._name)
        if not self._has_joined:  # once: when it registers anew, a claim may be waiting there
            self._call(self._claims, JoinCall(worker=name), self._nothing)
            self._has_joined = True

    def claim(self, max_requests: int, wait_s: float) -> list[Claim]:
        """Take up to `max_requests`, waiting up to `wait_s` for the first."""
        return self._call(self._claims, ClaimCall(max_requests=max_requests, wait_s=wait_s), self._claimed, wait_s)

    def emit(self, emissions: Sequence[Emission]) -> list[EmitStatus]:
        """Append one step's tokens and ends; renews the lease."""
        return self._call(self._calls, EmitCall(emissions=tuple(emissions)), self._statuses)

    def renew(self) -> bool:
        """Renew the lease; False when it was lost."""
        return self._call(self._calls, RenewCall(), self._bool)

    def retire(self) -> None:
        """Claim no more."""
        self._call(self._calls, RetireCall(), self._nothing)

    def release(self) -> None:
        """Hand everything claimed back; claim no more."""
        self._call(self._calls, ReleaseCall(), self._nothing)

    def close(self) -> None:
        """Close the connections: what is still claimed counts as lost."""
        self._calls.close()
        self._claims.close()

    def _call(
        self, channel: "_Channel", call: Call, reply: msgspec.msgpack.Decoder[Reply], wait_s: float = 0.0
    ) -> Reply:
        try:
            return reply.decode(channel.ask(msgspec.msgpack.encode(call), wait_s))
        except (OSError, FrameError, msgspec.DecodeError) as error:
            self.close()  # a reply that comes late must not be taken for the next call's
            raise Unavailable(f"the queue at {self._path} is gone: {error}") from error


class _Channel:
    """A worker's end of one connection."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise Unavailable(f"no queue at {path}: {error}") from error

    def ask(self, payload: bytes, wait_s: float) -> bytes:
        """Send a call; return its reply, for which the queue may wait for `wait_s`."""
        self._socket.settimeout(self._timeout_s + wait_s)
        self._socket.sendall(_frame(payload))
        (size,) = LENGTH.unpack(self._receive(LENGTH.size))
        return self._receive(_checked(size))

    def close(self) -> None:
        """Close it; a thread that waits for a reply fails."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _receive(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            chunk = self._socket.recv(size - len(data))
            if not chunk:
                raise FrameError("connection closed")
            data += chunk
        return bytes(data)


class _Connection(asyncio.Protocol):
    """The gateway's end of one connection."""

    def __init__(self, queue: LocalQueue, worker: str) -> None:
        self._queue = queue
        self._worker = worker
        self._buffer = bytearray()
        self._claiming: asyncio.Task[None] | None = None
        self._calls = msgspec.msgpack.Decoder(Call)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            while (payload := _take_frame(self._buffer)) is not None:
                self._answer(self._calls.decode(payload))
        except (FrameError, msgspec.DecodeError, OverflowError) as error:
            logger.warning("closing a link: %s", error, extra={"worker": self._worker})
            self._buffer.clear()
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        if self._claiming is not None:
            self._claiming.cancel()
        self._queue.lose(self._worker)

    def _answer(self, call: Call) -> None:
        if self._claiming is not None:
            raise FrameError("a call before the reply to the last")
        match call:
            case RegisterCall():
                self._queue.register(self._worker, call.models)
                self._reply(self._worker)
            case JoinCall():
                self._worker = call.worker
                self._reply(None)
            case ClaimCall():
                self._claiming = asyncio.ensure_future(self._claim(call))
            case EmitCall():
                self._reply(self._queue.emit(self._worker, call.emissions))
            case RenewCall():
                self._reply(self._queue.renew(self._worker))
            case RetireCall():
                self._queue.retire(self._worker)
                self._reply(None)
            case ReleaseCall():
                self._queue.release(self._worker)
                self._reply(None)

    async def _claim(self, call: ClaimCall) -> None:
        claims = await self._queue.claim(self._worker, call.max_requests, call.wait_s)
        self._claiming = None
        self._reply(claims)

    def _reply(self, reply: object) -> None:
        self._transport.write(_frame(msgspec.msgpack.encode(reply)))


def _frame(payload: bytes) -> bytes:
    return LENGTH.pack(_checked(len(payload))) + payload


def _take_frame(buffer: bytearray) -> bytes | None:
    """Cut the first whole frame out of `buffer` and return what it carries."""
    if len(buffer) < LENGTH.size:
        return None
    (size,) = LENGTH.unpack_from(buffer)
    end = LENGTH.size + _checked(size)
    if len(buffer) < end:
        return None
    payload = bytes(buffer[LENGTH.size : end])
    del buffer[:end]
    return payload


def _checked(size: int) -> int:
    if size > MAX_FRAME_BYTES:
        raise FrameError(f"a frame of {size} bytes; at most {MAX_FRAME_BYTES}")
    return size
