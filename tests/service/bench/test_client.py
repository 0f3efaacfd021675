"""The load generator against canned answers over real sockets: every token counted, no cut stream taken for whole."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from service.bench.client import HttpRun, run_load
from service.errors import SettingError
from service.protocol import Request, SamplingParams

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
FRAME = b'id: x-1\ndata: {"id": "x", "token_ids": [5, 6], "text": "ab"}\n\n'
SILENT_FRAME = b'data: {"token_ids": [], "finish_reason": "length"}\n\n'
DONE = b"data: [DONE]\n\n"
REQUEST = Request(
    id="r",
    model="m",
    revision="v",
    token_ids=(1, 2),
    params=SamplingParams(max_tokens=4, seed=3, temperature=0.0, logit_bias={9: -100.0}),
)


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


@pytest.fixture
def load() -> Callable[..., tuple[HttpRun, list[bytes]]]:
    """Send requests to a server that answers each with the next canned bytes; return the run and the bodies sent."""

    def run(answers: Sequence[bytes], streams: int = 1) -> tuple[HttpRun, list[bytes]]:
        return asyncio.run(send(answers, streams))

    return run


async def send(answers: Sequence[bytes], streams: int) -> tuple[HttpRun, list[bytes]]:
    bodies: list[bytes] = []
    async with canned_server(iter(answers), bodies) as url:
        return await run_load(url, [REQUEST] * len(answers), streams), bodies


@asynccontextmanager
async def canned_server(answers: object, bodies: list[bytes]) -> AsyncIterator[str]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await read_head(reader):
            assert head.startswith(b"POST /base/generate HTTP/1.1\r\n")
            length = int(head.partition(b"Content-Length: ")[2].split(b"\r\n")[0])
            bodies.append(await reader.readexactly(length))
            answer = next(answers)
            writer.write(answer)
            if not answer.endswith(b"0\r\n\r\n"):
                break
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        yield f"http://{host}:{port}/base/"


async def read_head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""


def test_tokens_are_counted_however_the_stream_is_cut_into_chunks(load):
    stream = FRAME + b": ping\n\n" + FRAME + SILENT_FRAME + DONE
    for cut in range(1, len(stream), 7):
        run, _ = load([HEAD + chunked(stream[:cut], stream[cut:])])
        assert run.tokens == 4
        assert (len(run.first_token_s), len(run.inter_token_s)) == (1, 1)


def test_connections_are_used_again_until_every_request_is_answered(load):
    whole = HEAD + chunked(FRAME, FRAME, DONE)
    run, bodies = load([whole] * 5, streams=2)
    assert run.tokens == 20
    assert len(run.first_token_s) == 5
    assert len(bodies) == 5


def test_the_body_asks_for_a_greedy_stream_of_exact_length(load):
    _, [body] = load([HEAD + chunked(FRAME, DONE)])
    assert json.loads(body) == {
        "token_ids": [1, 2],
        "max_tokens": 4,
        "temperature": 0.0,
        "seed": 3,
        "logit_bias": {"9": -100.0},
        "stream": True,
    }


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (HEAD + chunked(FRAME), r"without \[DONE\]"),
        (HEAD + chunked(FRAME)[:-5], "cut"),
        (HEAD + chunked(FRAME)[:20], "cut"),
        (b"", "cut"),
        (HEAD + chunked(DONE), "without any token"),
        (HEAD + chunked(b'data: {"error": {"message": "engine on fire"}}\n\n', DONE), "engine on fire"),
        (b"HTTP/1.1 502 x\r\ncontent-length: 5\r\n\r\nsorry", "502: sorry"),
        (b'HTTP/1.1 400 x\r\ncontent-length: 36\r\n\r\n{"error": {"message": "full today"}}', "400: full today"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", "200"),
    ],
)
def test_anything_but_a_whole_stream_is_told_in_one_line(load, answer, words):
    with pytest.raises(SettingError, match=words) as caught:
        load([answer])
    assert "\n" not in str(caught.value)
