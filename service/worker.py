"""The worker: claims requests while its engine has room, steps the engine, and sends each step's tokens to the queue.

1. The main thread steps the engine. All calls to the queue run on one other thread, one exchange at a time: what a step
   computed travels while the next ones compute, and tokens gather while it travels. A slow gateway stalls no engine.
2. An exchange sends the news of every request held, then claims. Its answer is obeyed between two steps: a request that
   is cancelled or belongs to another worker leaves the engine there.
3. A heartbeat renews the lease when exchanges are rare, but never for a step that hangs: it ends the process instead.
4. `stop` ends the claiming; what does not finish in `drain_s` is handed back with its tokens.
"""

import logging
import os
import signal
import threading
import time
import traceback
import types
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from service.config import WorkerSettings
from service.errors import Unavailable
from service.protocol import Claim, Emission, EmitStatus, End
from service.queue.base import WorkerQueue

EXIT_FAILED = 1
"""Died at work: another start may do."""
EXIT_REFUSED = 2
"""Refused at start: another start would be refused as well."""
RENEW_AT = 0.3
"""Share of a lease after which it is renewed."""

logger = logging.getLogger(__name__)

Exchange = tuple[Sequence[tuple[Emission, EmitStatus]], Sequence[Claim]]
"""What was emitted, how the queue took it, and what it gave."""


class StepOutput(Protocol):
    """What a step made of one sequence."""

    @property
    def id(self) -> str:
        """Of the request."""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """New tokens."""

    @property
    def end(self) -> End | None:
        """Set when the sequence ended with these tokens."""


class StepEngine(Protocol):
    """An engine as the worker needs it: synchronous, no I/O."""

    def add(self, claim: Claim) -> None:
        """Take a request; a bad one ends with an error at the next step."""

    def abort(self, request_id: str) -> None:
        """Forget a request; unknown: no error."""

    def step(self) -> Sequence[StepOutput]:
        """Compute once for all; return the sequences with news."""

    @property
    def room(self) -> int:
        """How many more requests it wants now."""

    @property
    def has_work(self) -> bool:
        """Whether a step would compute anything."""


@dataclass(slots=True)
class _Held:
    """A request in the engine, as far as the queue knows it."""

    epoch: int
    num_sent: int
    unsent: list[int] = field(default_factory=list)
    end: End | None = None


class Worker:
    """Carries claims from a queue into an engine, and its tokens back.

    Args:
        queue: Where work comes from; from `run` on it is this worker's alone.
        engine: What computes.
        models: What it serves, name → revision.
        settings: Lease, drain, waits.
        on_step: Told of each step: its seconds.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        queue: WorkerQueue,
        engine: StepEngine,
        models: dict[str, str],
        settings: WorkerSettings,
        *,
        on_step: Callable[[float], None] = lambda _seconds: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queue = queue
        self._engine = engine
        self._models = models
        self._settings = settings
        self._on_step = on_step
        self._clock = clock
        self._held: dict[str, _Held] = {}
        self._drain_end: float | None = None
        self._step_began: float | None = None
        self._lease_lost = threading.Event()

    def run(self) -> None:
        """Work until stopped.

        Raises:
            Unavailable: the queue is gone, or gave this worker up.
        """
        self._queue.register(self._models)
        with ThreadPoolExecutor(1, "link") as link, self._heartbeat(link):
            exchange = self._start_exchange(link)
            while not self._is_done():
                if self._engine.has_work:
                    self._step()
                if exchange.done() or not self._engine.has_work:
                    self._obey(*exchange.result())
                    exchange = self._start_exchange(link)
            exchange.result()
            link.submit(self._hand_back).result()

    def stop(self) -> None:
        """Claim no more; finish what runs, up to `drain_s`."""
        self._drain_end = self._clock() + self._settings.drain_s

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._drain_end is not None

    def _is_done(self) -> bool:
        if self._lease_lost.is_set():
            raise Unavailable("the lease was lost: what was claimed is another worker's now")
        return self._drain_end is not None and (not self._held or self._clock() >= self._drain_end)

    def _step(self) -> None:
        self._step_began = began = self._clock()
        for output in self._engine.step():
            held = self._held.get(output.id)
            if held is not None:
                held.unsent += output.token_ids
                held.end = output.end
        self._step_began = None
        self._on_step(self._clock() - began)

    def _start_exchange(self, link: ThreadPoolExecutor) -> Future[Exchange]:
        room = 0 if self.is_stopping else self._engine.room
        wait_s = 0.0 if self._engine.has_work else self._settings.idle_wait_s
        return link.submit(self._exchange, self._take_news(), room, wait_s)

    def _take_news(self) -> list[Emission]:
        """Return one emission for each request held, without tokens too: that is how a cancel is noticed."""
        emissions = [
            Emission(id=id_, epoch=held.epoch, base=held.num_sent, token_ids=tuple(held.unsent), end=held.end)
            for id_, held in self._held.items()
        ]
        self._held = {id_: held for id_, held in self._held.items() if held.end is None}
        for held in self._held.values():
            held.num_sent += len(held.unsent)
            held.unsent.clear()
        return emissions

    def _obey(self, answers: Sequence[tuple[Emission, EmitStatus]], claims: Sequence[Claim]) -> None:
        for emission, status in answers:
            if status is not EmitStatus.OK:
                self._held.pop(emission.id, None)
                self._engine.abort(emission.id)
                logger.debug("dropped: %s", status.value, extra={"request_id": emission.id})
        for claim in claims:  # only now: one that was dropped above may come back with a new epoch
            self._held[claim.request.id] = _Held(claim.epoch, len(claim.token_ids))
            self._engine.add(claim)

    # On the link's thread

    def _exchange(self, emissions: Sequence[Emission], room: int, wait_s: float) -> Exchange:
        statuses = self._queue.emit(emissions) if emissions else []
        claims = self._queue.claim(room, wait_s) if room > 0 else []
        return list(zip(emissions, statuses, strict=True)), claims

    def _hand_back(self) -> None:
        self._queue.emit(self._take_news())
        self._queue.release()

    # On the heartbeat's thread

    def _heartbeat(self, link: ThreadPoolExecutor) -> "_Heartbeat":
        return _Heartbeat(self._settings.lease_s * RENEW_AT, lambda: self._beat(link))

    def _beat(self, link: ThreadPoolExecutor) -> None:
        began = self._step_began
        if began is not None and self._clock() - began > self._settings.max_step_s:
            logger.critical("a step hangs since %.0f s: the worker ends", self._clock() - began)
            os._exit(EXIT_FAILED)  # nothing softer stops a native call
        try:
            renewed = link.submit(self._queue.renew).result()
        except Unavailable:
            renewed = False
        if not renewed:
            self._lease_lost.set()


class _Heartbeat:
    """While entered, calls `beat` on a thread of its own, every `period_s`."""

    def __init__(self, period_s: float, beat: Callable[[], None]) -> None:
        self._period_s = period_s
        self._beat = beat
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._period_s):
            self._beat()


def run_until_stopped(worker: Worker) -> int:
    """Run `worker` in the main thread; SIGTERM or SIGINT drains, a second one ends at once. Return the exit status."""

    def on_signal(_number: int, _frame: types.FrameType | None) -> None:
        if worker.is_stopping:
            os._exit(EXIT_FAILED)
        worker.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    try:
        worker.run()
    except Unavailable as error:
        logger.error("%s", error)
    except Exception as error:  # the engine is broken; its words may quote a prompt, so only kind and place are logged
        place = traceback.extract_tb(error.__traceback__)[-1]
        logger.error("the engine failed: %s at %s:%s", type(error).__name__, place.filename, place.lineno)
    else:
        return 0
    return EXIT_FAILED
