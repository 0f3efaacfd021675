"""One tenant floods the queue; another, who asks for one thing at a time, hardly notices."""

import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.faults.conftest import OPTIONS
from tests.fleet.fleet import Fleet
from tests.fleet.waiting import PATIENCE_S, wait_until

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
    assert keys
    options = OPTIONS | {"gateway_options": [f"--keys={tmp_path / 'keys.json'}"]}
    with Fleet(tmp_path, checkpoint, **options, num_gateways=1, num_workers=1, is_proxied=False) as fleet:
        yield fleet


def num_steps(fleet: Fleet) -> float:
    return fleet.workers[0].metric("step_seconds_count")


def ask(fleet: Fleet, key: str, body: dict) -> float:
    """Return how many steps the worker makes until the answer: a time that no load of the machine makes longer."""
    began = num_steps(fleet)
    headers = {"Authorization": f"Bearer {key}"}
    url = f"{fleet.urls[0]}/generate"
    httpx.post(url, json=body, headers=headers, timeout=PATIENCE_S, trust_env=False).raise_for_status()
    return num_steps(fleet) - began


def p95(fleet: Fleet, key: str, body: dict) -> float:
    return statistics.quantiles([ask(fleet, key, body) for _ in range(NUM_ASKED)], n=20)[-1]


def keep_asking(fleet: Fleet, key: str, body: dict, over: threading.Event) -> None:
    while not over.is_set():
        ask(fleet, key, body)


def test_a_flood_at_most_doubles_the_others_time(fleet, keys, bodies):
    [body] = bodies(1, 80)
    fleet.set_pace(0.005)  # a step takes longer than it does to count the steps
    with ThreadPoolExecutor(2) as threads:
        busy = threads.submit(ask, fleet, keys["flood"], body | {"n": 7, "max_tokens": 1900})
        wait_until(lambda: fleet.gateways[0].metric("requests_running") == 7, "the worker is busy")
        before = p95(fleet, keys["quiet"], body)
        busy.result()
        many, over = (
            {"prompts": [chosen["prompt"] for chosen in bodies(30)], "n": 16, "max_tokens": 50},
            threading.Event(),
        )
        floods = [threads.submit(keep_asking, fleet, keys["flood"], many, over) for _ in range(2)]
        wait_until(lambda: fleet.gateways[0].metric("requests_waiting") > 500, "hundreds wait")
        during = p95(fleet, keys["quiet"], body)
        over.set()
        fleet.set_pace(0.0)
        for flood in floods:
            flood.result()
    assert during <= 2 * before
