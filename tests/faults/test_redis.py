"""A Redis that dies, freezes, fills up or forgets: what was accepted goes on, what cannot be is refused in words."""

import resource
import signal
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.faults.scene import Scene
from tests.fleet.fleet import Fleet
from tests.fleet.redis_server import SentinelSetup
from tests.fleet.waiting import PATIENCE_S, wait_until


@pytest.fixture(autouse=True)
def configured(fleet) -> Iterator[None]:
    """Give Redis its settings back."""
    yield
    fleet.repair()
    with fleet.redis.client() as client:
        client.config_set("maxmemory", 0)


def ask(fleet: Fleet, body: dict) -> httpx.Response:
    return httpx.post(f"{fleet.urls[0]}/generate", json=body, timeout=PATIENCE_S, trust_env=False)


def test_killed_and_restarted_from_its_log(scene, fleet):
    with scene() as running:
        running.wait_for_tokens(20)
        fleet.redis.kill()
        assert running.num_unfinished() > 0
        fleet.redis.start()
    assert fleet.redis.exits[-1] == -signal.SIGKILL


def test_restarted_empty_no_stream_is_wrong_or_hangs(fleet, oracle, bodies):
    lost = set()

    def check(body, got) -> None:
        if got.error is None:
            oracle.check(body, got)
        else:
            lost.add(got.error)
            oracle.check_beginning(body, got)

    with Scene(fleet, oracle, bodies(), check) as running:
        running.wait_for_tokens(20)
        fleet.redis.restart(empty=True)
    assert lost <= {"not_found", "unavailable"}
    assert lost


@pytest.mark.parametrize("seconds", [3, pytest.param(10, marks=pytest.mark.chaos)])
def test_frozen_for_a_while(scene, fleet, bodies, seconds):
    with scene() as running:
        running.wait_for_tokens(20)
        fleet.redis.pause()
        began = time.monotonic()
        assert ask(fleet, bodies(1, 5)[0]).status_code == 503
        assert running.num_unfinished() > 0
        time.sleep(max(0.0, began + seconds - time.monotonic()))
        fleet.redis.resume()


def test_out_of_memory_refuses_the_new_and_finishes_the_old(scene, fleet, bodies):
    with scene() as running, fleet.redis.client() as redis:
        running.wait_for_tokens(20)
        redis.config_set("maxmemory", 1)
        assert running.num_unfinished() > 0
        assert ask(fleet, bodies(1, 5)[0]).status_code == 429
        running.wait_for_ends()
        redis.config_set("maxmemory", 0)


def test_its_functions_flushed(scene, fleet):
    with scene() as running, fleet.redis.client() as redis:
        running.wait_for_tokens(20)
        redis.function_flush()
        assert running.num_unfinished() > 0
        wait_until(lambda: redis.function_list(), "somebody has loaded them again")


@pytest.mark.chaos
def test_its_disk_full(scene, fleet):
    with scene() as running:
        running.wait_for_tokens(20)
        size = sum(file.stat().st_size for file in fleet.redis.data.rglob("*.aof"))
        resource.prlimit(fleet.redis.pid, resource.RLIMIT_FSIZE, (size + 1000, resource.RLIM_INFINITY))
        wait_until(lambda: not fleet.redis.is_running, "it gives up: what it cannot keep it does not promise")
        assert running.num_unfinished() > 0
        fleet.redis.start()


def test_its_subscribers_thrown_out_again_and_again(scene, fleet):
    num_killed, over = 0, threading.Event()

    def kill() -> None:
        nonlocal num_killed
        with fleet.redis.client() as redis:
            while not over.wait(0.1):
                num_killed += redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")

    killing = threading.Thread(target=kill)
    with scene() as running:
        killing.start()
        running.wait_for_ends()
        over.set()
        killing.join()
    assert num_killed > 0


@pytest.mark.chaos
def test_its_replica_promoted(tmp_path, checkpoint, oracle, bodies):
    """What the primary had not yet handed on is computed again; a stream ends well or says that it diverged."""
    with (
        SentinelSetup(tmp_path, appendonly="yes") as setup,
        Fleet(tmp_path, checkpoint, queue=setup.url) as fleet,
        Scene(fleet, oracle, bodies()) as running,
    ):
        running.wait_for_tokens(20)
        setup.primary.kill()
        assert running.num_unfinished() > 0
        setup.wait_for_promotion()
