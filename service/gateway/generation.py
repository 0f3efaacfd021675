"""One accepted answer: its choices followed through the queue, by the client that asked or by one that reads along."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import msgspec

from service.errors import DeadlinePassed, EngineFailure, Quarantined, Unavailable
from service.gateway.answer_metrics import AnswerMetrics
from service.gateway.choice import Choice, Delta
from service.protocol import End, Update
from service.queue.base import GatewayQueue


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


class Generation:
    """The choices of one answer, on their way.

    Args:
        answer_id: Of the answer.
        choices: Submitted already, at least one, all of one model and seed.
        queue: Where they are.
        metrics: Counts them; `None`: another does.
        is_wanted: Tells whether they are wanted by more than this client: then its going away cancels nothing.
    """

    def __init__(
        self,
        answer_id: str,
        choices: Sequence[Choice],
        queue: GatewayQueue,
        metrics: AnswerMetrics | None = None,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        first = choices[0].request
        self.id = answer_id
        self.model = first.model
        self.revision = first.revision
        self.seed = first.params.seed
        self.choices = choices
        self._by_id = {choice.request.id: choice for choice in choices}
        self._queue = queue
        self._metrics = metrics
        self._is_wanted = is_wanted

    async def run(self, deliver: Callable[[list[Delta]], Awaitable[None]]) -> None:
        """Hand over what came, as it comes, the deltas of a choice in order; nothing is read while `deliver` waits.

        Raises:
            EngineFailure: a choice failed.
            Quarantined: too many workers died with a choice.
            DeadlinePassed: the request's own deadline passed.
            Diverged: tokens that were delivered were lost, and came again otherwise.
            Unavailable: the queue cannot be reached; the answer goes on when it can.
        """
        try:
            await self._follow(deliver)
        except Unavailable as error:
            message = f"{error}; go on with GET /streams/{self.id}"
            raise Unavailable(message, retry_after_s=error.retry_after_s) from error
        except BaseException:
            if not self._is_wanted():
                await self._cancel_rest()
            raise

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

    async def _follow(self, deliver: Callable[[list[Delta]], Awaitable[None]]) -> None:
        async for updates in self._queue.watch(list(self._by_id)):
            deltas = [delta for update in updates if (delta := self._take(update)) is not None]
            if deltas:
                await deliver(deltas)
            for update in updates:
                _raise_failure(update.end)

    def _take(self, update: Update) -> Delta | None:
        choice = self._by_id[update.id]
        delta = choice.take(update)
        if self._metrics is not None:
            self._metrics.take(choice, update)
        return None if _is_failure(update.end) else delta

    async def _cancel_rest(self) -> None:
        with suppress(Unavailable):  # it cannot be told; the deadline ends what goes on
            for choice in self.choices:
                if choice.end is None:
                    await self._queue.cancel(choice.request.id)
                    if self._metrics is not None:
                        self._metrics.end(choice, End(finish_reason="abort"))


def _is_failure(end: End | None) -> bool:
    return end is not None and (end.deadline_passed or end.finish_reason == "error")


def _raise_failure(end: End | None) -> None:
    if end is None or not _is_failure(end):
        return
    if end.deadline_passed:
        raise DeadlinePassed("deadline_s passed before the answer was complete", param="deadline_s")
    if end.quarantined:
        raise Quarantined(end.error or "too many workers died with this request")
    raise EngineFailure(end.error or "the engine failed with this request")


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)
