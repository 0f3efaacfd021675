"""A TCP proxy that can be a bad network: slow, narrow, mute, cut, resetting; in a thread of its own."""

import asyncio
import contextlib
import enum
import socket
import struct
import threading
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

from tests.fleet.waiting import PATIENCE_S

HOST = "127.0.0.1"
T = TypeVar("T")
_CHUNK_BYTES = 65_536
_CHUNKS_UNDER_WAY = 64
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 s


class _Hole(enum.Enum):
    """What vanishes."""

    NONE = enum.auto()
    REPLIES = enum.auto()
    ALL = enum.auto()


class Proxy:
    """Passes connections on to a port of this machine, as badly as it is told; every change holds from now on.

    Args:
        target: The port.
    """

    def __init__(self, target: int) -> None:
        self.port = 0
        self.target = target
        self.latency_s = 0.0
        """Seconds under way, in either direction."""
        self.bytes_per_s: float | None = None
        """Of each direction of each connection; `None`: as fast as it goes."""
        self.num_accepted = 0
        """Connections so far."""
        self.num_broken = 0
        """Of these, cut or reset by the proxy."""
        self.num_swallowed = 0
        """Chunks, so far, that fell into the black hole."""
        self._hole = _Hole.NONE
        self._is_cut = False
        self._connections: set[_Connection] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy-{target}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._call(asyncio.start_server(self._serve, HOST, 0))
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def num_open(self) -> int:
        """Connections that are open."""
        return len(self._connections)

    def swallow(self, *, replies_only: bool = False) -> None:
        """Be a black hole: take everything, or all that the target replies, pass nothing on, tell nobody."""
        self._hole = _Hole.REPLIES if replies_only else _Hole.ALL

    def cut(self) -> None:
        """Close every connection, and each new one at once."""
        self._is_cut = True
        self._call(self._break_all(reset=False))

    def reset(self) -> None:
        """Break every connection with RST; new ones pass."""
        self._call(self._break_all(reset=True))

    def half_close(self) -> None:
        """Close what goes to the client, in every connection; what comes from it still passes."""
        self._call(self._half_close_all())

    def heal(self) -> None:
        """Be a good network again. What fell into the hole is lost, so its connections are reset."""
        self.latency_s, self.bytes_per_s, self._is_cut = 0.0, None, False
        if self._hole is not _Hole.NONE:
            self._hole = _Hole.NONE
            self.reset()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_accepted += 1
        connection = _Connection(writer)
        self._connections.add(connection)
        try:
            if self._is_cut:
                self.num_broken += 1
                return
            far_reader, connection.far = await asyncio.open_connection(HOST, self.target)
            await asyncio.gather(
                self._pass(reader, connection.far, {_Hole.ALL}),
                self._pass(far_reader, writer, {_Hole.ALL, _Hole.REPLIES}),
                return_exceptions=True,
            )
        except (OSError, asyncio.CancelledError):
            connection.reset()  # nobody listens at the target, or the proxy ends
        finally:
            self._connections.discard(connection)
            connection.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, holes: set[_Hole]) -> None:
        """Pass one direction on to its end: what was read leaves `latency_s` later, in order, but into `holes`."""
        chunks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_CHUNKS_UNDER_WAY)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._write(chunks, writer, holes))
            while chunk := await reader.read(_CHUNK_BYTES):
                await chunks.put((self._loop.time() + self.latency_s, chunk))
            await chunks.put((self._loop.time() + self.latency_s, b""))

    async def _write(
        self, chunks: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, holes: set[_Hole]
    ) -> None:
        while True:
            due, chunk = await chunks.get()
            narrow_s = len(chunk) / self.bytes_per_s if self.bytes_per_s else 0.0
            await asyncio.sleep(max(due - self._loop.time(), narrow_s))
            if not chunk:
                return writer.write_eof()
            if self._hole in holes:
                self.num_swallowed += 1
            else:
                writer.write(chunk)
                await writer.drain()

    async def _break_all(self, *, reset: bool) -> None:
        for connection in list(self._connections):
            self.num_broken += 1
            connection.reset() if reset else connection.close()
        await asyncio.sleep(0)

    async def _half_close_all(self) -> None:
        for connection in list(self._connections):
            self.num_broken += 1
            connection.near.write_eof()

    async def _close(self) -> None:
        self._server.close()
        await self._break_all(reset=False)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE_S)


class _Connection:
    """Both ends of one connection."""

    def __init__(self, near: asyncio.StreamWriter) -> None:
        self.near = near
        self.far: asyncio.StreamWriter | None = None

    def close(self) -> None:
        for writer in (self.near, self.far):
            if writer is not None:
                writer.close()

    def reset(self) -> None:
        for writer in (self.near, self.far):
            if writer is not None:
                with contextlib.suppress(OSError):
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                writer.transport.abort()
