"""`minigpt worker`: waits for its queue, shows its metrics, goes when it is told to."""

import socket
import sys
from pathlib import Path

import httpx
import pytest

from tests.fleet.program import Program
from tests.fleet.redis_server import RedisServer, free_port
from tests.fleet.waiting import PATIENCE_S, wait_until


@pytest.fixture
def start_worker(tmp_path, checkpoint):
    """Return a worker that is not yet started, and shows its metrics on a port."""

    def make(queue: str, port: int, *options: str) -> Program:
        command = [sys.executable, "-m", "service", "worker", f"--model=tiny={checkpoint}", f"--metrics-port={port}"]
        return Program("worker", [*command, *options], tmp_path, {"MINIGPT_QUEUE": queue})

    return make


def metrics(port: int) -> str:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False, timeout=PATIENCE_S).text
    except httpx.TransportError:
        return ""


def test_it_waits_for_its_queue_with_its_metrics_on_show(start_worker, tmp_path):
    port = free_port()
    with RedisServer(tmp_path) as redis:
        redis.kill()
        with start_worker(redis.url, port) as worker:
            wait_until(lambda: "minigpt_engine_info" in metrics(port), "the worker shows its metrics")
            redis.start()
            with redis.client() as client:
                wait_until(lambda: client.keys("*"), "the worker registers")
            worker.terminate()
            assert worker.wait() == 0
            assert "Traceback" not in worker.words()


def test_while_it_waits_for_its_queue_it_may_be_told_to_go(start_worker):
    port = free_port()
    with start_worker(f"redis://someone:hidden-word@127.0.0.1:{free_port()}/0", port) as worker:
        wait_until(lambda: metrics(port), "the worker shows its metrics")
        worker.terminate()
        assert worker.wait() == 0
        assert "hidden-word" not in worker.words()
        assert "Traceback" not in worker.words()


@pytest.mark.parametrize("library", ["libtorch_cpu", "libtorch_python"])
def test_while_it_loads_it_may_be_told_to_go(start_worker, library):
    with start_worker("redis://127.0.0.1:1/0", 0) as worker:
        maps = Path(f"/proc/{worker.pid}/maps")
        wait_until(lambda: library in maps.read_text(), "it loads torch")
        worker.terminate()
        assert worker.wait() == 0
        assert "Traceback" not in worker.words()


def test_a_metrics_port_in_use_is_refused(start_worker):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with start_worker("redis://127.0.0.1:1/0", port) as worker:
            assert worker.wait() == 2
            assert f"127.0.0.1:{port}" in worker.words()
            assert "--metrics-port" in worker.words()


def test_an_address_that_is_none_is_refused_before_anything_is_loaded(refused):
    for queue in ("nowhere", "local://here", "http://someone:hidden-word@here"):
        assert "hidden-word" not in refused("worker", f"--queue={queue}")
