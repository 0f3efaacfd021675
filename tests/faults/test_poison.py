"""Requests that kill or hang whoever computes them: they end, and take nobody along."""

import signal
from collections.abc import Iterator

import pytest

from tests.faults.broken_worker import DEADLY, HANGING, NOT_FINITE
from tests.faults.conftest import OPTIONS
from tests.faults.scene import Scene
from tests.fleet.fleet import Fleet


@pytest.fixture(scope="module")
def breakable_fleet(tmp_path_factory, checkpoint) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("breakable")
    with Fleet(folder, checkpoint, **(OPTIONS | {"worker_module": "tests.faults.broken_worker"})) as fleet:
        yield fleet


@pytest.fixture
def fleet(breakable_fleet) -> Fleet:
    breakable_fleet.repair()
    return breakable_fleet


def test_a_poison_request_is_quarantined_and_no_innocent_is(fleet, oracle, bodies):
    poison, *innocent = bodies(count=9, num_tokens=400)
    poison["seed"] = DEADLY

    def check(body, got) -> None:
        if body is poison:
            assert got.error == "quarantined"
        else:
            oracle.check(body, got)

    before = fleet.gateways[0].metric("requests_quarantined_total")
    with fleet.keep_alive(), Scene(fleet, oracle, [*innocent, poison], check) as running:
        running.wait_for_ends()
    assert fleet.gateways[0].metric("requests_quarantined_total") == before + 1
    deaths = [status for worker in fleet.workers for status in worker.exits]
    assert deaths.count(-signal.SIGKILL) >= 3


def test_a_step_that_hangs_ends_its_worker_and_nothing_else(fleet, oracle, bodies):
    hanging, *others = bodies(count=5, num_tokens=400)
    hanging["seed"] = HANGING
    exits = sum(worker.exits.count(1) for worker in fleet.workers)
    with fleet.keep_alive(), Scene(fleet, oracle, [hanging, *others]) as running:
        running.wait_for_ends()
    assert sum(worker.exits.count(1) for worker in fleet.workers) == exits + 1
    assert "a step hangs" in fleet.words()


def test_logits_that_are_not_finite_end_their_own_stream_alone(fleet, oracle, bodies):
    sick, *sound = bodies(count=6, num_tokens=400)
    oracle_of_sick = oracle.choice(sick)["token_ids"]
    sick["seed"] = NOT_FINITE
    ended = {}

    def check(body, got) -> None:
        if body is sick:
            ended["sick"] = (got.error, len(got.token_ids) < len(oracle_of_sick))
        else:
            oracle.check(body, got)

    with Scene(fleet, oracle, [sick, *sound], check):
        pass
    assert ended == {"sick": ("engine_failure", True)}
    assert all(worker.is_running for worker in fleet.workers)
