"""In what order every backend hands requests out: fair among tenants, by priority and age; and how many may wait."""

import pytest

from service.errors import QueueFull
from service.protocol import EmitStatus
from service.queue.local.fair_line import PATIENCE_S
from tests.claims import emission, ids_of


def submit(backend, make_request, text, **fields):
    """Submit one request for each word: its tenant is the first letter."""
    for word in text.split():
        backend.submit(make_request(word, tenant=word[0], **fields))


def test_tenants_take_turns_however_many_one_of_them_sent(backend, make_request):
    submit(backend, make_request, "a1 a2 a3 a4 b1 b2 c1")
    assert ids_of(backend.worker().claim(9, 0)) == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


def test_turns_are_paid_by_cost(backend, make_request):
    submit(backend, make_request, "a1 a2", max_tokens=27)
    submit(backend, make_request, "b1 b2 b3 b4", max_tokens=7)
    assert ids_of(backend.worker().claim(9, 0)) == ["a1", "b1", "b2", "b3", "a2", "b4"]


def test_one_who_comes_later_is_owed_nothing_for_the_time_before(backend, make_request):
    worker = backend.worker()
    submit(backend, make_request, "a1 a2 a3 a4 a5")
    assert ids_of(worker.claim(3, 0)) == ["a1", "a2", "a3"]
    submit(backend, make_request, "b1 b2 b3")
    assert ids_of(worker.claim(9, 0)) == ["b1", "a4", "b2", "a5", "b3"]


def test_one_who_was_served_and_comes_again_is_not_served_first(backend, make_request):
    worker = backend.worker()
    submit(backend, make_request, "a1", max_tokens=97)
    submit(backend, make_request, "b1 b2 b3")
    assert ids_of(worker.claim(2, 0)) == ["a1", "b1"]
    submit(backend, make_request, "a2")
    assert ids_of(worker.claim(9, 0)) == ["b2", "b3", "a2"]


def test_a_line_where_nobody_waits_forgets_who_was_served(backend, make_request):
    worker = backend.worker()
    submit(backend, make_request, "a1", max_tokens=97)
    assert ids_of(worker.claim(9, 0)) == ["a1"]
    submit(backend, make_request, "a2 b1")
    assert ids_of(worker.claim(9, 0)) == ["a2", "b1"]


def test_what_is_cancelled_while_it_waits_costs_its_tenant_nothing(backend, make_request):
    submit(backend, make_request, "a1", max_tokens=97)
    submit(backend, make_request, "b1 b2")
    backend.cancel("a1")
    submit(backend, make_request, "a2")
    assert ids_of(backend.worker().claim(9, 0)) == ["a2", "b1", "b2"]


def test_each_model_and_each_priority_has_turns_of_its_own(backend, make_request):
    submit(backend, make_request, "a1", max_tokens=97)
    submit(backend, make_request, "b1")
    submit(backend, make_request, "a2", priority="high")
    submit(backend, make_request, "b2", priority="high")
    submit(backend, make_request, "a3 b3", model="big")
    both = backend.worker({"tiny": "r1", "big": "r1"})
    assert ids_of(both.claim(2, 0)) == ["a2", "b2"]
    assert ids_of(both.claim(9, 0)) == ["a1", "b1", "a3", "b3"]


def test_what_was_handed_back_goes_before_what_its_tenant_sent_later(backend, make_request):
    first = backend.worker()
    submit(backend, make_request, "a1 a2 a3 b1 b2 b3")
    assert ids_of(first.claim(3, 0)) == ["a1", "b1", "a2"]
    first.release()
    assert ids_of(backend.worker().claim(9, 0)) == ["b1", "a1", "b2", "a2", "b3", "a3"]


@pytest.mark.parametrize("ages", [(0, 0, 0), (50, 4, 0)])
def test_the_higher_priority_goes_first_while_the_lower_has_patience(backend, make_request, ages):
    for priority, age in zip(("bulk", "normal", "high"), ages, strict=True):
        backend.submit(make_request(priority, priority=priority))
        backend.pass_time(age)
    assert ids_of(backend.worker().claim(9, 0)) == ["high", "normal", "bulk"]


def test_one_that_has_waited_for_its_patience_lets_no_later_one_pass(backend, make_request):
    backend.submit(make_request("bulk", priority="bulk"))
    backend.pass_time(PATIENCE_S["bulk"] - PATIENCE_S["normal"] + 1)
    backend.submit(make_request("normal", priority="normal"))
    backend.pass_time(PATIENCE_S["normal"] + 1)
    backend.submit(make_request("high", priority="high"))
    assert ids_of(backend.worker().claim(9, 0)) == ["bulk", "normal", "high"]


def test_a_tenant_may_not_fill_the_queue(open_backend, make_request):
    with open_backend(max_tenant_depth=2) as backend:
        submit(backend, make_request, "a1 a2")
        with pytest.raises(QueueFull) as refused:
            submit(backend, make_request, "a3")
        assert refused.value.retry_after_s >= 1
        submit(backend, make_request, "b1 a1")
        with pytest.raises(QueueFull):
            backend.submit(make_request("b2", tenant="b"), make_request("b3", tenant="b"))
        assert ids_of(backend.worker().claim(1, 0)) == ["a1"]
        submit(backend, make_request, "a3")
        backend.cancel("a2")
        submit(backend, make_request, "a4")
        assert backend.stats().waiting == 3


def test_what_comes_back_counts_as_its_tenants_again(open_backend, make_request):
    with open_backend(max_tenant_depth=1) as backend:
        submit(backend, make_request, "a1")
        worker = backend.worker()
        [claim] = worker.claim(1, 0)
        submit(backend, make_request, "a2")
        assert worker.emit([emission(claim, 1, base=3)]) == [EmitStatus.GAP]
        backend.cancel("a2")
        with pytest.raises(QueueFull):
            submit(backend, make_request, "a3")
