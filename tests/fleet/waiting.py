"""To wait for something without knowing how long it takes: look again until it is so."""

import time
from collections.abc import Callable

PATIENCE_S = 45.0
"""Seconds after which what did not come is not coming; far more than anything here takes on a busy machine."""


def wait_until(
    condition: Callable[[], object],
    what: str | Callable[[], str],
    *,
    timeout_s: float = PATIENCE_S,
    period_s: float = 0.01,
) -> None:
    """Return once `condition()` is true.

    Raises:
        AssertionError: it did not become so in `timeout_s`; says `what`, or what that returns then.
    """
    until = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= until:
            raise AssertionError(f"not in {timeout_s:g} s: {what if isinstance(what, str) else what()}")
        time.sleep(period_s)
