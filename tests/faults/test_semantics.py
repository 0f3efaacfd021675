"""What is promised about order, deadlines and repetition, in a fleet that is busy or being replaced."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.fleet.client import Client, Refused


def ask(fleet, number: int, body: dict, key: str | None = None) -> dict:
    with Client([fleet.urls[number % len(fleet.urls)]]) as client:
        return client.generate(body, key)


def test_the_same_key_a_hundred_times_is_computed_once(fleet, oracle, bodies):
    [body] = bodies(1, 200)
    before = fleet.num_rows()
    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(lambda number: ask(fleet, number, body, "the same"), range(100)))
    assert len({answer["id"] for answer in answers}) == 1
    assert all(answer["choices"] == answers[0]["choices"] for answer in answers)
    assert answers[0]["choices"][0]["token_ids"] == oracle.choice(body)["token_ids"]
    assert fleet.num_rows() - before < 2 * 200


def test_a_deadline_that_passes_in_the_queue_costs_no_step(fleet, bodies):
    [body] = bodies(1, 500)
    before = fleet.num_rows()
    for worker in fleet.workers:
        worker.pause()
    with fleet.client() as client, pytest.raises(Refused) as refused:
        client.generate(body | {"deadline_s": 0.5})
    assert refused.value.status == 504
    fleet.repair()
    assert fleet.num_rows() == before


def test_bulk_is_never_starved(fleet, bodies):
    """It is answered while others of a higher priority keep coming."""
    *urgent, bulk = bodies(40, 300)
    with ThreadPoolExecutor(len(urgent) + 1) as threads:
        waiting = [threads.submit(ask, fleet, at, body | {"priority": "high"}) for at, body in enumerate(urgent)]
        answer = threads.submit(ask, fleet, 0, bulk | {"priority": "bulk"}).result()
        assert len(answer["choices"][0]["token_ids"]) == 300
        for future in waiting:
            future.result()
