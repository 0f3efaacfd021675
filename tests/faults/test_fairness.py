"""One tenant floods the queue; another, who asks for one thing at a time, hardly notices."""

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.faults.conftest import WORKER_OPTIONS
from tests.fleet.fleet import Fleet
from tests.fleet.waiting import wait_until

NUM_ASKED = 20
pytestmark = pytest.mark.chaos


@pytest.fixture
def keys(tmp_path) -> dict[str, str]:
    """A key for each tenant."""
    return {tenant: add_key(f"--keys={tmp_path / 'keys.json'}", tenant) for tenant in ("flood", "quiet")}


def add_key(*arguments: str) -> str:
    command = [sys.executable, "-m", "service", "keys", "add", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def fleet(tmp_path, checkpoint, keys) -> Iterator[Fleet]:
    options = [f"--keys={tmp_path / 'keys.json'}"]
    sizes = {"num_gateways": 1, "num_workers": 1, "is_proxied": False}
    assert keys
    with Fleet(tmp_path, checkpoint, gateway_options=options, worker_options=WORKER_OPTIONS, **sizes) as fleet:
        yield fleet


def ask(fleet: Fleet, key: str, body: dict) -> float:
    """Return the seconds until the answer."""
    began = time.perf_counter()
    headers = {"Authorization": f"Bearer {key}"}
    httpx.post(f"{fleet.urls[0]}/generate", json=body, headers=headers, timeout=100, trust_env=False).raise_for_status()
    return time.perf_counter() - began


def p95(fleet: Fleet, key: str, body: dict) -> float:
    return statistics.quantiles([ask(fleet, key, body) for _ in range(NUM_ASKED)], n=20)[-1]


def test_a_flood_at_most_doubles_the_others_time(fleet, keys, bodies):
    [body] = bodies(1, 100)
    with ThreadPoolExecutor(1) as threads:
        busy = threads.submit(ask, fleet, keys["flood"], body | {"n": 7, "max_tokens": 1900})
        wait_until(lambda: fleet.gateways[0].metric("requests_running") == 7, "the worker is busy")
        before = p95(fleet, keys["quiet"], body)
        busy.result()
        many = {"prompts": [chosen["prompt"] for chosen in bodies(60)], "n": 16, "max_tokens": 50}
        flood = threads.submit(ask, fleet, keys["flood"], many)
        wait_until(lambda: fleet.gateways[0].metric("requests_waiting") > 500, "hundreds wait")
        during = p95(fleet, keys["quiet"], body)
        assert not flood.done()
        flood.result()
    assert during <= 2 * before
