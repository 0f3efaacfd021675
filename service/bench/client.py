"""A load generator: some connections, each asking again and again, every arrival timed.

Written on bare streams: it shares the cores with the server that it measures, so what it costs counts against that.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from urllib.parse import urlsplit

import msgspec

from service.bench.api_clients import ApiClient
from service.bench.rounds import Run
from service.errors import SettingError
from service.protocol import Request


class HttpRun(Run, frozen=True, kw_only=True):
    """Some requests answered."""

    burst_first_token_s: list[float]
    """Of the first request of each stream, which all come at once: seconds from sending it to its first token."""
    first_token_s: list[float]
    """Of every later request, which comes while the other streams are being answered."""
    inter_token_s: list[float]
    """Seconds between two frames with tokens, of all requests."""
    queue_s: float | None = None
    """Seconds of the processor of the Redis between gateway and worker, where there is one."""


class _Answer(msgspec.Struct):
    """One stream as it came."""

    began: float
    tokens: int = 0
    arrivals: list[float] = []

    @property
    def first_token_s(self) -> float:
        return self.arrivals[0] - self.began


async def run_load(url: str, client: ApiClient, requests: Sequence[Request], streams: int) -> HttpRun:
    """Send `requests`, `streams` of them at once.

    Args:
        url: Of the server; the client's path is added.
        client: What it speaks.
        requests: What to send.
        streams: Connections; each sends its next request when its last is answered.

    Raises:
        SettingError: nobody there, a refusal, a stream that was cut.
    """
    bodies = iter([client.encode(request) for request in requests])
    connections = [_Connection(url, client) for _ in range(min(streams, len(requests)))]
    began = time.perf_counter()
    answers = await asyncio.gather(*(_ask_all(connection, bodies) for connection in connections))
    return _sum_up(answers, time.perf_counter() - began)


def _sum_up(answers: Sequence[Sequence[_Answer]], seconds: float) -> HttpRun:
    return HttpRun(
        tokens=sum(answer.tokens for stream in answers for answer in stream),
        seconds=seconds,
        burst_first_token_s=[stream[0].first_token_s for stream in answers],
        first_token_s=[answer.first_token_s for stream in answers for answer in stream[1:]],
        inter_token_s=[
            later - earlier
            for stream in answers
            for answer in stream
            for earlier, later in zip(answer.arrivals, answer.arrivals[1:], strict=False)
        ],
    )


async def _ask_all(connection: "_Connection", bodies: Iterator[bytes]) -> list[_Answer]:
    """Send bodies one after the other, until there are no more."""
    async with contextlib.aclosing(connection):
        return [await connection.ask(body) for body in bodies]


class _Connection:
    """HTTP/1.1, as much as a stream needs: a request, a head, chunks. Opened when it is needed."""

    def __init__(self, url: str, client: ApiClient) -> None:
        self._parts = urlsplit(url)
        self._url = url
        self._client = client
        path = f"{self._parts.path.rstrip('/')}{client.path}"
        self._head = f"POST {path} HTTP/1.1\r\nHost: {self._parts.netloc}\r\nContent-Type: application/json\r\n"
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, body: bytes) -> _Answer:
        """Send one request and read its stream to the end."""
        answer = _Answer(time.perf_counter())
        try:
            await self._send(f"{self._head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            await self._read_stream(answer)
        except (asyncio.IncompleteReadError, ConnectionError, ValueError) as error:
            raise SettingError(f"{self._url}: an answer was cut; see the server's log") from error
        return answer

    async def _send(self, request: bytes) -> None:
        """Send a request and read the head of its answer; a connection that was closed meanwhile is opened again."""
        if self._writer is not None:
            with contextlib.suppress(ConnectionError):
                self._writer.write(request)
                if await self._read_head():
                    return
        await self.aclose()
        self._reader, self._writer = await self._open()
        self._writer.write(request)
        if not await self._read_head():
            raise ConnectionResetError

    async def aclose(self) -> None:
        """Close it."""
        if self._writer is not None:
            self._writer.close()

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        parts, secure = self._parts, self._parts.scheme == "https"
        try:
            port = parts.port or (443 if secure else 80)
            return await asyncio.open_connection(parts.hostname, port, ssl=secure or None)
        except (OSError, ValueError) as error:
            raise SettingError(f"{self._url}: {error}; start a server there, or correct --url") from error

    async def _read_head(self) -> bool:
        """Return whether there is an answer: False if the connection was closed before it."""
        try:
            head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise
            return False
        status = head.split(b" ", 2)[1]
        if status == b"200" and b"transfer-encoding: chunked" in head:
            return True
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        refusal = await self._reader.readexactly(length)
        reason = refusal[:300].decode(errors="replace")
        with contextlib.suppress(msgspec.DecodeError):
            reason = self._client.decode(refusal).error or reason
        raise SettingError(f"{self._url}{self._client.path}: status {status.decode()}: {reason}")

    async def _read_stream(self, answer: _Answer) -> None:
        is_whole = False
        async for event in self._events():
            if event == b"data: [DONE]":
                is_whole = True
            elif (start := event.find(b"data: {")) >= 0:
                self._take(answer, event[start + 6 :])
        if not is_whole or not answer.arrivals:
            lacked = "any token" if is_whole else "[DONE]"
            raise SettingError(f"{self._url}: a stream ended without {lacked}; see the server's log")

    def _take(self, answer: _Answer, data: bytes) -> None:
        arrival = self._client.decode(data)
        if arrival.error:
            raise SettingError(f"{self._url}: {arrival.error}")
        if arrival.num_tokens:
            answer.arrivals.append(time.perf_counter())
            answer.tokens += arrival.num_tokens
        if arrival.total is not None:
            answer.tokens = arrival.total

    async def _events(self) -> AsyncIterator[bytes]:
        """Yield the server-sent events; a chunk may hold several, or half of one."""
        rest = b""
        async for chunk in self._chunks():
            *events, rest = (rest + chunk).split(b"\n\n")
            for event in events:
                yield event

    async def _chunks(self) -> AsyncIterator[bytes]:
        while True:
            size = int((await self._reader.readline()).partition(b";")[0], 16)
            chunk = await self._reader.readexactly(size + 2)
            if size == 0:
                return
            yield chunk[:-2]
