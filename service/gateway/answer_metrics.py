"""Metrics of one answer, counted by the gateway that accepted it; a reader that joins later counts nothing."""

import time
from collections.abc import Sequence

from service.gateway.choice import Choice
from service.metrics import ModelMetrics
from service.protocol import End, Request, Update


class AnswerMetrics:
    """Counts one answer's sequences.

    Args:
        metrics: Of their model.
        arrived: `time.perf_counter()` when they were asked for.
    """

    def __init__(self, metrics: ModelMetrics, arrived: float) -> None:
        self._metrics = metrics
        self._arrived = arrived
        self._last_tokens: dict[str, float] = {}

    def accept(self, requests: Sequence[Request]) -> None:
        """Count what the queue has taken."""
        for request in requests:
            self._metrics.accept(len(request.token_ids))

    def take(self, choice: Choice, update: Update) -> None:
        """Count what came of `choice`, which has taken `update`."""
        if update.token_ids:
            self._take_tokens(update.id, len(update.token_ids))
        if update.end is not None:
            self.end(choice, update.end)

    def end(self, choice: Choice, end: End) -> None:
        """Count an end."""
        self._metrics.end(end, choice.num_tokens, choice.queued_s, time.perf_counter() - self._arrived)

    def _take_tokens(self, request_id: str, num_tokens: int) -> None:
        now = time.perf_counter()
        before = self._last_tokens.get(request_id)
        if before is None:
            self._metrics.start(num_tokens, now - self._arrived)
        else:
            self._metrics.go_on(num_tokens, now - before)
        self._last_tokens[request_id] = now
