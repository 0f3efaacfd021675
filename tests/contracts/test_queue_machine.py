"""Any order of verbs, deaths and silences, held against a queue a child could read (but for whose turn it is)."""

from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from service.errors import BadRequest, QueueFull
from service.protocol import Emission, EmitStatus, End, Idempotency, Request
from service.queue.local.fair_line import FairLine, next_of
from service.queue.local.suspects import CLEARED_AFTER

OK, CANCEL, FENCED, GAP = EmitStatus.OK, EmitStatus.CANCEL, EmitStatus.FENCED, EmitStatus.GAP
STOP = End(finish_reason="stop")
TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=4).map(tuple) | st.just(tuple(range(CLEARED_AFTER)))
PICK = st.integers(0, 1000)
TENANTS = st.sampled_from(["a", "a", "b", "c"])
MODELS = st.sampled_from([["tiny"], ["tiny"], ["tiny", "big"], ["big", "tiny"]])
PRIORITIES = st.sampled_from(["high", "normal", "normal", "bulk"])
KEYS = st.one_of(
    *[st.none()] * 4, st.builds(Idempotency, key=st.sampled_from(["k", "l"]), digest=st.sampled_from(["d", "e"]))
)
MAX_ATTEMPTS, LEASE_S, MAX_AGE_S, MAX_WAITING, MAX_OF_TENANT = 3, 1000.0, 4000.0, 16, 9
NUM_EXAMPLES = {"local": 40, "socket": 40, "redis": 40, "valkey": 10}
"""Few where what runs is the library that ran in Redis."""
SETTINGS = settings(
    stateful_step_count=50,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@dataclass(eq=False)
class Model:
    """What the queue should know of one request."""

    request: Request
    submitted: float
    arrival: int
    log: list[int] = field(default_factory=list)
    epoch: int = 0
    attempts: int = 0
    claimed_at: int = 0
    cancelled: bool = False
    holder: object = None
    finish_reason: str | None = None

    @property
    def tenant(self):
        return self.request.tenant

    @property
    def cost(self):
        return self.request.cost

    @property
    def waits(self):
        return self.holder is None and self.finish_reason is None

    @property
    def is_last_chance(self):
        return self.attempts == MAX_ATTEMPTS - 1

    @property
    def deadline(self):
        age_s = self.request.deadline_s
        return self.submitted + (MAX_AGE_S if age_s is None else age_s)


class Machine(RuleBasedStateMachine):
    def __init__(self, open_backend, make_request):
        super().__init__()
        self.make_request = make_request
        self._opened = open_backend(
            max_attempts=MAX_ATTEMPTS,
            lease_s=LEASE_S,
            max_age_s=MAX_AGE_S,
            keep_ended_s=1e9,
            max_queue_depth=MAX_WAITING,
            max_tenant_depth=MAX_OF_TENANT,
        )
        self.backend = self._opened.__enter__()
        self.now = 0.0
        self.models: dict[str, Model] = {}
        self.lines: dict[tuple[str, str], FairLine[Model]] = {}
        self.reserved: dict[str, object] = {}
        self.joined = {}
        self.dead = []
        self.watchers = {}
        self.workers: dict[object, list[str]] = {}
        self.unregistered = []
        self.claims = []
        self.num_answers = self.resumed = self.fenced = 0

    @initialize(names=st.lists(MODELS, min_size=1, max_size=2), num_deaths=st.integers(0, 3), tenants=st.lists(TENANTS))
    def begin(self, names, num_deaths, tenants):
        for models in names:
            self.start_worker(models, 0)
        for num in range(num_deaths):
            self.submit_many([(tenant, "normal", 5) for tenant in tenants])
            self.claim_and_die(num, 9)

    # What gateways do

    @rule(
        tenant=TENANTS,
        key=KEYS,
        num_choices=st.integers(1, 2),
        max_tokens=st.sampled_from([5, 5, 47]),
        model=st.sampled_from(["tiny", "tiny", "big"]),
        priority=PRIORITIES,
        deadline_s=st.sampled_from([None, None, None, 20.0, 600.0, 2600.0]),
    )
    def submit(self, tenant, key, num_choices, max_tokens, **fields):
        answer_id = f"a{self.num_answers}"
        self.num_answers += 1
        fields |= {"tenant": tenant, "max_tokens": max_tokens, "num_choices": num_choices}
        requests = [self.make_request(f"{answer_id}-{k}", **fields) for k in range(num_choices)]
        digest, first = self.joined.get((tenant, key and key.key), (None, None))
        waiting = [model for model in self.models.values() if model.waits]
        own = sum(model.tenant == tenant for model in waiting)
        if digest is not None and digest == key.digest:
            assert self.backend.submit(*requests, idempotency=key) == first
        elif digest is not None:
            with pytest.raises(BadRequest):
                self.backend.submit(*requests, idempotency=key)
        elif len(waiting) + num_choices > MAX_WAITING or own + num_choices > MAX_OF_TENANT:
            with pytest.raises(QueueFull):
                self.backend.submit(*requests, idempotency=key)
        else:
            ids = [request.id for request in requests]
            assert self.backend.submit(*requests, idempotency=key) == ids
            if key is not None:
                self.joined[tenant, key.key] = key.digest, ids
            for request in requests:
                self.models[request.id] = Model(request, self.now, len(self.models))
                self.let_wait(self.models[request.id])
                self.watchers[request.id] = self.backend.watch(request.id)

    @rule(sent=st.lists(st.tuples(TENANTS, PRIORITIES, st.sampled_from([5, 47])), min_size=2, max_size=6))
    def submit_many(self, sent):
        for tenant, priority, max_tokens in sent:
            self.submit(tenant, None, 1, max_tokens, model="tiny", priority=priority, deadline_s=None)

    @precondition(lambda self: self.models)
    @rule(pick=PICK)
    def submit_again_and_find(self, pick):
        request = self.pick(list(self.models.values()), pick).request
        assert self.backend.submit(request) == [request.id]
        answer_id = request.id.rpartition("-")[0]
        models = [self.models[f"{answer_id}-{k}"] for k in range(request.num_choices)]
        assert self.backend.find(answer_id) == [
            msgspec.structs.replace(model.request, token_ids=()) if model in self.dead else model.request
            for model in models
        ]

    @precondition(lambda self: self.models)
    @rule(pick=PICK)
    def cancel(self, pick):
        model = self.pick(list(self.models.values()), pick)
        self.backend.cancel(model.request.id)
        if model.finish_reason is None:
            model.cancelled = True
            if model.waits:
                self.wait_no_longer(model)
                self.end(model, "abort")

    @rule(seconds=st.sampled_from([3.0, 30.0, 700.0]))
    def wait(self, seconds):
        for worker in self.workers:
            assert worker.renew()
        self.let_pass(seconds)

    # What workers do, and what becomes of them

    @precondition(lambda self: len(self.workers) < 3)
    @rule(names=MODELS, pick=PICK)
    def start_worker(self, names, pick):
        again = self.unregistered and pick % 2
        worker = self.unregistered.pop(pick % len(self.unregistered)) if again else self.backend.connect()
        worker.register(dict.fromkeys(names, "r1"))
        self.workers[worker] = names

    @precondition(lambda self: self.workers)
    @rule(pick=PICK, max_requests=st.integers(1, 9))
    def claim(self, pick, max_requests):
        worker = self.pick(list(self.workers), pick)
        expected = self.take(worker, max_requests)
        claims = worker.claim(max_requests, 0)
        assert [claim.request for claim in claims] == [model.request for model in expected]
        for claim, model in zip(claims, expected, strict=True):
            assert claim.epoch > model.epoch
            assert list(claim.token_ids) == model.log
            self.resumed += model.epoch > 0
            model.epoch, model.holder, model.claimed_at = claim.epoch, worker, len(model.log)
            self.claims.append((worker, claim))

    @precondition(lambda self: self.workers)
    @rule(max_requests=st.integers(1, 9), num_left=st.integers(0, 3))
    def work(self, max_requests, num_left):
        for pick, worker in enumerate(self.workers):
            self.claim(pick, max_requests)
            for _, claim in [running for running in self.running() if running[0] is worker][num_left:]:
                model = self.models[claim.request.id]
                if not self.called_off(model):
                    assert self.send(worker, claim, len(model.log), (), STOP) is OK
                    self.end(model, "stop")

    @precondition(lambda self: self.claims)
    @rule(pick=PICK, token_ids=TOKENS, ends=st.booleans())
    def emit(self, pick, token_ids, ends):
        worker, claim = self.pick(self.claims, pick)
        model = self.models[claim.request.id]
        status = self.send(worker, claim, len(model.log), token_ids, STOP if ends else None)
        if model.epoch != claim.epoch or model.holder is not worker:
            retried = ends and not token_ids and model.finish_reason == "stop" and model.epoch == claim.epoch
            assert status is (OK if retried else FENCED)
        elif self.called_off(model):
            assert status is CANCEL
            self.end(model, "abort")
        else:
            assert status is OK
            model.log += token_ids
            if ends:
                self.end(model, "stop")
            elif len(model.log) - model.claimed_at >= CLEARED_AFTER:
                model.attempts = 0

    @precondition(lambda self: self.running())
    @rule(pick=PICK, token_ids=TOKENS.filter(bool), back=st.integers(1, 4))
    def emit_elsewhere(self, pick, token_ids, back):
        worker, claim = self.pick(self.running(), pick)
        model = self.models[claim.request.id]
        base = max(0, len(model.log) - back)
        there = tuple(model.log[base : base + len(token_ids)])
        if base == len(model.log):
            return
        status = self.send(worker, claim, base, token_ids, None)
        if self.called_off(model):
            assert status is CANCEL
            self.end(model, "abort")
        elif there == token_ids:
            assert status is OK
        else:
            assert status is GAP
            self.take_back(model, died=False)

    @precondition(lambda self: self.workers)
    @rule(pick=PICK, max_requests=st.integers(1, 9))
    def claim_and_die(self, pick, max_requests):
        self.claim(pick, max_requests)
        self.die(self.pick(list(self.workers), pick))
        self.start_worker(["tiny", "big"], 0)

    @precondition(lambda self: self.workers)
    @rule(pick=PICK, way=st.sampled_from(["die", "fall_silent", "register_again", "release", "retire"]))
    def leave(self, pick, way):
        getattr(self, way)(self.pick(list(self.workers), pick))

    def die(self, worker):
        self.backend.kill(worker)
        self.drop(worker, died=True)
        self.claims = [(holder, claim) for holder, claim in self.claims if holder is not worker]

    def fall_silent(self, silent):
        for worker in self.workers:
            assert worker.renew()
        self.backend.pass_time(LEASE_S / 2)
        self.now += LEASE_S / 2
        for worker in self.workers:
            assert worker is silent or worker.renew()
        self.drop(silent, died=False)
        self.let_pass(LEASE_S / 2)
        assert not silent.renew()
        assert silent.claim(9, 0) == []
        self.unregistered.append(silent)

    def register_again(self, worker):
        worker.register({"tiny": "r1"})
        self.drop(worker, died=False)
        self.workers[worker] = ["tiny"]

    def release(self, worker):
        worker.release()
        self.drop(worker, died=False)
        self.unregistered.append(worker)

    def retire(self, worker):
        worker.retire()
        self.workers[worker] = []
        self.unreserve(worker)

    # What holds at every moment

    @invariant()
    def counts_agree(self):
        stats = self.backend.stats()
        waiting = [model for model in self.models.values() if model.waits]
        assert stats.running == sum(model.holder is not None for model in self.models.values())
        assert stats.waiting == len(waiting)
        assert stats.waiting_tokens == sum(model.cost for model in waiting)
        assert stats.workers == len(self.workers)
        assert stats.revisions == ({"r1"} if any(self.workers.values()) else set())
        assert (stats.resumed, stats.fenced) == (self.resumed, self.fenced)
        assert stats.quarantined == len(self.dead)

    @invariant()
    def the_dead_are_those_with_whom_too_many_died(self):
        dead = [(dead.id, dead.tenant, dead.attempts) for dead in self.backend.dead()]
        assert dead == [(model.request.id, model.tenant, MAX_ATTEMPTS) for model in reversed(self.dead)]

    @invariant()
    def watchers_saw_every_token_once(self):
        for request_id, model in self.models.items():
            watcher = self.watchers[request_id]
            if model.finish_reason is not None:
                end = watcher.to_end().end
                assert (end.finish_reason, end.quarantined) == (model.finish_reason, model in self.dead)
            assert watcher.wait_for(len(model.log)) == model.log

    def teardown(self):
        try:
            self.finish_everything()
        finally:
            self._opened.__exit__(None, None, None)

    def finish_everything(self):
        for worker in list(self.workers):
            worker.release()
        worker = self.backend.worker({"tiny": "r1", "big": "r1"})
        while self.backend.stats().waiting:
            claims = worker.claim(1000, 0)
            assert claims
            for claim in claims:
                self.send(worker, claim, len(claim.token_ids), (), STOP)
        for watcher in self.watchers.values():
            watcher.to_end()
        assert self.backend.stats().running == 0

    # The model's own moves

    @staticmethod
    def pick(choices, number):
        return choices[number % len(choices)]

    def send(self, worker, claim, base, token_ids, end):
        emission = Emission(id=claim.request.id, epoch=claim.epoch, base=base, token_ids=token_ids, end=end)
        [status] = worker.emit([emission])
        self.fenced += status is FENCED
        return status

    def running(self):
        return [
            (worker, claim)
            for worker, claim in self.claims
            if self.models[claim.request.id].holder is worker and self.models[claim.request.id].epoch == claim.epoch
        ]

    def take(self, worker, max_requests):
        """Return what this worker should get now, which waits no longer."""
        held = [model for model in self.models.values() if model.holder is worker]
        served = self.workers[worker]
        waiting = [model for model in self.models.values() if model.waits and model.request.model in served]
        if any(model.is_last_chance for model in held):
            return []
        for name in served:
            last = [model for model in waiting if model.request.model == name and model.is_last_chance]
            if last and self.reserved.setdefault(name, worker) is worker:
                return [] if held else [self.wait_no_longer(last[0])]
        quota = max(1, (len(held) + max_requests) // 4) - sum(model.attempts > 0 for model in held)
        suspects = [model for model in waiting if model.attempts == 1][: min(max(0, quota), max_requests)]
        return suspects + self.take_ordinary(served, max_requests - len(suspects))

    def take_ordinary(self, served, number):
        taken = []
        lines = {place: line for place, line in self.lines.items() if place[0] in served}
        while len(taken) < number and (model := next_of(lines.values())) is not None:
            lines[model.request.model, model.request.priority].serve(model)
            taken.append(model)
        return taken

    def let_wait(self, model):
        place = model.request.model, model.request.priority
        if not model.attempts:
            self.lines.setdefault(place, FairLine(place[1])).add(model)

    def wait_no_longer(self, model):
        if not model.attempts:
            self.lines[model.request.model, model.request.priority].remove(model)
        elif model.is_last_chance:
            self.reserved.pop(model.request.model, None)
        return model

    def called_off(self, model):
        return model.cancelled or self.now >= model.deadline

    def end(self, model, finish_reason):
        model.finish_reason, model.holder = finish_reason, None

    def let_pass(self, seconds):
        self.backend.pass_time(seconds)
        self.now += seconds
        self.backend.reap()
        for model in self.models.values():
            if model.waits and self.called_off(model):
                self.wait_no_longer(model)
                self.end(model, "abort")
            elif model.holder is not None and self.now >= model.deadline:
                self.end(model, "abort")

    def take_back(self, model, *, died):
        model.holder = None
        model.epoch += 1
        model.attempts += died
        if self.called_off(model):
            self.end(model, "abort")
        elif model.attempts == MAX_ATTEMPTS:
            self.end(model, "error")
            self.dead.append(model)
        else:
            self.let_wait(model)

    def drop(self, worker, *, died):
        del self.workers[worker]
        self.unreserve(worker)
        for model in self.models.values():
            if model.holder is worker:
                self.take_back(model, died=died)

    def unreserve(self, worker):
        self.reserved = {name: holder for name, holder in self.reserved.items() if holder is not worker}


def test_any_order_of_verbs_keeps_the_promises(open_backend, make_request, request):
    num_examples = NUM_EXAMPLES[request.node.callspec.params["open_backend"]]
    chosen = settings(SETTINGS, max_examples=num_examples)
    run_state_machine_as_test(lambda: Machine(open_backend, make_request), settings=chosen)
