"""The worker: claims requests while its engine has capacity, steps the engine, and sends the tokens to the queue.

1. The main thread steps the engine. What other threads have for it (claims, answers of the queue) waits in its inbox
   and is handled between two steps: there a request joins the engine, and a cancelled one leaves it.
2. The thread `emissions` sends output to the queue, one call at a time. First tokens and ends leave after the step that
   made them. Later tokens gather for the queue's `gather_s`, or while a call is on its way: a slow gateway does not
   stop the engine, until the unsent tokens of one request reach their limit.
3. On the thread `claims` a claim waits in the queue whenever the engine has capacity.
4. A heartbeat renews the lease when emissions are rare, but not during a step that hangs: then it ends the process.
5. When the lease was lost, all unsent output is dropped, and the worker registers again, with the model in memory.
6. `stop` ends the claiming; what does not finish in `drain_s` is handed back with its tokens.
"""

import contextlib
import logging
import os
import signal
import time
import traceback
import types
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import TypeVar

from service.config import WorkerSettings
from service.engine.interface import StepEngine
from service.errors import LeaseLost, Unavailable
from service.protocol import Claim, Emission, EmitStatus
from service.queue.base import WorkerQueue
from service.worker.capacity import ClaimCapacity
from service.worker.threads import Heartbeat, SerialExecutor
from service.worker.unsent import UnsentOutput

EXIT_FAILED = 1
"""Died at work: another start may do."""
EXIT_REFUSED = 2
"""Refused at start: another start would be refused as well."""
RENEW_AT = 0.3
"""Share of a lease after which it is renewed."""

SPIN_COUNT = ("GOMP_SPINCOUNT", "1000")
"""Environment variable, for before torch is imported: how long a thread that waits for the others keeps its core. Some
10 µs: in a step one waits 40 times, mostly less than that, and to be woken takes longer. The default of 300,000 starves
whoever shares the cores; with none at all a step on two cores took ten times as long."""

logger = logging.getLogger(__name__)

T = TypeVar("T")


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
        self._unsent: dict[str, UnsentOutput] = {}
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._capacity = ClaimCapacity()
        self._emissions = SerialExecutor("emissions")
        self._claims = SerialExecutor("claims")
        self._registration = 0
        """Counts them: what went wrong in one is no matter of the next."""
        self._is_registered = False
        self._sending: Future[Sequence[tuple[Emission, EmitStatus]]] | None = None
        self._gathering_since = clock()
        self._drain_end: float | None = None
        self._step_began: float | None = None

    def run(self) -> None:
        """Work until stopped.

        Raises:
            Unavailable: the queue is gone for good.
        """
        with self._emissions, self._claims, self._capacity, Heartbeat(self._settings.lease_s * RENEW_AT, self._beat):
            self._register()
            self._ask(self._claims, self._keep_claiming, lambda _: None)
            while not self._is_done():
                self._work()
            self._leave()

    def stop(self) -> None:
        """Claim no more; finish what runs, up to `drain_s`."""
        self._drain_end = self._clock() + self._settings.drain_s
        self._inbox.put(self._retire)  # the one kind of queue that a signal may put into

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._drain_end is not None

    def _is_done(self) -> bool:
        if self._drain_end is None:
            return False
        # Not registered, it has nothing to finish, and may wait for a queue that does not come back.
        return not (self._unsent and self._is_registered) or self._clock() >= self._drain_end

    def _work(self) -> None:
        if self._engine.has_work and not self._is_behind:
            self._step()
        else:
            self._inbox.get()()
        while not self._inbox.empty():
            self._inbox.get()()
        self._capacity.set(self._wanted)
        if not self._is_sending:
            self._send_output()

    @property
    def _wanted(self) -> int:
        return self._engine.capacity if self._is_registered else 0

    @property
    def _is_sending(self) -> bool:
        return self._sending is not None and not self._sending.done()

    @property
    def _is_behind(self) -> bool:
        return self._is_sending and any(unsent.is_full for unsent in self._unsent.values())

    def _step(self) -> None:
        self._step_began = began = self._clock()
        for output in self._engine.step():
            if output.id in self._unsent:
                self._unsent[output.id].add(output)
        self._step_began = None
        self._on_step(self._clock() - began)

    def _send_output(self) -> None:
        now = self._clock()
        if now - self._gathering_since >= self._queue.gather_s:
            self._gathering_since = now
            emissions = self._take_output(list(self._unsent))
        else:
            emissions = self._take_output([id_ for id_, unsent in self._unsent.items() if unsent.is_urgent])
        if emissions:
            self._sending = self._ask(self._emissions, partial(self._emit, emissions), self._obey)

    def _take_output(self, ids: Iterable[str]) -> list[Emission]:
        """Return an emission for each of `ids`, without tokens too: that is how a cancel is noticed."""
        emissions = [self._unsent[id_].emit(id_) for id_ in ids]
        for emission in emissions:
            if emission.end is not None:
                del self._unsent[emission.id]
        return emissions

    def _obey(self, answers: Sequence[tuple[Emission, EmitStatus]]) -> None:
        for emission, status in answers:
            unsent = self._unsent.get(emission.id)
            if status is not EmitStatus.OK and unsent is not None and unsent.epoch == emission.epoch:
                self._drop(emission.id)
                logger.debug("dropped: %s", status.value, extra={"request_id": emission.id})

    def _take(self, claims: Sequence[Claim]) -> None:
        # One that was asked for under a lease since lost may be ours or another's: only the queue knows which it saw
        # first, the claim or the new registration. To drop ours would leave it with nobody for as long as we renew;
        # to take another's costs little, for the first emission of its old epoch is answered FENCED.
        for claim in claims:
            if claim.request.id in self._unsent:  # it was taken from us, and has come back before we were told
                self._drop(claim.request.id)
            self._unsent[claim.request.id] = UnsentOutput(claim.epoch, len(claim.token_ids))
            self._engine.add(claim)
        self._capacity.set(self._wanted, num_arrived=len(claims))

    def _drop(self, request_id: str) -> None:
        del self._unsent[request_id]
        self._engine.abort(request_id)

    # The lease: got, lost, given back

    def _register(self) -> None:
        self._registration += 1
        self._ask(self._emissions, partial(self._queue.register, self._models), self._begin)

    def _begin(self, _: None) -> None:
        self._is_registered = True

    def _lose(self, registration: int, why: LeaseLost) -> None:
        if registration != self._registration or not self._is_registered:
            return  # told before
        logger.warning("%s: registering again, without the %d requests that were claimed", why, len(self._unsent))
        self._is_registered = False
        for request_id in list(self._unsent):
            self._drop(request_id)
        if not self.is_stopping:
            self._register()

    def _retire(self) -> None:
        self._capacity.close()
        self._ask(self._emissions, self._queue.retire, lambda _: None)

    def _leave(self) -> None:
        if self._is_registered:
            with contextlib.suppress(LeaseLost):  # what was to be handed back is others' already
                self._emissions.submit(self._hand_back).result()

    def _ask(self, thread: SerialExecutor, call: Callable[[], T], then: Callable[[T], None]) -> Future[T]:
        """Call on `thread`; let the main thread do `then` with what came of it, or raise what it raised."""
        settle = partial(self._settle, then, self._registration)
        future = thread.submit(call)
        future.add_done_callback(lambda done: self._inbox.put(partial(settle, done)))
        return future

    def _settle(self, then: Callable[[T], None], registration: int, future: Future[T]) -> None:
        try:
            result = future.result()
        except LeaseLost as error:
            self._lose(registration, error)
        else:
            then(result)

    # On the thread `emissions`

    def _emit(self, emissions: Sequence[Emission]) -> Sequence[tuple[Emission, EmitStatus]]:
        return list(zip(emissions, self._queue.emit(emissions), strict=True))

    def _hand_back(self) -> None:
        if self._unsent:
            self._queue.emit(self._take_output(list(self._unsent)))
        self._queue.release()

    def _renew(self) -> None:
        if not self._queue.renew():
            raise LeaseLost("the lease was lost")

    # On the thread `claims`

    def _keep_claiming(self) -> None:
        while (count := self._capacity.wait()) > 0:
            claims = self._queue.claim(count, self._settings.idle_wait_s)
            if claims:
                self._capacity.depart(len(claims))
                self._inbox.put(partial(self._take, claims))

    # On the heartbeat's thread

    def _beat(self) -> None:
        began = self._step_began
        if began is not None and self._clock() - began > self._settings.max_step_s:
            logger.critical("a step hangs since %.0f s: the worker ends", self._clock() - began)
            os._exit(EXIT_FAILED)  # nothing softer stops a native call
        if self._is_registered:
            self._ask(self._emissions, self._renew, lambda _: None)
        # A signal that comes in the moment in which the main thread goes to sleep does not wake it.
        self._inbox.put(lambda: None)


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
