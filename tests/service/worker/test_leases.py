"""A worker against a queue that loses its lease at any moment, and one that is slow: no token lost, none twice."""

import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from service.config import WorkerSettings
from service.errors import LeaseLost
from service.protocol import Claim, Emission, EmitStatus, End, Request
from service.worker.unsent import MAX_UNSENT
from service.worker.worker import Worker
from tests.claims import make_request
from tests.fleet.waiting import PATIENCE_S
from tests.service.worker.counting_worker import CountingEngine, count

Faults = dict[str, list[str]]


class FickleQueue:
    """The queue of one worker. Fences as the real ones do, and loses the lease where the faults say.

    Args:
        requests: What waits.
        faults: Of each of the first calls of a verb, what befalls it; "": nothing.
    """

    gather_s = 0.01

    def __init__(self, requests: Sequence[Request], faults: Faults) -> None:
        self.logs: defaultdict[str, list[int]] = defaultdict(list)
        self.ends: dict[str, End] = {}
        self.num_registered = self.num_gaps = 0
        self.on_all_ended: Callable[[], None] = lambda: None
        self._faults = {verb: deque(each) for verb, each in faults.items()}
        self._waiting = deque(requests)
        self._held: dict[str, tuple[Request, int]] = {}
        self._epochs: Counter[str] = Counter()
        self._has_lease = self._has_retired = False
        self._changed = threading.Condition()

    def register(self, _models: dict[str, str]) -> None:
        with self._changed:
            self._lose()
            self.num_registered += 1
            self._has_lease = True
            self._changed.notify_all()

    def claim(self, max_requests: int, wait_s: float) -> list[Claim]:
        with self._changed:
            self._changed.wait_for(lambda: self._has_retired or (self._has_lease and self._waiting), wait_s)
            if not self._has_lease or self._has_retired:
                return []
            claims = [self._hand_over() for _ in range(min(max_requests, len(self._waiting)))]
            fault = self._fault("claim") if claims else ""
            if fault:
                self._lose()
            if fault == "late":  # it arrives when the worker has registered anew
                assert self._changed.wait_for(lambda: self._has_lease, PATIENCE_S)
            return claims

    def emit(self, emissions: Sequence[Emission]) -> list[EmitStatus]:
        with self._changed:
            fault = self._fault("emit")
            if fault == "before":
                self._lose()
                raise LeaseLost("not told")
            statuses = [self._append(emission) for emission in emissions]
            if fault == "after":
                self._lose()
                raise LeaseLost("told, and not answered")
            return statuses

    def renew(self) -> bool:
        with self._changed:
            if self._fault("renew"):
                self._lose()
            return self._has_lease

    def retire(self) -> None:
        with self._changed:
            self._has_retired = True
            self._changed.notify_all()

    def release(self) -> None:
        with self._changed:
            self._lose()

    def _fault(self, verb: str) -> str:
        faults = self._faults.get(verb)
        return faults.popleft() if faults else ""

    def _lose(self) -> None:
        self._has_lease = False
        self._waiting.extendleft(request for request, _ in self._held.values())
        self._held.clear()

    def _hand_over(self) -> Claim:
        request = self._waiting.popleft()
        self._epochs[request.id] += 1
        self._held[request.id] = request, self._epochs[request.id]
        return Claim(request=request, epoch=self._epochs[request.id], token_ids=tuple(self.logs[request.id]))

    def _append(self, emission: Emission) -> EmitStatus:
        if self._held.get(emission.id, (None, 0))[1] != emission.epoch:
            return EmitStatus.FENCED
        if emission.base != len(self.logs[emission.id]):
            self.num_gaps += 1
            return EmitStatus.GAP
        self.logs[emission.id] += emission.token_ids
        if emission.end is not None:
            self.ends[emission.id] = emission.end
            del self._held[emission.id]
            if not self._held and not self._waiting:
                self.on_all_ended()
        return EmitStatus.OK


def make_requests(number: int, max_tokens: int) -> list[Request]:
    return [make_request(f"r{seed}", max_tokens=max_tokens, seed=seed) for seed in range(number)]


def work(queue: FickleQueue, engine: CountingEngine) -> None:
    worker = Worker(queue, engine, {"tiny": "r1"}, WorkerSettings(lease_s=0.05, idle_wait_s=0.02))
    queue.on_all_ended = worker.stop
    worker.run()


FAULTS = st.fixed_dictionaries(
    {
        "claim": st.lists(st.sampled_from(["", "lost", "late"]), max_size=4),
        "emit": st.lists(st.sampled_from(["", "", "before", "after"]), max_size=12),
        "renew": st.lists(st.sampled_from(["", "lost"]), max_size=4),
    }
)


@settings(max_examples=60)
@given(faults=FAULTS, number=st.integers(1, 7), max_tokens=st.sampled_from([1, 2, 300]))
def test_each_request_is_computed_to_its_end_wherever_leases_are_lost(faults: Faults, number: int, max_tokens: int):
    requests = make_requests(number, max_tokens)
    queue, engine = FickleQueue(requests, faults), CountingEngine(4, free=True)
    work(queue, engine)
    undisturbed = {request.id: [count(request.params.seed, at) for at in range(max_tokens)] for request in requests}
    assert dict(queue.logs) == undisturbed
    assert {end.finish_reason for end in queue.ends.values()} == {"length"}
    assert (queue.num_gaps, engine.has_work) == (0, False)


class LateQueue(FickleQueue):
    """Tells of a lost lease so late that the heartbeat has asked for it, too."""

    def emit(self, emissions: Sequence[Emission]) -> list[EmitStatus]:
        if self.num_registered == 1:
            threading.Event().wait(0.1)  # some heartbeats: mostly enough
        return super().emit(emissions)


def test_a_lease_that_is_told_twice_to_be_lost_is_registered_anew_once():
    queue = LateQueue(make_requests(1, 300), {"emit": ["before"]})
    work(queue, CountingEngine(4, free=True))
    assert queue.num_registered == 2


class AwayQueue(FickleQueue):
    """Lets a worker register anew only once it computes nothing for the lease that it lost."""

    def __init__(self, request: Request, engine: "LeftEngine") -> None:
        super().__init__([request], {"emit": ["after"]})
        self._engine = engine

    def register(self, models: dict[str, str]) -> None:
        assert not self.num_registered or self._engine.was_left.wait(PATIENCE_S)
        super().register(models)


class LeftEngine(CountingEngine):
    def __init__(self) -> None:
        super().__init__(1, free=True)
        self.was_left = threading.Event()

    def abort(self, request_id: str) -> None:
        super().abort(request_id)
        self.was_left.set()


def test_what_was_held_under_a_lost_lease_is_computed_no_more():
    engine = LeftEngine()
    [request] = make_requests(1, 20_000)
    queue = AwayQueue(request, engine)
    work(queue, engine)
    assert len(queue.logs["r0"]) == 20_000


class SlowQueue(FickleQueue):
    """Answers an emission only when the engine has made what may gather meanwhile."""

    def __init__(self, request: Request, engine: "WatchedEngine") -> None:
        super().__init__([request], {})
        self.most_unsent = 0
        self._total = request.params.max_tokens
        self._engine = engine

    def emit(self, emissions: Sequence[Emission]) -> list[EmitStatus]:
        self.most_unsent = max([self.most_unsent, *(len(emission.token_ids) for emission in emissions)])
        statuses = super().emit(emissions)
        self._engine.require_steps(min(self._total, len(self.logs["r0"]) + MAX_UNSENT))
        return statuses


class WatchedEngine(CountingEngine):
    def __init__(self) -> None:
        super().__init__(1, free=True)
        self._steps = threading.Semaphore(0)
        self._num_seen = 0

    def step(self) -> list[object]:
        made = super().step()
        self._steps.release()
        return made

    def require_steps(self, number: int) -> None:
        """Wait until so many steps were made; refuse one more, which would mostly come soon."""
        while self._num_seen < number:
            assert self._steps.acquire(timeout=PATIENCE_S)
            self._num_seen += 1
        assert not self._steps.acquire(timeout=0.1)


def test_an_engine_does_not_run_away_from_a_slow_queue():
    engine = WatchedEngine()
    [request] = make_requests(1, 3 * MAX_UNSENT + 1)
    queue = SlowQueue(request, engine)
    work(queue, engine)
    assert queue.most_unsent == MAX_UNSENT
    assert len(queue.logs["r0"]) == 3 * MAX_UNSENT + 1
