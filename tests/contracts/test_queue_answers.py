"""What every backend knows of an answer: its requests, how long they live, who may join it by an idempotency key."""

import pytest

from service.errors import BadRequest, NotFound, QueueFull
from service.protocol import End, Idempotency
from tests.claims import emission

STOP = End(finish_reason="stop")
FIRST, OTHER = Idempotency(key="k", digest="d1"), Idempotency(key="k", digest="d2")


def finish(worker, *claims):
    worker.emit([emission(claim, end=STOP) for claim in claims])


@pytest.fixture
def make_answer(make_request):
    """A function that makes the requests of an answer."""

    def make(answer_id, num_choices=2, **fields):
        return [make_request(f"{answer_id}-{k}", num_choices=num_choices, **fields) for k in range(num_choices)]

    return make


def test_an_answer_is_found_as_it_was_submitted_also_when_it_has_ended(backend, make_answer):
    requests = make_answer("a", priority="bulk", tenant="t", echo=True, deadline_s=1e5)
    assert backend.submit(*requests) == ["a-0", "a-1"]
    assert backend.find("a") == requests
    worker = backend.worker()
    finish(worker, *worker.claim(8, 0))
    assert backend.find("a") == requests
    with pytest.raises(NotFound):
        backend.find("b")


def test_an_answer_is_kept_until_its_last_choice_has_ended_for_long(open_backend, make_answer):
    with open_backend(lease_s=1e6, keep_ended_s=60) as backend:
        requests = make_answer("a")
        backend.submit(*requests)
        worker = backend.worker()
        first, last = worker.claim(8, 0)
        finish(worker, first)
        backend.pass_time(1000)
        backend.reap()
        assert backend.watch("a-0").to_end().end == STOP
        finish(worker, last)
        backend.pass_time(30)
        backend.reap()
        assert backend.find("a") == requests
        backend.pass_time(31)
        backend.reap()
        with pytest.raises(NotFound):
            backend.find("a")


def test_the_same_key_joins_the_first_answer_running_or_ended(backend, make_answer):
    assert backend.submit(*make_answer("a"), idempotency=FIRST) == ["a-0", "a-1"]
    assert backend.submit(*make_answer("b"), idempotency=FIRST) == ["a-0", "a-1"]
    worker = backend.worker()
    claims = worker.claim(8, 0)
    assert len(claims) == 2
    assert backend.submit(*make_answer("c"), idempotency=FIRST) == ["a-0", "a-1"]
    finish(worker, *claims)
    assert backend.submit(*make_answer("d"), idempotency=FIRST) == ["a-0", "a-1"]
    assert worker.claim(8, 0) == []
    with pytest.raises(NotFound):
        backend.find("b")


def test_the_same_submission_may_be_retried_with_its_key(backend, make_answer):
    for _ in range(3):
        assert backend.submit(*make_answer("a"), idempotency=FIRST) == ["a-0", "a-1"]
    assert backend.stats().waiting == 2


def test_the_same_key_for_something_else_is_refused(backend, make_answer):
    backend.submit(*make_answer("a"), idempotency=FIRST)
    with pytest.raises(BadRequest) as refused:
        backend.submit(*make_answer("b"), idempotency=OTHER)
    assert refused.value.param == "idempotency_key"
    assert backend.stats().waiting == 2


def test_each_tenant_has_keys_of_its_own(backend, make_answer):
    backend.submit(*make_answer("a", tenant="s"), idempotency=FIRST)
    assert backend.submit(*make_answer("b", tenant="t"), idempotency=OTHER) == ["b-0", "b-1"]


def test_a_key_is_forgotten_with_its_answer(backend, make_answer):
    backend.submit(*make_answer("a", 1), idempotency=FIRST)
    worker = backend.worker()
    finish(worker, *worker.claim(8, 0))
    backend.pass_time(backend.settings.keep_ended_s + 1)
    backend.reap()
    assert backend.submit(*make_answer("b", 1), idempotency=OTHER) == ["b-0"]


def test_what_is_refused_leaves_its_key_free(open_backend, make_answer):
    with open_backend(max_queue_depth=1) as backend:
        with pytest.raises(QueueFull):
            backend.submit(*make_answer("a"), idempotency=FIRST)
        assert backend.submit(*make_answer("b", 1), idempotency=OTHER) == ["b-0"]


def test_one_that_may_join_is_not_kept_out_by_a_full_queue(open_backend, make_answer):
    with open_backend(max_queue_depth=1) as backend:
        backend.submit(*make_answer("a", 1), idempotency=FIRST)
        assert backend.submit(*make_answer("b", 1), idempotency=FIRST) == ["a-0"]


@pytest.mark.parametrize("runs", [False, True])
def test_what_has_no_deadline_ends_at_the_greatest_age(open_backend, make_answer, runs):
    with open_backend(max_age_s=1000, lease_s=1e6) as backend:
        backend.submit(*make_answer("old", 1), *make_answer("patient", 1, deadline_s=3000.0))
        worker = backend.worker()
        claims = worker.claim(8, 0) if runs else []
        backend.pass_time(1001)
        backend.reap()
        finish(worker, *claims)
        assert backend.watch("old-0").to_end().end.deadline_passed
        assert backend.stats().waiting == (0 if runs else 1)
