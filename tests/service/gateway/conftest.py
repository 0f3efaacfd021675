"""The gateway on a real port with a real queue; only the engine is a script, so that every token is known."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from queue import Queue

import httpx
import pytest
from fastapi import FastAPI

from service.config import GatewaySettings, QueueSettings
from service.detokenizer import TextStream
from service.gateway.app import create_app
from service.gateway.key_ring import KeyRing
from service.gateway.models import ServedModel
from service.gateway.server import GatewayServer, make_server
from service.protocol import Claim, Emission, EmitStatus, End, FinishReason, Request, TokenLogprobs
from service.queue.local.gateway import LocalQueue
from tests.fleet.waiting import PATIENCE_S
from training.tokenizers.bpe import BpeTokenizer

REPLY = "né 🦜 and on it goes.\nAct II, in which nothing happens at all. "
CONTEXT = 256
TOKENIZER = BpeTokenizer([])  # a token is a byte
MODEL = ServedModel(
    name="tiny", revision="sha256:0", tokenizer=TOKENIZER, context_length=CONTEXT, vocab_size=TOKENIZER.vocab_size
)


class ScriptedEngine:
    """A worker inside the gateway's loop: one token of `REPLY` a step, `choice` tokens further in for each choice.

    What a prompt starts with chooses another script: `fail` ends in an error after three tokens, `endless` goes on
    until it is cancelled, `mute` is claimed and never answered.
    """

    def __init__(self, queue: LocalQueue) -> None:
        self.claimed: Queue[Claim] = Queue()
        self.cancelled: Queue[str] = Queue()
        self._queue = queue

    def wait_for_claims(self, prompt: str, count: int = 1) -> dict[str, Request]:
        """Return the sequences of `prompt`, by id, once `count` of them are claimed."""
        found: dict[str, Request] = {}
        while len(found) < count:
            request = self.claimed.get(timeout=PATIENCE_S).request
            if TOKENIZER.decode(request.token_ids) == prompt:
                found[request.id] = request
        return found

    def wait_for_cancels(self, ids: Iterable[str]) -> None:
        """Return once all of `ids` are cancelled."""
        missing = set(ids)
        while missing:
            missing.discard(self.cancelled.get(timeout=PATIENCE_S))

    async def run(self, worker: str = "w") -> None:
        self._queue.register(worker, {MODEL.name: MODEL.revision})
        async with asyncio.TaskGroup() as group:
            while self._queue.renew(worker):
                for claim in await self._queue.claim(worker, 64, wait_s=0.2):
                    self.claimed.put(claim)
                    group.create_task(self._answer(worker, claim))

    async def _answer(self, worker: str, claim: Claim) -> None:
        base = 0
        prompt = claim.request.token_ids if claim.request.params.prompt_logprobs else ()
        for token_ids, end in self._script(claim):
            emission = Emission(
                id=claim.request.id,
                epoch=claim.epoch,
                base=base,
                token_ids=token_ids,
                end=end,
                logprobs=_tell(token_ids, claim),
                prompt_logprobs=_tell(prompt[1:], claim) if base == 0 else (),
            )
            status = self._queue.emit(worker, [emission])[0]
            if status is not EmitStatus.OK:
                self.cancelled.put(claim.request.id)
                return
            base += len(token_ids)
            await asyncio.sleep(0 if token_ids else 0.01)

    def _script(self, claim: Claim) -> Iterator[tuple[tuple[int, ...], End | None]]:
        prompt = TOKENIZER.decode(claim.request.token_ids)
        reply = (TOKENIZER.encode(REPLY) * 20)[claim.request.params.choice :]
        if prompt.startswith("mute"):
            while True:
                yield (), None
        if prompt.startswith("endless"):
            while True:
                yield tuple(reply[:8]), None
        if prompt.startswith("fail"):
            yield tuple(reply[:3]), None
            yield (), End(finish_reason="error", error="the engine failed: NaN in the logits")
            return
        yield from self._reply(claim, reply)

    def _reply(self, claim: Claim, reply: list[int]) -> Iterator[tuple[tuple[int, ...], End | None]]:
        params = claim.request.params
        text = TextStream(TOKENIZER, params.stop)
        if not params.max_tokens:
            yield (), End(finish_reason="length")
        for count, token_id in enumerate(reply[: params.max_tokens], 1):
            text.push([token_id])
            reason: FinishReason | None = "length" if count == params.max_tokens else None
            reason = "stop" if text.stopped is not None else reason
            end = End(finish_reason=reason, stop_reason=text.stopped, prefill_s=0.25, decode_s=0.5) if reason else None
            yield (token_id,), end
            if end is not None:
                return


def _tell(token_ids: Iterable[int], claim: Claim) -> tuple[TokenLogprobs, ...]:
    """Return what is told of some tokens: of token t that its log-probability is -t / 8, and none more likely."""
    count = claim.request.params.logprobs
    if count is None:
        return ()
    return tuple(
        TokenLogprobs(token_id=id_, logprob=-id_ / 8, top=tuple((id_ + k, -(id_ + k) / 8) for k in range(count)))
        for id_ in token_ids
    )


@dataclass
class Gateway:
    """A running gateway and what a test may ask of it."""

    port: int
    client: httpx.Client
    app: FastAPI
    server: GatewayServer
    engine: ScriptedEngine
    queue: LocalQueue
    loop: asyncio.AbstractEventLoop = field(repr=False)

    def generate(self, **body: object) -> httpx.Response:
        return self.client.post("/generate", json=body)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)

    def call(self, function: Callable[[], object]) -> None:
        """Run `function` in the gateway's loop."""
        done = threading.Event()
        self.loop.call_soon_threadsafe(lambda: (function(), done.set()))
        assert done.wait(PATIENCE_S)


StartGateway = Callable[..., AbstractContextManager[Gateway]]


@contextlib.contextmanager
def run_gateway(
    *,
    with_worker: bool = True,
    queue_settings: QueueSettings | None = None,
    keys: KeyRing | None = None,
    keeps_cut: bool = False,
    **settings: object,
) -> Iterator[Gateway]:
    queue = LocalQueue(queue_settings or QueueSettings())
    engine = ScriptedEngine(queue)
    started: Queue[asyncio.AbstractEventLoop] = Queue()

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(queue.keep_reaping())]
        if with_worker:
            tasks.append(asyncio.create_task(engine.run()))
        started.put(asyncio.get_running_loop())
        yield
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    limits = GatewaySettings(**({"drain_s": 0.1} | settings))
    app = create_app(queue, [MODEL], limits, keys=keys, lifespan=lifespan)
    server = make_server(app, limits, keeps_cut=keeps_cut)
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    port = listener.getsockname()[1]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        loop = started.get(timeout=PATIENCE_S)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S, trust_env=False) as client:
            while with_worker and client.get("/readyz").status_code != 200:
                pass
            yield Gateway(port, client, app, server, engine, queue, loop)
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
    assert not thread.is_alive()


@pytest.fixture(scope="session")
def start_gateway() -> StartGateway:
    """Start a gateway with settings of one's own."""
    return run_gateway


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """Return a gateway with the settings by default."""
    with run_gateway() as running:
        yield running
