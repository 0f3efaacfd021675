"""Workers that die, stop and come back: their streams go on as if nothing had been."""

import contextlib
import signal
import sys
from collections.abc import Iterator

import pytest

from tests.faults.conftest import LEASE_S, OPTIONS, WORKER_OPTIONS
from tests.faults.scene import Scene
from tests.fleet.fleet import SLOW_S, Fleet
from tests.fleet.waiting import wait_until

LONG_S = 600.0
"""A lease so long that whoever waits for its end is not taken for one that is only slow."""


def resumed(fleet) -> float:
    return fleet.gateways[0].metric("requests_resumed_total")


@contextlib.contextmanager
def goes_on(fleet) -> Iterator[None]:
    """Fail unless some request goes on with another worker meanwhile."""
    before = resumed(fleet)
    yield
    assert resumed(fleet) > before


def num_steps(fleet) -> float:
    return sum(worker.metric("step_seconds_count") for worker in fleet.workers)


def test_nothing_breaks(scene, fleet):
    before = resumed(fleet)
    with scene():
        pass
    assert resumed(fleet) == before


def test_killed_in_prefill(scene, fleet):
    steps = num_steps(fleet)
    for worker in fleet.workers:
        worker.network.latency_s = 0.15
    fleet.set_pace(SLOW_S)  # nothing that is computed is told before it is dead
    with goes_on(fleet), scene(count=1, num_tokens=50, num_prompt=1900) as running:
        wait_until(lambda: num_steps(fleet) > steps, "it is computed")
        for worker in fleet.workers:
            worker.kill()
        assert running.streams[0].token_ids == []
        fleet.repair()
    assert [worker.exits[-1] for worker in fleet.workers] == [-signal.SIGKILL] * 2


def test_killed_in_mid_decode(scene, fleet):
    with goes_on(fleet), scene() as running:
        victim = running.wait_for_victim()
        victim.kill()
        assert running.num_unfinished() > 0
    assert victim.exits[-1] == -signal.SIGKILL


@pytest.mark.chaos
def test_killed_before_its_tokens_arrive(scene, fleet):
    with goes_on(fleet), scene() as running:
        victim = running.wait_for_victim()
        lost = victim.network.num_swallowed
        victim.network.swallow()
        wait_until(lambda: victim.network.num_swallowed > lost, "something that it said is lost")
        victim.kill()
    assert victim.exits[-1] == -signal.SIGKILL


def test_killed_between_its_tokens_and_the_reply(scene, fleet):
    with goes_on(fleet), scene() as running:
        victim = running.wait_for_victim()
        lost = victim.network.num_swallowed
        victim.network.swallow(replies_only=True)
        wait_until(lambda: victim.network.num_swallowed > lost, "a reply is lost")
        victim.kill()
    assert victim.exits[-1] == -signal.SIGKILL


def test_a_lost_reply_is_asked_for_again(scene):
    with scene() as running:
        victim = running.wait_for_victim()
        lost = victim.network.num_swallowed
        victim.network.swallow(replies_only=True)
        wait_until(lambda: victim.network.num_swallowed > lost, "a reply is lost")
        victim.network.heal()
    assert victim.is_running


def test_stopped_for_longer_than_its_lease(scene, fleet):
    with goes_on(fleet), scene() as running:
        victim = running.wait_for_victim()
        victim.pause()
        assert running.num_unfinished() > 0
        running.wait_for_ends()
        victim.resume()
        wait_until(lambda: "registering again" in victim.words(), "it learns that its lease is over")
    assert victim.is_running


def test_terminated_once_hands_back(scene, fleet):
    with goes_on(fleet), scene() as running:
        victim = running.wait_for_victim()
        victim.terminate()
        assert victim.wait() == 0


def test_terminated_twice_ends_at_once(scene, fleet):
    with goes_on(fleet), scene() as running:
        victim = running.wait_for_victim()
        while victim.is_running:
            victim.terminate()
        assert running.num_unfinished() > 0
    assert victim.exits[-1] == 1


@pytest.mark.chaos
def test_all_dead_then_back(scene, fleet):
    with goes_on(fleet), scene() as running:
        running.wait_for_tokens(20)
        for worker in fleet.workers:
            worker.kill()
        assert running.num_unfinished() > 0
        fleet.repair()
    assert [worker.exits[-1] for worker in fleet.workers] == [-signal.SIGKILL] * 2


@pytest.mark.chaos
@pytest.mark.parametrize(("stop", "lease_s"), [("kill", LONG_S), ("terminate", LONG_S), ("pause", LEASE_S)])
def test_no_stream_is_silent_for_long(tmp_path, checkpoint, oracle, bodies, capsys, stop, lease_s):
    """Others take over at once from one that is dead or says goodbye, after its lease from one that is mute."""
    options = OPTIONS | {"worker_options": [*WORKER_OPTIONS, f"--lease-s={lease_s}"]}
    with (
        Fleet(tmp_path, checkpoint, **options) as fleet,
        # A worker has two of four: more suspects than that would wait for one another.
        Scene(fleet, oracle, bodies(count=4)) as running,
    ):
        getattr(running.wait_for_victim(), stop)()
        assert running.num_unfinished() > 0
        running.wait_for_ends()
        assert resumed(fleet) > 0
    longest = max(got.longest_silence_s for got in running.streams)
    with capsys.disabled():
        sys.stdout.write(f"\nlongest silence after {stop}: {longest:.2f} s\n")
    assert longest < LONG_S / 10
