"""A load generator for `/generate`: some connections, each asking again and again, every arrival timed.

Written on bare streams: it shares the cores with the server that it measures, so what it costs counts against that.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from urllib.parse import SplitResult, urlsplit

import msgspec

from service.bench.rounds import Run
from service.errors import SettingError
from service.protocol import Request


class HttpRun(Run, frozen=True, kw_only=True):
    """Some requests answered."""

    first_token_s: list[float]
    """Of each request: seconds from sending it to its first frame with tokens."""
    inter_token_s: list[float]
    """Seconds between two frames with tokens, of all requests."""


class _Failure(msgspec.Struct):
    message: str = ""


class _Frame(msgspec.Struct):
    token_ids: list[int] = []
    error: _Failure | None = None


class _Answer(msgspec.Struct):
    """One stream as it came."""

    began: float
    tokens: int = 0
    arrivals: list[float] = []


_decode_frame = msgspec.json.Decoder(_Frame).decode


async def run_load(url: str, requests: Sequence[Request], streams: int) -> HttpRun:
    """Send `requests`, `streams` of them at once.

    Args:
        url: Of the server; `/generate` is added.
        requests: What to send.
        streams: Connections; each sends its next request when its last is answered.

    Raises:
        SettingError: nobody there, a refusal, a stream that was cut.
    """
    bodies = iter([_encode(request) for request in requests])
    began = time.perf_counter()
    answers = await asyncio.gather(*(_ask_all(url, bodies) for _ in range(min(streams, len(requests)))))
    return _sum_up([answer for some in answers for answer in some], time.perf_counter() - began)


def _encode(request: Request) -> bytes:
    params = request.params
    return msgspec.json.encode(
        {
            "token_ids": request.token_ids,
            "max_tokens": params.max_tokens,
            "temperature": params.temperature,
            "seed": params.seed,
            "logit_bias": params.logit_bias,
            "stream": True,
        }
    )


def _sum_up(answers: Sequence[_Answer], seconds: float) -> HttpRun:
    return HttpRun(
        tokens=sum(answer.tokens for answer in answers),
        seconds=seconds,
        first_token_s=[answer.arrivals[0] - answer.began for answer in answers],
        inter_token_s=[
            later - earlier
            for answer in answers
            for earlier, later in zip(answer.arrivals, answer.arrivals[1:], strict=False)
        ],
    )


async def _ask_all(url: str, bodies: Iterator[bytes]) -> list[_Answer]:
    """Send bodies over one connection, one after the other, until there are no more."""
    async with _connect(url) as connection:
        return [await connection.ask(body) for body in bodies]


@contextlib.asynccontextmanager
async def _connect(url: str) -> AsyncIterator["_Connection"]:
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    try:
        port = parts.port or (443 if secure else 80)
        reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=secure or None)
    except (OSError, ValueError) as error:
        raise SettingError(f"{url}: {error}; start a server there, or correct --url") from error
    try:
        yield _Connection(reader, writer, parts)
    except (asyncio.IncompleteReadError, ConnectionError, ValueError) as error:
        raise SettingError(f"{url}: an answer was cut; see the server's log") from error
    finally:
        writer.close()


class _Connection:
    """HTTP/1.1, as much as a stream needs: a request, a head, chunks."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, url: SplitResult) -> None:
        self._reader = reader
        self._writer = writer
        self._url = url.geturl()
        path = f"{url.path.rstrip('/')}/generate"
        self._head = f"POST {path} HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Type: application/json\r\n"

    async def ask(self, body: bytes) -> _Answer:
        """Send one request and read its stream to the end."""
        answer = _Answer(time.perf_counter())
        self._writer.write(f"{self._head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await self._read_head()
        is_whole = False
        async for event in self._events():
            if event == b"data: [DONE]":
                is_whole = True
            elif (start := event.find(b"data: {")) >= 0:
                self._take(answer, _decode_frame(event[start + 6 :]))
        if not is_whole or not answer.arrivals:
            lacked = "any token" if is_whole else "[DONE]"
            raise SettingError(f"{self._url}: a stream ended without {lacked}; see the server's log")
        return answer

    def _take(self, answer: _Answer, frame: _Frame) -> None:
        if frame.error is not None:
            raise SettingError(f"{self._url}: {frame.error.message}")
        if frame.token_ids:
            answer.arrivals.append(time.perf_counter())
            answer.tokens += len(frame.token_ids)

    async def _read_head(self) -> None:
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        status = head.split(b" ", 2)[1]
        if status == b"200" and b"transfer-encoding: chunked" in head:
            return
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        refusal = await self._reader.readexactly(length)
        with contextlib.suppress(msgspec.DecodeError):
            refusal = (_decode_frame(refusal).error or _Failure()).message.encode()
        raise SettingError(f"{self._url}/generate: status {status.decode()}: {refusal[:300].decode(errors='replace')}")

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
