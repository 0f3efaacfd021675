"""A stream that was cut anywhere goes on as if it had not been: with any tokens, chunks, stop strings and choices."""

import asyncio
import json
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from service.config import QueueSettings
from service.errors import BadRequest, NotFound
from service.gateway.models import ServedModel
from service.gateway.sse import EventStream
from service.gateway.stream_position import read_after
from service.gateway.streams import Streams
from service.metrics import GatewayMetrics
from service.protocol import Emission, End, Request, TokenLogprobs
from service.queue.local.gateway import LocalQueue
from tests.claims import make_request
from tests.fleet.client import events
from training.tokenizers.bpe import BpeTokenizer

ANSWER = "0123456789abcdef" * 2
TOKENIZER = BpeTokenizer([])  # a token is a byte
MODEL = ServedModel(name="tiny", revision="r1", tokenizer=TOKENIZER, context_length=256, vocab_size=257)
METRICS = GatewayMetrics(CollectorRegistry(), ["tiny"])
Events = list[tuple[str, dict]]
logs = st.lists(st.lists(st.sampled_from([*b"ab ", *"é🦜".encode(), 256]), max_size=8), min_size=1, max_size=3)
stops = st.lists(st.text("ab é", min_size=1, max_size=3), max_size=2).map(tuple)


def make_requests(
    num_choices: int, stop: tuple[str, ...] = (), *, echo: bool = False, tenant: str = ""
) -> list[Request]:
    return [
        make_request(
            f"{ANSWER}-{index}",
            token_ids=tuple(b"pr"),
            max_tokens=8,
            choice=index,
            stop=stop,
            logprobs=0,
            prompt_logprobs=echo,
            tenant=tenant,
            num_choices=num_choices,
            echo=echo,
        )
        for index in range(num_choices)
    ]


class Reader:
    """Someone who reads the answer along, in the test's own loop."""

    def __init__(self, streams: Streams, last_event_id: str | None = None) -> None:
        self._sent = b""
        self._task = asyncio.create_task(self._read(streams, last_event_id))

    async def _read(self, streams: Streams, last_event_id: str | None) -> None:
        generation = await streams.join(ANSWER, "", read_after(ANSWER, last_event_id, None))
        await EventStream(generation, METRICS, ping_s=60)({}, asyncio.Event().wait, self._receive)

    async def _receive(self, message: dict) -> None:
        self._sent += message.get("body", b"")

    @property
    def events(self) -> Events:
        """The ids and frames so far."""
        return [(id_, json.loads(data)) for id_, data in events(self._sent.decode().split("\n")) if id_ is not None]

    async def to_end(self) -> Events:
        await self._task
        assert self._sent.endswith(b"\n\ndata: [DONE]\n\n")
        return self.events


def content(events: Events, num_choices: int) -> list[tuple]:
    """What was told of each choice: its text, its ids, its log-probabilities and its end."""
    frames = [[frame for _, frame in events if frame["index"] == index] for index in range(num_choices)]
    return [
        (
            "".join(frame["text"] for frame in own),
            [id_ for frame in own for id_ in frame["token_ids"]],
            [id_ for frame in own for id_ in frame["logprobs"]["token_ids"]],
            {frame["finish_reason"] for frame in own} - {None},
        )
        for own in frames
    ]


def add(read: Events, rest: Events, num_choices: int) -> list[tuple]:
    """What was told to one who went on after `read`; an end that he had is told again, with nothing in it."""
    pairs = zip(content(read, num_choices), content(rest, num_choices), strict=True)
    return [tuple(a | b if isinstance(a, set) else a + b for a, b in zip(*pair, strict=True)) for pair in pairs]


class Engine:
    """Emits the tokens of `logs` in random chunks, the choices in random turns; an end comes with tokens or alone."""

    def __init__(self, queue: LocalQueue, logs: list[list[int]], rng: random.Random) -> None:
        self._queue, self._logs, self._rng = queue, logs, rng
        self._bases = [0] * len(logs)
        self.open = list(range(len(logs)))

    async def claim(self) -> None:
        self._queue.register("w", {"tiny": "r1"})
        self._epochs = {claim.request.id: claim.epoch for claim in await self._queue.claim("w", 64, 0)}

    def step(self) -> None:
        index = self._rng.choice(self.open)
        base, log = self._bases[index], self._logs[index]
        token_ids = tuple(log[base : base + self._rng.randint(0, 4)])
        self._bases[index] += len(token_ids)
        is_last = self._bases[index] == len(log) and self._rng.random() < 0.5
        if is_last:
            self.open.remove(index)
        id_ = f"{ANSWER}-{index}"
        told = tuple(TokenLogprobs(token_id=token_id, logprob=-1.0) for token_id in token_ids)
        prompt = (TokenLogprobs(token_id=ord("r"), logprob=-2.0),)
        end = End(finish_reason="length", decode_s=1.0) if is_last else None
        emission = Emission(
            id=id_,
            epoch=self._epochs[id_],
            base=base,
            token_ids=token_ids,
            logprobs=told,
            prompt_logprobs=prompt,
            end=end,
        )
        self._queue.emit("w", [emission])


@settings(max_examples=60)
@given(logs=logs, stop=stops, echo=st.booleans(), rng=st.randoms(use_true_random=False))
def test_a_stream_that_is_cut_and_resumed_is_the_stream_that_was_not(logs, stop, echo, rng):
    asyncio.run(cut_and_resume(logs, stop, echo, rng))  # anyio's runner reports it where an example ends while it draws


async def cut_and_resume(logs, stop, echo, rng) -> None:
    queue = LocalQueue(QueueSettings())
    streams = Streams(queue, {"tiny": MODEL})
    await queue.submit(make_requests(len(logs), stop, echo=echo))
    engine = Engine(queue, logs, rng)
    await engine.claim()
    whole = Reader(streams)
    resumed: list[tuple[Events, Reader]] = []
    while engine.open:
        engine.step()
        await asyncio.sleep(0)
        if rng.random() < 0.3:
            read = whole.events
            resumed.append((read, Reader(streams, read[-1][0] if read else None)))
    uncut = await whole.to_end()
    resumed += [(uncut[:cut], Reader(streams, uncut[cut - 1][0])) for cut in range(1, len(uncut) + 1)]
    for read, reader in resumed:
        rest = await reader.to_end()
        assert add(read, rest, len(logs)) == content(uncut, len(logs))
        assert {key: rest[-1][1][key] for key in ("usage", "seed")} == {
            key: uncut[-1][1][key] for key in ("usage", "seed")
        }
        assert rest[-1][0] == uncut[-1][0]


async def ask(
    streams_of: dict[str, ServedModel], tenant: str, after: str | None = None, answer_id: str = ANSWER
) -> None:
    queue = LocalQueue(QueueSettings())
    await queue.submit(make_requests(2, tenant="mine"))
    await Streams(queue, streams_of).join(answer_id, tenant, read_after(answer_id, None, after))


async def test_another_tenants_answer_is_as_unknown_as_one_that_never_was():
    told = set()
    for tenant, answer_id in [
        ("", ANSWER),
        ("other", ANSWER),
        ("mine", "f" * 32),
        ("mine", "x"),
        ("mine", ANSWER + "\n"),
    ]:
        with pytest.raises(NotFound) as refused:
            await ask({"tiny": MODEL}, tenant, answer_id=answer_id)
        told.add(str(refused.value))
    assert len(told) == 1


@pytest.mark.parametrize("served", [{}, {"tiny": msgspec.structs.replace(MODEL, revision="r2")}])
async def test_a_gateway_without_this_revision_says_so(served):
    with pytest.raises(NotFound, match="tiny of revision r1, which this server lacks"):
        await ask(served, "mine")


@pytest.mark.parametrize(("after", "words"), [("1", "2 choice"), ("1.2.3", "2 choice"), ("1.9", "at most 8 tokens")])
async def test_a_place_that_cannot_be_is_refused(after, words):
    await ask({"tiny": MODEL}, "mine", "8.8e")
    with pytest.raises(BadRequest, match=words):
        await ask({"tiny": MODEL}, "mine", after)
