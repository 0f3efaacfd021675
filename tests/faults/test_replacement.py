"""Everything is replaced under load, by itself and by another model: no request fails, no stream changes its model."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoints import save_untrained
from tests.faults.conftest import OPTIONS
from tests.faults.load import Load
from tests.faults.scene import check_secrecy
from tests.fleet.client import Oracle
from tests.fleet.fleet import Fleet
from tests.fleet.waiting import wait_until


@pytest.fixture(scope="session")
def other_checkpoint(tmp_path_factory, make_gpt, tokenizer) -> Path:
    """Of the same shape, with other weights."""
    model = make_gpt(seed=1, context_length=2048)
    return save_untrained(tmp_path_factory.mktemp("checkpoints") / "other", model, tokenizer)


@pytest.fixture
def other_oracle(serving, other_checkpoint) -> Iterator[Oracle]:
    """What the other model answers when nothing happens."""
    with serving(f"--model=tiny={other_checkpoint}") as server, Oracle(str(server.client.base_url)) as oracle:
        yield oracle


@pytest.fixture
def own_fleet(tmp_path, checkpoint) -> Iterator[Fleet]:
    """A fleet that does not stay what it is."""
    with Fleet(tmp_path, checkpoint, **OPTIONS) as fleet:
        yield fleet


def test_every_part_restarted_in_turn(fleet, oracle, bodies):
    with Load(fleet, bodies(4, 600), oracle.check) as load:
        load.wait_for_more()
        for member in fleet.members:
            member.terminate()
            member.wait()
            member.start()
            fleet.wait_until_ready()
        load.wait_for_more()
    assert [member.exits[-1] for member in fleet.members] == [0] * 4
    check_secrecy(fleet)


@pytest.mark.chaos
def test_another_model_under_the_same_name(own_fleet, other_checkpoint, oracle, other_oracle, bodies):
    """The new beside the old; then a gateway that cuts its streams, one that lets them end, and the old workers."""
    old_gateways, old_workers = list(own_fleet.gateways), list(own_fleet.workers)
    of_old = []

    def check(body, got) -> None:
        is_old = got.token_ids == oracle.choice(body)["token_ids"]
        (oracle if is_old else other_oracle).check(body, got)
        of_old.append(is_old)

    with Load(own_fleet, bodies(4, 600), check) as load:
        load.wait_for_more()
        num_before = len(load.streams)
        for verb in ("worker", "worker", "gateway", "gateway"):
            own_fleet.add(verb, other_checkpoint)
        own_fleet.wait_until_ready()
        cutting, ending = old_gateways
        wait_until(lambda: load.num_under_way(cutting.url), "it has something to cut")
        own_fleet.retire(cutting, hurried=True)
        own_fleet.retire(ending)
        num_until_gone = len(load.streams)
        for worker in old_workers:
            own_fleet.retire(worker)
        load.wait_for_more()
    assert all(of_old[:num_before])
    assert not any(of_old[num_until_gone:])
    assert any(got.num_breaks for (_, got), is_old in zip(load.streams, of_old, strict=True) if is_old)
    assert cutting.exits[-1] in (1, -signal.SIGTERM)  # the last of its signals may find nobody who catches it
    assert [member.exits for member in (ending, *old_workers)] == [[0]] * 3
    check_secrecy(own_fleet)
