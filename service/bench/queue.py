"""`minigpt bench queue`: what a token costs a Redis server, by the verbs that gateways and workers call."""

import asyncio
import time
import uuid
from collections.abc import Sequence

import msgspec
from rich.table import Table

from service.config import QueueSettings
from service.protocol import Claim, Emission, End, Request, SamplingParams
from service.queue.process_identity import ProcessIdentity
from service.queue.redis.gateway import RedisQueue
from service.queue.redis.processor import processor_s
from service.queue.redis.worker import RedisWorkerQueue

LEASE_S = 60.0
PROMPT_TOKENS = 64


class QueueResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a round with one shape of emissions took."""

    batch: int
    """Requests in one call."""
    tokens_per_emission: int
    tokens: int
    server_s: float
    """Seconds of the server's processor, from submission to the last end."""
    emit_s: float
    """Seconds that the worker waited for its emissions."""


def measure_queue(
    url: str, batches: Sequence[int], tokens_per_emission: Sequence[int], num_emits: int
) -> list[QueueResult]:
    """Send `num_emits` emissions of each shape through the queue at `url`, as one worker of one model.

    Raises:
        SettingError: the URL is none.
        Unavailable: nobody there.
    """
    return [_measure(url, batch, each, num_emits) for each in tokens_per_emission for batch in batches]


def queue_table(results: Sequence[QueueResult], title: str) -> Table:
    """Return a row for each shape."""
    table = Table("requests in a call", "tokens of each", title=title)
    for heading in ("server, µs a token", "tokens/s of a server", "a call, µs"):
        table.add_column(heading, justify="right")
    for result in results:
        num_calls = result.tokens / result.batch / result.tokens_per_emission
        table.add_row(
            str(result.batch),
            str(result.tokens_per_emission),
            f"{1e6 * result.server_s / result.tokens:.2f}",
            f"{result.tokens / result.server_s:,.0f}",
            f"{1e6 * result.emit_s / num_calls:.0f}",
        )
    return table


def _measure(url: str, batch: int, each: int, num_emits: int) -> QueueResult:
    worker = RedisWorkerQueue(url, LEASE_S, ProcessIdentity.of_this_process())
    revision = uuid.uuid4().hex
    worker.register({"bench": revision})
    try:
        before_s = processor_s(url)
        asyncio.run(_submit(url, [_request(number, revision, each * num_emits) for number in range(batch)]))
        emit_s = _answer(worker, batch, each, num_emits)
        return QueueResult(
            batch=batch,
            tokens_per_emission=each,
            tokens=batch * each * num_emits,
            server_s=processor_s(url) - before_s,
            emit_s=emit_s,
        )
    finally:
        worker.release()
        worker.close()


async def _submit(url: str, requests: Sequence[Request]) -> None:
    async with RedisQueue(url, QueueSettings(keep_ended_s=1.0)) as queue:
        for request in requests:
            await queue.submit([request])


def _answer(worker: RedisWorkerQueue, batch: int, each: int, num_emits: int) -> float:
    claims: list[Claim] = []
    while len(claims) < batch:
        claims += worker.claim(batch, 1.0)
    began = time.perf_counter()
    for number in range(num_emits):
        end = End(finish_reason="length") if number == num_emits - 1 else None
        worker.emit(
            [
                Emission(
                    id=claim.request.id,
                    epoch=claim.epoch,
                    base=number * each,
                    token_ids=tuple(range(each)),
                    end=end,
                )
                for claim in claims
            ]
        )
    return time.perf_counter() - began


def _request(number: int, revision: str, max_tokens: int) -> Request:
    return Request(
        id=f"bench-{revision}-{number}",
        model="bench",
        revision=revision,
        token_ids=tuple(range(PROMPT_TOKENS)),
        params=SamplingParams(max_tokens=max_tokens, seed=0),
    )
