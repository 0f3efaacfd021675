"""How fast queued cost ends: the measure behind `Retry-After`."""

import math

WINDOW_S = 30.0
RETRY_AFTER_S = (1.0, 60.0)
"""Least and most that a client is asked to wait."""


class DrainRate:
    """Tokens of cost that end in a second of busy time; what lies `WINDOW_S` busy seconds back counts 1/e.

    Idle seconds are left out: a quiet night must not make the first flood of the morning look hopeless.
    """

    def __init__(self) -> None:
        self._tokens = 0.0
        self._busy_s = 0.0
        self._last: float | None = None

    def advance(self, now: float, *, busy: bool) -> None:
        """Let time pass up to `now` (seconds), in which requests were running (`busy`) or none was."""
        elapsed = 0.0 if self._last is None else max(0.0, now - self._last)
        self._last = now
        if busy:
            fade = math.exp(-elapsed / WINDOW_S)
            self._tokens *= fade
            self._busy_s = self._busy_s * fade + elapsed

    def add(self, tokens: int) -> None:
        """Count `tokens` of cost that ended now."""
        self._tokens += tokens

    def measure(self, tokens: int, busy_s: float) -> None:
        """Count `tokens` of cost that ended in `busy_s` seconds of busy time."""
        seen_s = min(busy_s, WINDOW_S)  # of a longer time the average is as good as the last of it
        fade = math.exp(-busy_s / WINDOW_S)
        self._tokens = self._tokens * fade + (tokens * seen_s / busy_s if busy_s > 0 else tokens)
        self._busy_s = self._busy_s * fade + seen_s

    @property
    def tokens_per_s(self) -> float:
        """The rate; 0 while unknown."""
        return self._tokens / self._busy_s if self._busy_s > 0 else 0.0

    def retry_after_s(self, waiting_tokens: int) -> float:
        """Return when a client should come back: once as much as waits now will have ended, within `RETRY_AFTER_S`."""
        least, most = RETRY_AFTER_S
        rate = self.tokens_per_s
        return min(max(waiting_tokens / rate, least), most) if rate > 0 else least
