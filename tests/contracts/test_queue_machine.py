"""Any order of submit, claim, emit, cancel, release, death and silence, held against a queue a child could read."""

from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from service.protocol import Emission, EmitStatus, End

OK, CANCEL, FENCED, GAP = EmitStatus.OK, EmitStatus.CANCEL, EmitStatus.FENCED, EmitStatus.GAP
STOP = End(finish_reason="stop")
TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=4).map(tuple)
PICK = st.integers(0, 1000)
SETTINGS = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@dataclass
class Model:
    """What the queue should know of one request."""

    deadline: float | None
    log: list[int] = field(default_factory=list)
    epoch: int = 0
    attempts: int = 0
    cancelled: bool = False
    holder: object = None
    finish_reason: str | None = None


class Machine(RuleBasedStateMachine):
    def __init__(self, open_home, make_request):
        super().__init__()
        self.make_request = make_request
        self._opened = open_home(max_attempts=3, lease_s=10.0, keep_ended_s=1e9)
        self.home = self._opened.__enter__()
        self.models: dict[str, Model] = {}
        self.watchers = {}
        self.workers = []
        self.claims = []
        self.resumed = self.fenced = 0

    # Rules

    @rule(life_s=st.sampled_from([None, None, None, 5.0, 25.0]))
    def submit(self, life_s):
        request_id = f"r{len(self.models)}"
        deadline = None if life_s is None else self.home.clock.now + life_s
        self.home.submit(self.make_request(request_id, deadline=deadline))
        self.models[request_id] = Model(deadline)
        self.watchers[request_id] = self.home.watch(request_id)

    @precondition(lambda self: self.models)
    @rule(pick=PICK)
    def submit_again(self, pick):
        self.home.submit(self.make_request(self.pick(list(self.models), pick)))

    @precondition(lambda self: len(self.workers) < 3)
    @rule()
    def start_worker(self):
        self.workers.append(self.home.worker())

    @precondition(lambda self: self.workers)
    @rule(pick=PICK, max_requests=st.integers(1, 3))
    def claim(self, pick, max_requests):
        worker = self.pick(self.workers, pick)
        self.end_overdue()
        waiting = [i for i, m in self.models.items() if m.holder is None and m.finish_reason is None]
        claims = worker.claim(max_requests, 0)
        assert [claim.request.id for claim in claims] == waiting[:max_requests]
        for claim in claims:
            model = self.models[claim.request.id]
            assert claim.epoch > model.epoch
            assert list(claim.token_ids) == model.log
            self.resumed += model.epoch > 0
            model.epoch, model.holder = claim.epoch, worker
            self.claims.append((worker, claim))

    @precondition(lambda self: self.claims)
    @rule(pick=PICK, token_ids=TOKENS, ends=st.booleans())
    def emit(self, pick, token_ids, ends):
        worker, claim = self.pick(self.claims, pick)
        model = self.models[claim.request.id]
        base = len(model.log)
        status = self.send(worker, claim, base, token_ids, STOP if ends else None)
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
            self.take_back(model, died=True)

    @precondition(lambda self: self.models)
    @rule(pick=PICK)
    def cancel(self, pick):
        request_id = self.pick(list(self.models), pick)
        self.home.cancel(request_id)
        model = self.models[request_id]
        if model.finish_reason is None:
            model.cancelled = True
            if model.holder is None:
                self.end(model, "abort")

    @precondition(lambda self: self.workers)
    @rule(pick=PICK)
    def release(self, pick):
        worker = self.pick(self.workers, pick)
        worker.release()
        self.drop(worker, died=False)

    @precondition(lambda self: self.workers)
    @rule(pick=PICK)
    def kill(self, pick):
        worker = self.pick(self.workers, pick)
        self.home.kill(worker)
        self.drop(worker, died=True)
        self.claims = [(holder, claim) for holder, claim in self.claims if holder is not worker]

    @precondition(lambda self: self.workers)
    @rule(pick=PICK)
    def fall_silent(self, pick):
        silent = self.pick(self.workers, pick)
        for worker in self.workers:
            assert worker.renew()
        self.home.clock.now += self.home.settings.lease_s / 2
        for worker in self.workers:
            assert worker is silent or worker.renew()
        self.home.clock.now += self.home.settings.lease_s / 2
        self.home.reap()
        self.drop(silent, died=True)
        self.end_overdue()
        assert not silent.renew()

    # What holds at every moment

    @invariant()
    def counts_agree(self):
        stats = self.home.stats()
        open_ = [model for model in self.models.values() if model.finish_reason is None]
        assert stats.running == sum(model.holder is not None for model in open_)
        assert stats.waiting == sum(model.holder is None for model in open_)
        assert stats.waiting_tokens == 8 * stats.waiting
        assert stats.workers == len(self.workers)
        assert (stats.resumed, stats.fenced) == (self.resumed, self.fenced)
        assert stats.quarantined == sum(model.finish_reason == "error" for model in self.models.values())

    @invariant()
    def watchers_saw_every_token_once(self):
        self.home.settle()
        for request_id, model in self.models.items():
            watcher = self.watchers[request_id]
            assert watcher.token_ids == model.log
            end = watcher.updates[-1].end if watcher.updates else None
            assert (None if end is None else end.finish_reason) == model.finish_reason

    def teardown(self):
        try:
            self.finish_everything()
        finally:
            self._opened.__exit__(None, None, None)

    def finish_everything(self):
        for worker in list(self.workers):
            worker.release()
            self.drop(worker, died=False)
        worker = self.home.worker()
        for claim in worker.claim(1000, 0):
            self.send(worker, claim, len(claim.token_ids), (), STOP)
        for watcher in self.watchers.values():
            watcher.to_end()
        assert self.home.stats().waiting == self.home.stats().running == 0

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

    def called_off(self, model):
        return model.cancelled or (model.deadline is not None and self.home.clock.now >= model.deadline)

    def end(self, model, finish_reason):
        model.finish_reason, model.holder = finish_reason, None

    def end_overdue(self):
        for model in self.models.values():
            if model.holder is None and model.finish_reason is None and self.called_off(model):
                self.end(model, "abort")

    def take_back(self, model, *, died):
        model.holder = None
        model.epoch += 1
        model.attempts += died
        if self.called_off(model):
            self.end(model, "abort")
        elif model.attempts >= 3:
            self.end(model, "error")

    def drop(self, worker, *, died):
        self.workers.remove(worker)
        for model in self.models.values():
            if model.holder is worker:
                self.take_back(model, died=died)


@pytest.mark.timeout(300)
def test_any_order_of_verbs_keeps_the_promises(open_home, make_request):
    run_state_machine_as_test(lambda: Machine(open_home, make_request), settings=SETTINGS)
