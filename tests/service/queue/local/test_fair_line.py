"""Fair shares, whatever comes and goes: nobody starves, and those who wait all the while are served alike."""

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.queue.local.fair_line import PATIENCE_S, FairLine, next_of

COSTS = st.integers(1, 1000)


@dataclass(frozen=True)
class Sent:
    arrival: int
    tenant: str
    cost: int = 1
    submitted: float = 0.0


def serve(line: FairLine[Sent]) -> Sent:
    first = line.first()
    assert first is not None
    line.serve(first)
    return first


@given(st.lists(st.tuples(st.sampled_from("abc"), COSTS), min_size=1, max_size=60), st.data())
def test_those_who_wait_all_the_while_are_served_alike(costs, data):
    """The bound of the paper's first theorem: a difference of at most one request's cost of each."""
    line: FairLine[Sent] = FairLine("normal")
    left = {"a": 0, "b": 0, "c": 0}
    greatest = {"a": 0, "b": 0, "c": 0}
    for arrival, (tenant, cost) in enumerate(costs):
        line.add(Sent(arrival, tenant, cost))
        left[tenant] += 1
        greatest[tenant] = max(greatest[tenant], cost)
    for _ in range(data.draw(st.integers(0, len(costs) - 1))):
        left[serve(line).tenant] -= 1
    served = dict.fromkeys("abc", 0)
    while len(line):
        request = serve(line)
        served[request.tenant] += request.cost
        waiting = [tenant for tenant in "abc" if left[tenant]]
        for one in waiting:
            for other in waiting:
                assert abs(served[one] - served[other]) <= greatest[one] + greatest[other]
        left[request.tenant] -= 1


@given(st.lists(COSTS, min_size=1, max_size=50), st.integers(0, 200), COSTS)
def test_a_flood_delays_another_tenant_by_no_more_than_one_of_its_requests(floods, num_served, cost):
    line: FairLine[Sent] = FairLine("normal")
    for arrival in range(1000):
        line.add(Sent(arrival, "flood", floods[arrival % len(floods)]))
    for _ in range(num_served):
        serve(line)
    line.add(Sent(1000, "other", cost))
    assert "other" in [serve(line).tenant for _ in range(2)]


ADDED = st.lists(st.tuples(st.sampled_from("abc"), COSTS), max_size=5)


@given(st.lists(ADDED, max_size=20), st.lists(ADDED, min_size=10, max_size=10))
def test_one_who_owes_nothing_lets_each_other_tenant_go_only_once(before, meanwhile):
    line: FairLine[Sent] = FairLine("normal")
    arrivals = itertools.count()

    def add(sent):
        for tenant, cost in sent:
            line.add(Sent(next(arrivals), tenant, cost))

    for sent in before:
        add(sent)
        if len(line):
            serve(line)
    line.add(Sent(next(arrivals), "new"))
    order = []
    for sent in meanwhile:
        add(sent)
        order.append(serve(line).tenant)
        if order[-1] == "new":
            break
    assert order[-1] == "new"
    assert len(set(order)) == len(order)


@given(
    st.lists(
        st.tuples(st.sampled_from(["high", "normal", "bulk"]), st.floats(0, 200), st.sampled_from("ab")),
        min_size=1,
        max_size=40,
    )
)
def test_a_lone_tenants_request_waits_for_none_later_than_its_patience(arrivals):
    lines = {priority: FairLine[Sent](priority) for priority in PATIENCE_S}
    priority_of = {}
    for arrival, (priority, submitted, _) in enumerate(sorted(arrivals, key=lambda sent: sent[1])):
        sent = Sent(arrival, "one", submitted=submitted)
        lines[priority].add(sent)
        priority_of[arrival] = priority
    order = []
    while (request := next_of(lines.values())) is not None:
        lines[priority_of[request.arrival]].serve(request)
        order.append(request)
    assert len(order) == len(arrivals)
    for place, request in enumerate(order):
        patience_s = PATIENCE_S[priority_of[request.arrival]]
        assert all(earlier.submitted <= request.submitted + patience_s for earlier in order[:place])


def test_what_leaves_unserved_costs_nothing_and_an_empty_line_forgets():
    line: FairLine[Sent] = FairLine("normal")
    dear, cheap, again = Sent(0, "a", 100), Sent(1, "b", 1), Sent(2, "a", 1)
    line.add(dear)
    line.add(cheap)
    line.remove(dear)
    line.add(again)
    assert [serve(line), serve(line)] == [again, cheap]
    assert line._tags == {}
    assert line._virtual_time == 0


def test_what_comes_back_waits_in_front_of_what_its_tenant_sent_later():
    line: FairLine[Sent] = FairLine("normal")
    first, second = Sent(0, "a"), Sent(1, "a")
    line.add(first)
    line.add(second)
    assert serve(line) is first
    line.add(first)
    assert [serve(line), serve(line)] == [first, second]


@pytest.mark.parametrize("num_lines", [0, 3])
def test_where_nobody_waits_nobody_is_next(num_lines):
    assert next_of([FairLine[Sent]("bulk")] * num_lines) is None
