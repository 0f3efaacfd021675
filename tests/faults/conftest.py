"""One fleet for all cases of a test process: each finds it whole and leaves it, whatever it broke, to be repaired."""

from collections.abc import Callable, Iterator

import pytest

from service.config import WorkerSettings
from tests.faults.scene import Scene, make_bodies
from tests.fleet.client import Body, Oracle
from tests.fleet.fleet import Fleet
from tests.fleet.waiting import PATIENCE_S

LEASE_S = WorkerSettings().lease_s
GATEWAY_OPTIONS = (f"--drain-s={PATIENCE_S}",)
WORKER_OPTIONS = ("--drain-s=0.2", "--max-num-seqs=8", "--max-step-tokens=16")
"""Few sequences, small steps: so that eight streams fill a worker, and a prompt's prefill takes a while."""
OPTIONS = {
    "gateway_options": GATEWAY_OPTIONS,
    "worker_options": WORKER_OPTIONS,
    "worker_module": "tests.faults.paced_worker",
}
"""Of a fleet that is to be disturbed."""


@pytest.fixture(scope="session")
def shared_fleet(tmp_path_factory, checkpoint) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    with Fleet(folder, checkpoint, **OPTIONS) as fleet:
        yield fleet


@pytest.fixture
def fleet(shared_fleet) -> Fleet:
    """The fleet, whole."""
    shared_fleet.repair()
    return shared_fleet


@pytest.fixture(scope="session")
def oracle(server) -> Iterator[Oracle]:
    """Answers of a server that nothing happens to."""
    with Oracle(str(server.client.base_url)) as oracle:
        yield oracle


@pytest.fixture
def bodies(tokenizer) -> Callable[..., list[Body]]:
    """Make bodies, by default such that the answers take a while."""

    def make(count: int = 6, num_tokens: int = 1900, **options) -> list[Body]:
        return make_bodies(count, num_tokens, end_of_text_id=tokenizer.end_of_text_id, **options)

    return make


@pytest.fixture
def scene(fleet, oracle, bodies) -> Callable[..., Scene]:
    """Open a scene in which such streams are under way."""

    def open_(*args, **options) -> Scene:
        return Scene(fleet, oracle, bodies(*args, **options))

    return open_
