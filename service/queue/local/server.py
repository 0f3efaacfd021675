"""The queue's end of the socket: each connection of a worker becomes calls of the queue's verbs, replied to in order.

A worker is two connections: claims wait on one while everything else passes on the other. When either closes, the
worker is dead and its requests go to another at once. What is no frame closes it.
"""

import asyncio
import itertools
import logging
from pathlib import Path
from typing import cast

import msgspec

from service.queue.local.gateway import LocalQueue
from service.queue.local.wire import (
    Call,
    ClaimCall,
    EmitCall,
    FrameError,
    JoinCall,
    RegisterCall,
    ReleaseCall,
    RenewCall,
    RetireCall,
    frame,
    take_frame,
)

logger = logging.getLogger(__name__)


async def serve_workers(queue: LocalQueue, path: Path) -> asyncio.Server:
    """Serve `queue` to worker processes on a Unix socket at `path`, whose folder decides who may connect."""
    ids = itertools.count(1)
    loop = asyncio.get_running_loop()
    return await loop.create_unix_server(lambda: _Connection(queue, f"worker-{next(ids)}"), path)


class _Connection(asyncio.Protocol):
    """One connection of a worker."""

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
            while (payload := take_frame(self._buffer)) is not None:
                self._answer(self._calls.decode(payload))
        except (FrameError, msgspec.DecodeError, OverflowError) as error:
            logger.warning("closing the connection of a worker: %s", error, extra={"worker": self._worker})
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
        self._transport.write(frame(msgspec.msgpack.encode(reply)))
