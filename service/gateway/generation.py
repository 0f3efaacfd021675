"""One accepted request: its sequences followed through the queue, their tokens made text, their ends counted."""

import time
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from service.detokenizer import TextStream
from service.errors import DeadlinePassed, EngineFailure
from service.gateway.logprobs import Logprobs
from service.metrics import ModelMetrics
from service.protocol import End, Request, Update
from service.queue.base import GatewayQueue
from training.tokenizers.base import Tokenizer


class Piece(msgspec.Struct, frozen=True):
    """What came of one choice since its last piece."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: Logprobs | None
    end: End | None


class Usage(msgspec.Struct, frozen=True):
    """Tokens of an answer; a prompt counts once, however many choices it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int
    """Prompt tokens that were not computed again."""


class Timings(msgspec.Struct, frozen=True):
    """Where the time of an answer went; of several choices the longest counts."""

    queue_ms: float
    prefill_ms: float
    decode_ms: float
    tokens_per_s: float
    """Tokens of all choices over the time of decoding."""


class Choice:
    """One sequence of an answer.

    Args:
        request: What the queue has of it.
        index: Its place among the choices of the answer.
        tokenizer: Makes text of its tokens.
        prefix: Text in front of its own.
    """

    def __init__(self, request: Request, index: int, tokenizer: Tokenizer, prefix: str) -> None:
        self.request = request
        self.num_tokens = 0
        self.queued_s = 0.0
        self.last_token = 0.0
        """When the last tokens came, by `time.perf_counter()`."""
        self.end: End | None = None
        self._index = index
        self._text = TextStream(tokenizer, request.params.stop)
        self._unsent_text = prefix
        self._unsent_ids: list[int] = []
        self._unsent_logprobs = self._first_logprobs()

    def take(self, update: Update) -> Piece | None:
        """Add `update`; return the piece that can be sent now, `None` while all its text is in doubt."""
        self.num_tokens += len(update.token_ids)
        self.queued_s = update.queued_s
        self.end = update.end
        self._unsent_ids += update.token_ids
        if self._unsent_logprobs is not None:
            self._unsent_logprobs.add(update.prompt_logprobs)
            self._unsent_logprobs.add(update.logprobs)
        text = self._text.push(update.token_ids)
        if update.end is not None:
            text += self._text.finish()
        if not text and update.end is None:
            return None
        piece = Piece(self._index, self._unsent_text + text, self._unsent_ids, self._unsent_logprobs, update.end)
        self._unsent_text, self._unsent_ids = "", []
        self._unsent_logprobs = None if self._unsent_logprobs is None else Logprobs()
        return piece

    def _first_logprobs(self) -> Logprobs | None:
        if self.request.params.logprobs is None:
            return None
        logprobs = Logprobs()
        if self.request.params.prompt_logprobs:
            logprobs.add_first(self.request.token_ids[0])
        return logprobs


class Generation:
    """The choices of one answer, on their way.

    Args:
        request_id: Id of the answer.
        choices: Submitted already, at least one, all of one model and seed.
        queue: Where they are.
        metrics: Of their model.
        arrived: `time.perf_counter()` when the request came.
    """

    def __init__(
        self, request_id: str, choices: Sequence[Choice], queue: GatewayQueue, metrics: ModelMetrics, arrived: float
    ) -> None:
        first = choices[0].request
        self.id = request_id
        self.model = first.model
        self.revision = first.revision
        self.seed = first.params.seed
        self.choices = choices
        self._by_id = {choice.request.id: choice for choice in choices}
        self._queue = queue
        self._metrics = metrics
        self._arrived = arrived

    async def run(self, deliver: Callable[[list[Piece]], Awaitable[None]]) -> None:
        """Hand over what came, as it comes, the pieces of a choice in order; cancel what is left undone.

        Raises:
            EngineFailure: a choice failed.
            DeadlinePassed: the request's own deadline passed.
        """
        try:
            async for updates in self._queue.watch(list(self._by_id)):
                pieces = [piece for update in updates if (piece := self._take(update)) is not None]
                if pieces:
                    await deliver(pieces)
                for update in updates:
                    _raise_failure(update.end)
        finally:
            await self._cancel_rest()

    def usage(self) -> Usage:
        """Count the tokens."""
        first_choices = [choice for choice in self.choices if choice.request.params.choice == 0]
        prompt = sum(len(choice.request.token_ids) for choice in first_choices)
        completion = sum(choice.num_tokens for choice in self.choices)
        cached = sum(choice.end.cached_tokens for choice in first_choices if choice.end is not None)
        return Usage(prompt, completion, prompt + completion, cached)

    def timings(self) -> Timings:
        """Tell where the time went, once every choice has its end."""
        ends = [choice.end for choice in self.choices if choice.end is not None]
        decode_s = max(end.decode_s for end in ends)
        num_tokens = sum(choice.num_tokens for choice in self.choices)
        return Timings(
            queue_ms=_milliseconds(max(choice.queued_s for choice in self.choices)),
            prefill_ms=_milliseconds(max(end.prefill_s for end in ends)),
            decode_ms=_milliseconds(decode_s),
            tokens_per_s=round(num_tokens / decode_s, 1) if decode_s > 0 else 0.0,
        )

    def _take(self, update: Update) -> Piece | None:
        choice = self._by_id[update.id]
        if update.token_ids:
            self._count(choice, len(update.token_ids))
        piece = choice.take(update)
        if update.end is None:
            return piece
        self._count_end(choice, update.end)
        return None if _is_failure(update.end) else piece

    async def _cancel_rest(self) -> None:
        for choice in self.choices:
            if choice.end is None:
                await self._queue.cancel(choice.request.id)
                self._count_end(choice, End(finish_reason="abort"))

    def _count(self, choice: Choice, num_tokens: int) -> None:
        now = time.perf_counter()
        if choice.num_tokens:
            self._metrics.go_on(num_tokens, now - choice.last_token)
        else:
            self._metrics.start(num_tokens, now - self._arrived)
        choice.last_token = now

    def _count_end(self, choice: Choice, end: End) -> None:
        self._metrics.end(end, choice.num_tokens, choice.queued_s, time.perf_counter() - self._arrived)


def _is_failure(end: End) -> bool:
    return end.deadline_passed or end.finish_reason == "error"


def _raise_failure(end: End | None) -> None:
    if end is not None and end.deadline_passed:
        raise DeadlinePassed("deadline_s passed before the answer was complete", param="deadline_s")
    if end is not None and end.finish_reason == "error":
        raise EngineFailure(end.error or "the engine failed with this request")


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)
