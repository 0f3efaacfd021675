"""To wait for something without knowing how long it takes: look again until it is so."""

import asyncio
import inspect
import os
import time
from collections.abc import Awaitable, Callable

PATIENCE_S = float(os.environ.get("MINIGPT_TEST_PATIENCE", "600"))
"""Seconds after which what did not come is not coming.

It ends a run that hangs, and nothing else: no test passes or fails by it on any machine that works at all. So it is far
more than anything here takes on one that is ten times slower than a laptop. Whoever looks for what hangs sets less, in
`MINIGPT_TEST_PATIENCE`; whoever has a slower machine yet, more, and a larger `--timeout` with it.
"""


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
            raise AssertionError(_not_yet(what, timeout_s))
        time.sleep(period_s)


async def become(
    condition: Callable[[], object | Awaitable[object]], what: str | Callable[[], str], *, period_s: float = 0.01
) -> None:
    """Return once `condition()`, which may be a coroutine, is true; the loop runs on meanwhile.

    Raises:
        AssertionError: it did not become so; says `what`, or what that returns then.
    """
    until = time.monotonic() + PATIENCE_S
    while not (await answer if inspect.isawaitable(answer := condition()) else answer):
        if time.monotonic() >= until:
            raise AssertionError(_not_yet(what, PATIENCE_S))
        await asyncio.sleep(period_s)


def _not_yet(what: str | Callable[[], str], timeout_s: float) -> str:
    return f"not in {timeout_s:g} s: {what if isinstance(what, str) else what()}"
