"""A gateway's way to the server: it refuses at once while the server is away, and finds out when it is back."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import redis

from service.errors import Unavailable
from service.queue.redis.address import CONNECTION_ERRORS, Address, reason_of
from service.queue.redis.library import Argument, call_async

ANSWER_WITHIN_S = 1.0
"""Seconds in which the server must answer: half of it the call, or from then on at least a ping."""
PATIENCE_S = 5.0
"""Seconds that a call may take of a server that answers pings: it has much to do."""
TICK_S = 0.05
"""In steps of so many seconds they are waited for, each a turn of the loop: one that lags reads what came first."""
PROBE_EVERY_S = 1.0
MAX_CALLS = 16
"""Calls at once, each on a connection of its own, and a ping on another if it lasts; more wait for their turn."""

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
        """Call a verb, and once more if the connection broke: every verb says the same twice.

        Raises:
            redis.OutOfMemoryError: the server takes nothing new.
            Unavailable: no answer in time, or none to the last probe.
        """
        self._require_up()
        async with self._turns:  # first: who waits for a turn asks the server nothing
            self._require_up()
            return await self._call(verb, args)

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

    def _require_up(self) -> None:
        if self.is_down:
            raise self.unavailable()

    async def _call(self, verb: str, args: Sequence[Argument]) -> Any:  # noqa: ANN401 - as Redis answers
        try:
            async with _Patience(self.client.ping):
                try:
                    return await self._try(verb, args)
                except CONNECTION_ERRORS:
                    return await self._try(verb, args)
        except redis.OutOfMemoryError:
            raise
        except (redis.RedisError, OSError, TimeoutError) as error:
            self._go_down(error)
            raise self.unavailable() from error

    async def _try(self, verb: str, args: Sequence[Argument]) -> Any:  # noqa: ANN401 - as Redis answers
        try:
            return await call_async(self.client, verb, args)
        except RuntimeError as error:  # uvloop's word for a connection that the other side has reset
            await self.client.connection_pool.disconnect()
            raise ConnectionResetError from error

    def _go_down(self, error: BaseException) -> None:
        if not self.is_down:
            self.is_down = True
            logger.warning("the queue at %s cannot be used: %s", self.address, reason_of(error))
            self.start(self._probe())

    async def _probe(self) -> None:
        while self.is_down:
            with contextlib.suppress(redis.RedisError, OSError, TimeoutError):
                async with _Patience(self.client.ping):
                    await self._try("stats", ())
                self.is_down = False
                break
            await asyncio.sleep(PROBE_EVERY_S)
        logger.info("the queue at %s is back", self.address)


class _Patience:
    """Raises `TimeoutError` within when a server is silent for too long; the loop's own lag is nobody's silence.

    Args:
        ping: Asks the server for a word, at half time.
    """

    def __init__(self, ping: Callable[[], Awaitable[object]]) -> None:
        self._ping = ping
        self._ticks_left = round(ANSWER_WITHIN_S / TICK_S)
        self._pinging: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._limit = await asyncio.timeout(None).__aenter__()
        self._timer = self._loop.call_later(TICK_S, self._tick)

    async def __aexit__(self, *error: Any) -> None:  # noqa: ANN401 - the usual three
        self._timer.cancel()
        if self._pinging is not None:
            self._pinging.cancel()
        await self._limit.__aexit__(*error)

    def _tick(self) -> None:
        self._ticks_left -= 1
        if self._ticks_left == 0:
            self._limit.reschedule(self._loop.time())
            return
        if self._pinging is None and self._ticks_left <= ANSWER_WITHIN_S / TICK_S / 2:
            self._pinging = self._loop.create_task(self._listen_for_life())
        self._timer = self._loop.call_later(TICK_S, self._tick)

    async def _listen_for_life(self) -> None:
        with contextlib.suppress(redis.RedisError, OSError, RuntimeError):
            await self._ping()
            self._ticks_left = round(PATIENCE_S / TICK_S)
