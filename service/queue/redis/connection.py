"""A gateway's way to the server: it refuses at once while the server is away, and finds out when it is back."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any

import redis

from service.errors import Unavailable
from service.queue.redis.address import CONNECTION_ERRORS, Address
from service.queue.redis.library import Argument, call_async

ANSWER_WITHIN_S = 0.5
"""Seconds in which the server should answer."""
PONG_WITHIN_S = 0.4
"""Seconds in which one that has not must answer at least a ping, or it counts as away."""
PATIENCE_S = 5.0
"""Seconds that one which answers pings has for the call, asked again: it has much to do."""
TICK_S = 0.05
"""In steps of so many seconds they are waited for, each a turn of the loop: one that lags reads what came first."""
PROBE_EVERY_S = 1.0
MAX_CALLS = 16
"""Calls at once, each on a connection of its own; more wait for their turn."""

logger = logging.getLogger(__name__)


class Connection:
    """Calls verbs; works between entering and leaving its context.

    Args:
        address: Of the server.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self.client = address.connect_async(ANSWER_WITHIN_S)
        self.is_down = False
        """Whether the last call or probe had no answer."""
        self._turns = asyncio.Semaphore(MAX_CALLS)
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Connection":
        return self

    async def __aexit__(self, *_: object) -> None:
        while self._tasks:  # the client may take a cancellation for its own time-out, and swallow it
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks, timeout=0.1)
        await self.client.aclose()

    async def call(self, verb: str, *args: Argument) -> Any:  # noqa: ANN401 - as Redis answers
        """Call a verb, and once more if the connection broke or the server is slow: every verb says the same twice.

        Raises:
            redis.OutOfMemoryError: the server takes nothing new.
            Unavailable: no answer in time, or none to the last probe.
        """
        if self.is_down:
            raise self.unavailable()
        try:
            with contextlib.suppress(TimeoutError):
                return await self._ask(verb, args, ANSWER_WITHIN_S)
            async with _time_limit(PONG_WITHIN_S):
                await self.client.ping()
            return await self._ask(verb, args, PATIENCE_S)
        except redis.OutOfMemoryError:
            raise
        except (redis.RedisError, OSError, TimeoutError) as error:
            self._go_down(error)
            raise self.unavailable() from None

    async def persist(self, verb: str, *args: Argument, for_s: float) -> Any:  # noqa: ANN401 - as Redis answers
        """Call a verb that says the same twice, again and again until it is answered.

        Raises:
            Unavailable: not within `for_s` seconds.
        """
        try:
            async with asyncio.timeout(for_s):
                while True:
                    with contextlib.suppress(Unavailable):
                        return await self.call(verb, *args)
                    await asyncio.sleep(PROBE_EVERY_S / 10)
        except TimeoutError:
            raise self.unavailable() from None

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Let `work` run beside, up to the end of the context at the latest."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def unavailable(self) -> Unavailable:
        """Return the error of a server that is away."""
        return Unavailable("the queue cannot be reached; retry shortly", retry_after_s=PROBE_EVERY_S)

    async def _ask(self, verb: str, args: Sequence[Argument], within_s: float) -> Any:  # noqa: ANN401 - as Redis answers
        async with _time_limit(within_s), self._turns:
            try:
                return await self._try(verb, args)
            except CONNECTION_ERRORS:
                return await self._try(verb, args)

    async def _try(self, verb: str, args: Sequence[Argument]) -> Any:  # noqa: ANN401 - as Redis answers
        try:
            return await call_async(self.client, verb, args)
        except RuntimeError as error:  # uvloop's word for a connection that the other side has reset
            await self.client.connection_pool.disconnect()
            raise ConnectionResetError from error

    def _go_down(self, error: BaseException) -> None:
        if not self.is_down:
            self.is_down = True
            logger.warning("the queue at %s cannot be used: %s", self.address, type(error).__name__)
            self.start(self._probe())

    async def _probe(self) -> None:
        while self.is_down:
            with contextlib.suppress(redis.RedisError, OSError, TimeoutError):
                async with _time_limit(ANSWER_WITHIN_S):
                    await self._try("stats", ())
                self.is_down = False
                break
            await asyncio.sleep(PROBE_EVERY_S)
        logger.info("the queue at %s is back", self.address)


@contextlib.asynccontextmanager
async def _time_limit(seconds: float) -> AsyncIterator[None]:
    """Raise `TimeoutError` after `seconds` in which the loop has turned; its own lag is nobody's silence."""
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def tick(ticks_left: int) -> None:
        nonlocal timer
        if ticks_left == 0:
            limit.reschedule(loop.time())
        else:
            timer = loop.call_later(TICK_S, tick, ticks_left - 1)

    async with asyncio.timeout(None) as limit:
        timer = loop.call_later(TICK_S, tick, round(seconds / TICK_S) - 1)
        try:
            yield
        finally:
            timer.cancel()
