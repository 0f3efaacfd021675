"""In what order every home hands requests out: fair among tenants, by priority and age; and how many may wait."""

import pytest

from service.errors import QueueFull
from service.protocol import Emission, EmitStatus
from service.queue.fairness import PATIENCE_S


def ids(claims):
    return [claim.request.id for claim in claims]


def submit(home, make_request, text, **fields):
    """Submit one request for each word: its tenant is the first letter."""
    for word in text.split():
        home.submit(make_request(word, tenant=word[0], **fields))


def test_tenants_take_turns_however_many_one_of_them_sent(home, make_request):
    submit(home, make_request, "a1 a2 a3 a4 b1 b2 c1")
    assert ids(home.worker().claim(9, 0)) == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


def test_turns_are_paid_by_cost(home, make_request):
    submit(home, make_request, "a1 a2", max_tokens=27)
    submit(home, make_request, "b1 b2 b3 b4", max_tokens=7)
    assert ids(home.worker().claim(9, 0)) == ["a1", "b1", "b2", "b3", "a2", "b4"]


def test_one_who_comes_later_is_owed_nothing_for_the_time_before(home, make_request):
    worker = home.worker()
    submit(home, make_request, "a1 a2 a3 a4 a5")
    assert ids(worker.claim(3, 0)) == ["a1", "a2", "a3"]
    submit(home, make_request, "b1 b2 b3")
    assert ids(worker.claim(9, 0)) == ["b1", "a4", "b2", "a5", "b3"]


def test_one_who_was_served_and_comes_again_is_not_served_first(home, make_request):
    worker = home.worker()
    submit(home, make_request, "a1", max_tokens=97)
    submit(home, make_request, "b1 b2 b3")
    assert ids(worker.claim(2, 0)) == ["a1", "b1"]
    submit(home, make_request, "a2")
    assert ids(worker.claim(9, 0)) == ["b2", "b3", "a2"]


def test_a_line_where_nobody_waits_forgets_who_was_served(home, make_request):
    worker = home.worker()
    submit(home, make_request, "a1", max_tokens=97)
    assert ids(worker.claim(9, 0)) == ["a1"]
    submit(home, make_request, "a2 b1")
    assert ids(worker.claim(9, 0)) == ["a2", "b1"]


def test_what_is_cancelled_while_it_waits_costs_its_tenant_nothing(home, make_request):
    submit(home, make_request, "a1", max_tokens=97)
    submit(home, make_request, "b1 b2")
    home.cancel("a1")
    submit(home, make_request, "a2")
    assert ids(home.worker().claim(9, 0)) == ["a2", "b1", "b2"]


def test_each_model_and_each_priority_has_turns_of_its_own(home, make_request):
    submit(home, make_request, "a1", max_tokens=97)
    submit(home, make_request, "b1")
    submit(home, make_request, "a2", priority="high")
    submit(home, make_request, "b2", priority="high")
    submit(home, make_request, "a3 b3", model="big")
    both = home.worker({"tiny": "r1", "big": "r1"})
    assert ids(both.claim(2, 0)) == ["a2", "b2"]
    assert ids(both.claim(9, 0)) == ["a1", "b1", "a3", "b3"]


def test_what_was_handed_back_goes_before_what_its_tenant_sent_later(home, make_request):
    first = home.worker()
    submit(home, make_request, "a1 a2 a3 b1 b2 b3")
    assert ids(first.claim(3, 0)) == ["a1", "b1", "a2"]
    first.release()
    assert ids(home.worker().claim(9, 0)) == ["b1", "a1", "b2", "a2", "b3", "a3"]


@pytest.mark.parametrize("ages", [(0, 0, 0), (50, 4, 0)])
def test_the_higher_priority_goes_first_while_the_lower_has_patience(home, make_request, ages):
    for priority, age in zip(("bulk", "normal", "high"), ages, strict=True):
        home.submit(make_request(priority, priority=priority))
        home.pass_time(age)
    assert ids(home.worker().claim(9, 0)) == ["high", "normal", "bulk"]


def test_a_request_that_has_waited_for_its_patience_lets_nobody_pass_who_comes_later(home, make_request):
    home.submit(make_request("bulk", priority="bulk"))
    home.pass_time(PATIENCE_S["bulk"] - PATIENCE_S["normal"] + 1)
    home.submit(make_request("normal", priority="normal"))
    home.pass_time(PATIENCE_S["normal"] + 1)
    home.submit(make_request("high", priority="high"))
    assert ids(home.worker().claim(9, 0)) == ["bulk", "normal", "high"]


def test_a_tenant_may_not_fill_the_queue(open_home, make_request):
    with open_home(max_tenant_depth=2) as home:
        submit(home, make_request, "a1 a2")
        with pytest.raises(QueueFull) as refused:
            submit(home, make_request, "a3")
        assert refused.value.retry_after_s >= 1
        submit(home, make_request, "b1 a1")
        with pytest.raises(QueueFull):
            home.submit(make_request("b2", tenant="b"), make_request("b3", tenant="b"))
        assert ids(home.worker().claim(1, 0)) == ["a1"]
        submit(home, make_request, "a3")
        home.cancel("a2")
        submit(home, make_request, "a4")
        assert home.stats().waiting == 3


def test_what_comes_back_counts_as_its_tenants_again(open_home, make_request):
    with open_home(max_tenant_depth=1) as home:
        submit(home, make_request, "a1")
        worker = home.worker()
        [claim] = worker.claim(1, 0)
        submit(home, make_request, "a2")
        gap = Emission(id="a1", epoch=claim.epoch, base=3, token_ids=(1,))
        assert worker.emit([gap]) == [EmitStatus.GAP]
        home.cancel("a2")
        with pytest.raises(QueueFull):
            submit(home, make_request, "a3")
