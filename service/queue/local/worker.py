"""A worker's end of the socket: the verbs of a `WorkerQueue`, one reply awaited for each call."""

import contextlib
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
from typing_extensions import override

from service.errors import Unavailable
from service.protocol import Claim, Emission, EmitStatus
from service.queue.base import WorkerQueue
from service.queue.local.wire import (
    LENGTH,
    Call,
    ClaimCall,
    EmitCall,
    FrameError,
    JoinCall,
    RegisterCall,
    ReleaseCall,
    RenewCall,
    RetireCall,
    checked_size,
    frame,
)

Reply = TypeVar("Reply")


class SocketWorkerQueue(WorkerQueue):
    """A `WorkerQueue` in another process.

    Args:
        path: The socket of `server.serve_workers`.
        timeout_s: Seconds after which a reply that has not come never will.

    Raises:
        Unavailable: from every method, when the queue is gone; this object is of no more use then.
    """

    gather_s = 0.01

    def __init__(self, path: Path, timeout_s: float) -> None:
        self._path = path
        self._calls = _Channel(path, timeout_s)
        self._claims = _Channel(path, timeout_s)
        self._has_joined = False
        self._nothing = msgspec.msgpack.Decoder(None)
        self._name = msgspec.msgpack.Decoder(str)
        self._claimed = msgspec.msgpack.Decoder(list[Claim])
        self._statuses = msgspec.msgpack.Decoder(list[EmitStatus])
        self._bool = msgspec.msgpack.Decoder(bool)

    @override
    def register(self, models: dict[str, str]) -> None:
        name = self._call(self._calls, RegisterCall(models=models), self._name)
        if not self._has_joined:  # once: when it registers anew, a claim may be waiting there
            self._call(self._claims, JoinCall(worker=name), self._nothing)
            self._has_joined = True

    @override
    def claim(self, max_requests: int, wait_s: float) -> list[Claim]:
        return self._call(self._claims, ClaimCall(max_requests=max_requests, wait_s=wait_s), self._claimed, wait_s)

    @override
    def emit(self, emissions: Sequence[Emission]) -> list[EmitStatus]:
        return self._call(self._calls, EmitCall(emissions=tuple(emissions)), self._statuses)

    @override
    def renew(self) -> bool:
        return self._call(self._calls, RenewCall(), self._bool)

    @override
    def retire(self) -> None:
        self._call(self._calls, RetireCall(), self._nothing)

    @override
    def release(self) -> None:
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
        self._socket.sendall(frame(payload))
        (size,) = LENGTH.unpack(self._receive(LENGTH.size))
        return self._receive(checked_size(size))

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
