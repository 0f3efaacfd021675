"""uvicorn, with what it lacks: deadlines for what a client sends and reads, a quiet end, our envelope everywhere."""

import asyncio
import contextlib
import logging
import socket
import uuid
from http import HTTPStatus

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.config import GatewaySettings
from service.errors import BadRequest, ServiceError, Unavailable
from service.gateway.lifecycle import Lifecycle
from service.gateway.responses import envelope, error_headers

_MAX_HEADER_BYTES = 65_536
_log = logging.getLogger(__name__)


class GatewayServer(uvicorn.Server):
    """A server that `drain` ends. Signals are for its caller to catch."""

    def __init__(self, config: uvicorn.Config, lifecycle: Lifecycle, drain_s: float, *, keeps_cut: bool) -> None:
        super().__init__(config)
        self._keeps_cut = keeps_cut
        self._lifecycle = lifecycle
        self._drain_s = drain_s

    def drain(self) -> None:
        """End: what is new is refused, what runs has `drain_s`, then it is cut."""
        self._lifecycle.drain()
        self.should_exit = True

    def cut(self) -> None:
        """Close every connection as it is: its client misses the end; its sequences are cancelled, or kept."""
        if self._keeps_cut:
            self._lifecycle.leave()
        if self.server_state.connections:
            _log.warning("cut %d connection(s) before the end of their answers", len(self.server_state.connections))
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        """Leave the signals alone."""
        return contextlib.nullcontext()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for what runs, and cut it in time. uvicorn's own limit would log a traceback for each stream."""
        timer = asyncio.get_running_loop().call_later(self._drain_s, self.cut)
        await super().shutdown(sockets)
        timer.cancel()


def make_server(app: FastAPI, settings: GatewaySettings, *, keeps_cut: bool = False) -> GatewayServer:
    """Return a server of `app`; `run` or `serve` starts it.

    Args:
        app: The gateway.
        settings: The limits that it keeps.
        keeps_cut: Whether what is cut at the end of a drain is left in the queue, for another gateway to go on with.
    """

    class Protocol(GuardedProtocol):
        limits = settings

    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
    )
    return GatewayServer(config, app.state.lifecycle, settings.drain_s, keeps_cut=keeps_cut)


class GuardedProtocol(HttpToolsProtocol):
    """One connection. Its header, and then its body, must come in time; what is sent to it must be read in time."""

    limits: GatewaySettings
    _receive_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _in_header = True
    _header_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for a request; refuse it when there are too many."""
        super().connection_made(transport)
        self._await_more()
        if len(self.connections) > self.limits.max_connections:
            self._refuse(Unavailable("too many connections are open; retry shortly"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadlines."""
        self._disarm_receive()
        self._disarm_write()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse `data`; refuse a header that has no end."""
        answered = self.cycle is None or self.cycle.response_complete
        if self._receive_timer is None and answered:
            self._await_more()
        if self._in_header:
            self._header_bytes += len(data)
        super().data_received(data)
        if self._in_header and self._header_bytes > _MAX_HEADER_BYTES:
            self._refuse(BadRequest(f"header: larger than {_MAX_HEADER_BYTES} bytes"))

    def on_headers_complete(self) -> None:
        """Give the body its own time."""
        self._in_header = False
        self._header_bytes = 0
        self._await_more()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Have the whole request."""
        self._in_header = True
        self._disarm_receive()
        super().on_message_complete()

    def pause_writing(self) -> None:
        """Note that the client reads slower than we write."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.limits.write_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Note that the client has caught up."""
        self._disarm_write()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self._refuse(BadRequest(msg))

    def _await_more(self) -> None:
        self._disarm_receive()
        self._receive_timer = self.loop.call_later(self.limits.receive_timeout_s, self._receive_timed_out)

    def _disarm_receive(self) -> None:
        if self._receive_timer is not None:
            self._receive_timer.cancel()
            self._receive_timer = None

    def _disarm_write(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _receive_timed_out(self) -> None:
        nothing_came = self._in_header and self._header_bytes == 0
        if self.pipeline:
            self._await_more()  # an earlier request is being answered, and we do not read meanwhile
        elif nothing_came or (not self._in_header and self.cycle.response_started):
            self.transport.close()
        else:
            self._refuse(BadRequest(f"header and body must each arrive within {self.limits.receive_timeout_s:g} s"))

    def _refuse(self, error: ServiceError) -> None:
        """Answer without the application, and close."""
        body = envelope(error)
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
            "x-request-id": uuid.uuid4().hex,
            **error_headers(error),
        }
        lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.transport.close()
