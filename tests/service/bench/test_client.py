"""The load generator against canned answers over real sockets: every token counted, no cut stream taken for whole."""

import asyncio
import dataclasses
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from service.bench.api_clients import ApiClient, Completions, Generate, find_api_client
from service.bench.client import HttpRun, run_load
from service.bench.http import Server
from service.errors import SettingError
from service.protocol import Request, SamplingParams

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
FRAME = b'id: x-1\ndata: {"id": "x", "token_ids": [5, 6], "text": "ab"}\n\n'
SILENT_FRAME = b'data: {"token_ids": [], "finish_reason": "length"}\n\n'
DONE = b"data: [DONE]\n\n"
CHUNK = b'data: {"id": "x", "object": "text_completion", "choices": [{"index": 0, "text": "ab", "logprobs": null}]}\n\n'
SILENT_CHUNK = b'data: {"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}\n\n'
USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 7}}\n\n'
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

    def run(answers: Sequence[bytes], streams: int = 1, client: ApiClient | None = None) -> tuple[HttpRun, list[bytes]]:
        return asyncio.run(send(answers, streams, client or Generate()))

    return run


async def send(answers: Sequence[bytes], streams: int, client: ApiClient) -> tuple[HttpRun, list[bytes]]:
    bodies: list[bytes] = []
    async with canned_server(iter(answers), bodies, client.path) as url:
        return await run_load(url, client, [REQUEST] * len(answers), streams), bodies


@asynccontextmanager
async def canned_server(answers: Iterator[bytes], bodies: list[bytes], path: str) -> AsyncIterator[str]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await read_head(reader):
            assert head.startswith(f"POST /base{path} HTTP/1.1\r\n".encode())
            length = int(head.partition(b"Content-Length: ")[2].split(b"\r\n")[0])
            bodies.append(await reader.readexactly(length))
            answer = next(answers)
            writer.write(answer)
            if not answer.endswith(b"0\r\n\r\n") or b"Connection: close" in answer:
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
        assert (len(run.burst_first_token_s), len(run.inter_token_s)) == (1, 1)


def test_connections_are_used_again_until_every_request_is_answered(load):
    whole = HEAD + chunked(FRAME, FRAME, DONE)
    run, bodies = load([whole] * 5, streams=2)
    assert run.tokens == 20
    assert len(run.burst_first_token_s) == 2
    assert len(run.first_token_s) == 3
    assert len(bodies) == 5


def test_a_connection_that_the_server_closes_is_opened_again(load):
    closing = HEAD.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + chunked(FRAME, DONE)
    run, _ = load([closing] * 3)
    assert run.tokens == 6


def test_a_completions_stream_counts_what_its_usage_says(load):
    stream = CHUNK + SILENT_CHUNK + CHUNK
    run, [body] = load([HEAD + chunked(stream, USAGE, DONE)], client=Completions("some"))
    assert run.tokens == 7
    assert len(run.inter_token_s) == 1
    told = json.loads(body)
    assert told["prompt"] == [1, 2]
    assert told["model"] == "some"
    assert told["max_tokens"] == 4
    assert told["ignore_eos"] is told["stream"] is told["stream_options"]["include_usage"] is True
    silent_about_usage, _ = load([HEAD + chunked(stream, DONE)], client=Completions("some"))
    assert silent_about_usage.tokens == 2


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


def test_a_refusal_in_another_shape_is_shown_as_it_is(load):
    answer = b'HTTP/1.1 422 x\r\ncontent-length: 27\r\n\r\n{"detail": "no such thing"}'
    with pytest.raises(SettingError, match=r"422: .*no such thing"):
        load([answer], client=Completions("some"))


class CompletionsServer(BaseHTTPRequestHandler):
    """A server that speaks OpenAI's completions, and nothing else: a token for each that is asked for."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(200 if self.path == "/v1/models" else 404, b'{"object": "list", "data": [{"id": "other"}]}')

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path != "/v1/completions":
            self._answer(404, b"{}")
            return
        assert body["model"] == "other"
        usage = USAGE.replace(b"7", b"%d" % body["max_tokens"])
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self.wfile.write(chunked(*[CHUNK] * body["max_tokens"], usage, DONE))

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def completions_url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), CompletionsServer) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_another_server_is_asked_in_its_own_words(completions_url, workload):
    assert find_api_client(completions_url, "auto").path == "/v1/completions"
    run = Server(completions_url, "auto").run(2, workload.stream_requests(2, 6))
    assert run.tokens == sum(request.params.max_tokens for request in workload.stream_requests(2, 6))
    assert (len(run.burst_first_token_s), len(run.first_token_s)) == (2, 4)


def test_our_server_is_asked_in_its_own_words(server, workload, tokenizer):
    ours = dataclasses.replace(workload, tokenizer=tokenizer)
    requests = ours.stream_requests(3, 9)
    run = Server(str(server.client.base_url), "auto").run(3, requests)
    assert run.tokens == sum(request.params.max_tokens for request in requests)
    assert (len(run.burst_first_token_s), len(run.first_token_s)) == (3, 6)
    assert run.seconds > max(run.first_token_s) > 0


@pytest.mark.parametrize(("api", "words"), [("generate", "status 404"), ("completions", "v1/models")])
def test_a_wrong_api_is_told(completions_url, workload, api, words):
    url = completions_url if api == "generate" else f"{completions_url}/nowhere"
    with pytest.raises(SettingError, match=words):
        Server(url, api).run(1, workload.requests(1))
