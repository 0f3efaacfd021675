"""An answer as server-sent events: a frame for what came of a choice since its last."""

import asyncio

import msgspec
from msgspec import UNSET, UnsetType
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.errors import ServiceError
from service.gateway.choice import Delta
from service.gateway.connection import run_while_connected
from service.gateway.generation import Generation, Timings, Usage
from service.gateway.logprobs import Logprobs
from service.gateway.responses import envelope
from service.gateway.stream_position import MAX_POSITIONS, write_positions
from service.metrics import GatewayMetrics
from service.protocol import FinishReason

_HEADERS = {"content-type": "text/event-stream", "cache-control": "no-cache", "x-accel-buffering": "no"}
_DONE = b"data: [DONE]\n\n"
_PING = b": ping\n\n"
_encode = msgspec.json.Encoder().encode


class Frame(msgspec.Struct):
    """What came of one choice; its last frame has its reasons, the last of all what holds for the whole answer."""

    id: str
    index: int
    text: str
    token_ids: list[int]
    logprobs: Logprobs | None
    finish_reason: FinishReason | None = None
    stop_reason: str | UnsetType | None = UNSET
    usage: Usage | UnsetType = UNSET
    seed: int | UnsetType = UNSET
    timings: Timings | UnsetType = UNSET


class EventStream(Response):
    """Sends every delta of `generation` as it comes. A stream that was cut has no `[DONE]`.

    Args:
        generation: Accepted; its own client's going away cancels it.
        metrics: Counts a failure in mid-stream.
        ping_s: Seconds of silence after which a comment is sent.
    """

    def __init__(self, generation: Generation, metrics: GatewayMetrics, ping_s: float) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers(_HEADERS)
        self._generation = generation
        self._metrics = metrics
        self._ping_s = ping_s
        self._id_start = f"id: {generation.id}-"
        self._num_open = len(generation.choices)
        self._positions = [choice.after for choice in generation.choices]
        self._last_events = b""
        self._silent = True

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        """Send it.

        Raises:
            ClientDisconnect: the client went away.
        """
        self._send = send
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await run_while_connected(self._stream(), receive)

    async def _stream(self) -> None:
        pings = asyncio.create_task(self._keep_pinging())
        try:
            await self._generation.run(self._deliver)
        except ServiceError as error:
            self._metrics.fail(error)
            await self._write(b"data: %b\n\n" % envelope(error))
        finally:
            pings.cancel()
        await self._write(self._last_events + _DONE, more=False)

    async def _deliver(self, deltas: list[Delta]) -> None:
        events = b"".join(map(self._event, deltas))
        if self._num_open:
            await self._write(events)
        else:
            self._last_events = events

    def _event(self, delta: Delta) -> bytes:
        return b"%bdata: %b\n\n" % (self._event_id(delta), _encode(self._frame(delta)))

    def _event_id(self, delta: Delta) -> bytes:
        self._positions[delta.index] = delta.position
        if len(self._positions) > MAX_POSITIONS:
            return b""
        return f"{self._id_start}{write_positions(self._positions)}\n".encode()

    def _frame(self, delta: Delta) -> Frame:
        frame = Frame(self._generation.id, delta.index, delta.text, delta.token_ids, delta.logprobs)
        if delta.end is not None:
            self._num_open -= 1
            frame.finish_reason = delta.end.finish_reason
            frame.stop_reason = delta.end.stop_reason
            if self._num_open == 0:
                frame.seed = self._generation.seed
                frame.usage = self._generation.usage()
                frame.timings = self._generation.timings()
        return frame

    async def _write(self, events: bytes, *, more: bool = True) -> None:
        self._silent = False
        await self._send({"type": "http.response.body", "body": events, "more_body": more})

    async def _keep_pinging(self) -> None:
        while True:
            await asyncio.sleep(self._ping_s)
            if self._silent:
                await self._write(_PING)
            self._silent = True
