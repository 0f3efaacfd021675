"""The worker: claims requests while its engine has room, steps the engine, and sends each step's tokens to the queue.

1. The main thread steps the engine. What other threads have for it (claims, answers of the queue) waits in its inbox
   and is obeyed between two steps: a request joins the engine there, and one that is cancelled leaves it there.
2. News travels on the thread `link`, one emission at a time. First tokens and ends leave after the step that made them;
   later tokens gather for `GATHER_S`, or while an emission travels: a slow gateway stalls no engine.
3. On the thread `claims` a claim waits in the queue whenever the engine has room.
4. A heartbeat renews the lease when emissions are rare, but never for a step that hangs: it ends the process instead.
5. `stop` ends the claiming; what does not finish in `drain_s` is handed back with its tokens.
"""

import logging
import os
import signal
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import Protocol, TypeVar

from service.config import WorkerSettings
from service.errors import Unavailable
from service.held import Held, StepOutput
from service.protocol import Claim, Emission, EmitStatus
from service.queue.base import WorkerQueue
from service.room import Room

EXIT_FAILED = 1
"""Died at work: another start may do."""
EXIT_REFUSED = 2
"""Refused at start: another start would be refused as well."""
RENEW_AT = 0.3
"""Share of a lease after which it is renewed."""
GATHER_S = 0.01
"""Seconds for which tokens gather, of which none is a sequence's first or last."""

SPIN_COUNT = ("GOMP_SPINCOUNT", "1000")
"""Environment variable, for before torch is imported: how long a thread that waits for the others keeps its core. Some
10 µs: in a step one waits 40 times, mostly less than that, and to be woken takes longer. The default of 300,000 starves
whoever shares the cores; with none at all a step on two cores took ten times as long."""

logger = logging.getLogger(__name__)


T = TypeVar("T")


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
        self._held: dict[str, Held] = {}
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._room = Room()
        self._link = ThreadPoolExecutor(1, "link")
        self._claims = ThreadPoolExecutor(1, "claims")
        self._is_sending = False
        self._gathering_since = clock()
        self._drain_end: float | None = None
        self._step_began: float | None = None

    def run(self) -> None:
        """Work until stopped.

        Raises:
            Unavailable: the queue is gone, or gave this worker up.
        """
        self._queue.register(self._models)
        with self._link, self._claims, self._room, self._heartbeat():
            self._submit(self._claims, self._keep_claiming, lambda _: None)
            self._room.set(self._engine.room)
            while not self._is_done():
                self._work()
            self._link.submit(self._hand_back).result()

    def stop(self) -> None:
        """Claim no more; finish what runs, up to `drain_s`."""
        self._drain_end = self._clock() + self._settings.drain_s
        self._inbox.put(self._retire)  # the one kind of queue that a signal may put into

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._drain_end is not None

    def _is_done(self) -> bool:
        return self._drain_end is not None and (not self._held or self._clock() >= self._drain_end)

    def _work(self) -> None:
        if self._engine.has_work:
            self._step()
        else:
            self._inbox.get()()
        while not self._inbox.empty():
            self._inbox.get()()
        self._room.set(self._engine.room)
        if not self._is_sending:
            self._send_news()

    def _step(self) -> None:
        self._step_began = began = self._clock()
        for output in self._engine.step():
            if output.id in self._held:
                self._held[output.id].add(output)
        self._step_began = None
        self._on_step(self._clock() - began)

    def _send_news(self) -> None:
        now = self._clock()
        if now - self._gathering_since >= GATHER_S:
            self._gathering_since = now
            news = self._take_news(list(self._held))
        else:
            news = self._take_news([id_ for id_, held in self._held.items() if held.is_urgent])
        if news:
            self._is_sending = True
            self._submit(self._link, partial(self._emit, news), self._obey)

    def _take_news(self, ids: Iterable[str]) -> list[Emission]:
        """Return an emission for each of `ids`, without tokens too: that is how a cancel is noticed."""
        emissions = [self._held[id_].emit(id_) for id_ in ids]
        for emission in emissions:
            if emission.end is not None:
                del self._held[emission.id]
        return emissions

    def _obey(self, answers: Sequence[tuple[Emission, EmitStatus]]) -> None:
        self._is_sending = False
        for emission, status in answers:
            held = self._held.get(emission.id)
            if status is not EmitStatus.OK and held is not None and held.epoch == emission.epoch:
                self._drop(emission.id)
                logger.debug("dropped: %s", status.value, extra={"request_id": emission.id})

    def _take(self, claims: Sequence[Claim]) -> None:
        for claim in claims:
            if claim.request.id in self._held:  # it was taken from us, and has come back before we were told
                self._drop(claim.request.id)
            self._held[claim.request.id] = Held(claim.epoch, len(claim.token_ids))
            self._engine.add(claim)
        self._room.set(self._engine.room, num_arrived=len(claims))

    def _drop(self, request_id: str) -> None:
        del self._held[request_id]
        self._engine.abort(request_id)

    def _retire(self) -> None:
        self._room.close()
        self._submit(self._link, self._queue.retire, lambda _: None)

    def _submit(self, thread: ThreadPoolExecutor, call: Callable[[], T], then: Callable[[T], None]) -> None:
        """Call on `thread`; let the main thread do `then` with what came of it, or raise what it raised."""

        def finish(future: Future[T]) -> None:
            self._inbox.put(lambda: then(future.result()))

        thread.submit(call).add_done_callback(finish)

    # On the thread `link`

    def _emit(self, emissions: Sequence[Emission]) -> Sequence[tuple[Emission, EmitStatus]]:
        return list(zip(emissions, self._queue.emit(emissions), strict=True))

    def _hand_back(self) -> None:
        self._queue.emit(self._take_news(list(self._held)))
        self._queue.release()

    # On the thread `claims`

    def _keep_claiming(self) -> None:
        while (room := self._room.wait()) > 0:
            claims = self._queue.claim(room, self._settings.idle_wait_s)
            if claims:
                self._room.depart(len(claims))
                self._inbox.put(partial(self._take, claims))

    # On the heartbeat's thread

    def _heartbeat(self) -> "_Heartbeat":
        return _Heartbeat(self._settings.lease_s * RENEW_AT, self._beat)

    def _beat(self) -> None:
        began = self._step_began
        if began is not None and self._clock() - began > self._settings.max_step_s:
            logger.critical("a step hangs since %.0f s: the worker ends", self._clock() - began)
            os._exit(EXIT_FAILED)  # nothing softer stops a native call
        self._submit(self._link, self._queue.renew, _require_lease)


def _require_lease(renewed: bool) -> None:
    if not renewed:
        raise Unavailable("the lease was lost: what was claimed is another worker's now")


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
