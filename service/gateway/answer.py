"""An answer as one JSON body."""

import msgspec
from starlette.types import Receive

from service.gateway.choice import Delta
from service.gateway.connection import run_while_connected
from service.gateway.generation import Generation, Timings, Usage
from service.gateway.logprobs import Logprobs
from service.protocol import FinishReason


class AnsweredChoice(msgspec.Struct):
    """One continuation."""

    index: int
    text: str = ""
    token_ids: list[int] = []
    finish_reason: FinishReason | None = None
    stop_reason: str | None = None
    logprobs: Logprobs | None = None


class Answer(msgspec.Struct, frozen=True):
    """The whole answer; with the same `seed` and `revision` the same request has it again."""

    id: str
    model: str
    revision: str
    seed: int
    choices: list[AnsweredChoice]
    usage: Usage
    timings: Timings


async def gather_answer(generation: Generation, receive: Receive) -> Answer:
    """Wait for every choice.

    Raises:
        ServiceError: what `Generation.run` raises.
        ClientDisconnect: the client went away.
    """
    choices = [AnsweredChoice(index) for index in range(len(generation.choices))]

    async def gather(deltas: list[Delta]) -> None:
        for delta in deltas:
            _add(choices[delta.index], delta)

    await run_while_connected(generation.run(gather), receive)
    return Answer(
        id=generation.id,
        model=generation.model,
        revision=generation.revision,
        seed=generation.seed,
        choices=choices,
        usage=generation.usage(),
        timings=generation.timings(),
    )


def _add(choice: AnsweredChoice, delta: Delta) -> None:
    choice.text += delta.text
    choice.token_ids += delta.token_ids
    if delta.logprobs is not None:
        choice.logprobs = choice.logprobs or Logprobs()
        choice.logprobs.extend(delta.logprobs)
    if delta.end is not None:
        choice.finish_reason = delta.end.finish_reason
        choice.stop_reason = delta.end.stop_reason
