"""`docker compose up`, really: images are built, a fleet comes up, a worker is killed, nobody notices."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import httpx
import pytest

from tests.deploy import compose as engine
from tests.deploy.compose import Compose
from tests.fleet.client import Body, Client, Oracle, Streamed
from tests.fleet.waiting import wait_until

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(4 * 3600)]  # a build fetches torch

NUM_STREAMS = 128  # as many as two workers compute at once: it takes them many seconds
END_OF_TEXT = 66


@pytest.fixture(scope="module")
def services() -> list[str]:
    """What can be brought up here."""
    reason = engine.why_not()
    if reason is not None:
        pytest.skip(reason)
    return engine.startable_services()


@pytest.fixture(scope="module")
def project(services) -> Iterator[Compose]:
    """The compose file, up, with two workers."""
    project = Compose(f"minigpt-test-{os.getpid()}")
    try:
        project.run("build")
        project.run("up", "-d", "--scale", "worker=2", *services)
        wait_until(lambda: metric(project, "workers") == 2, "both workers hold a lease")
        yield project
    finally:
        project.run("down", "--volumes", "--remove-orphans")


def url(project: Compose) -> str:
    return f"http://127.0.0.1:{project.ports['MINIGPT_PORT']}"


def get(port: int, path: str) -> httpx.Response | None:
    """What a port of this machine answers; None while it does not."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}{path}", trust_env=False)
    except httpx.TransportError:
        return None


def metric(project: Compose, name: str) -> float | None:
    answer = get(project.ports["MINIGPT_PORT"], "/metrics")
    lines = answer.text.splitlines() if answer else []
    return next((float(line.split()[1]) for line in lines if line.startswith(f"minigpt_{name} ")), None)


def body(seed: int) -> Body:
    return {"prompt": "ROMEO:", "max_tokens": 240, "seed": seed, "logit_bias": {str(END_OF_TEXT): -100}}


def test_streams_outlive_the_container_of_their_worker(project):
    """Every stream is, token for token, what nobody's death would have made of it."""
    begun = Event()
    victim = project.containers("worker")[0]

    def read(seed: int) -> Streamed:
        return client.stream(body(seed), on_frame=lambda _: begun.set())

    with Client([url(project)]) as client, Oracle(url(project)) as oracle, ThreadPoolExecutor(NUM_STREAMS) as readers:
        streams = [readers.submit(read, seed) for seed in range(NUM_STREAMS)]
        assert begun.wait(60)
        engine.kill(victim)
        whole = [stream.result() for stream in streams]
        assert metric(project, "requests_resumed_total") > 0, "the worker held no stream when it died"
        for seed, got in enumerate(whole):
            oracle.check(body(seed), got)
            assert got.num_breaks == 0


def test_workers_are_added_and_prometheus_finds_them(project, services):
    project.run("up", "-d", "--scale", "worker=3", *services)
    wait_until(lambda: metric(project, "workers") == 3, "three workers hold a lease")
    if "prometheus" not in services:
        pytest.skip("no image of prometheus")
    wait_until(lambda: up(project) == {"gateway": 1, "worker": 3}, "prometheus scrapes a gateway and three workers")
    rules = get(project.ports["PROMETHEUS_PORT"], "/api/v1/rules").json()["data"]["groups"]
    assert [rule["health"] for group in rules for rule in group["rules"] if rule["health"] == "err"] == []


def up(project: Compose) -> dict[str, int]:
    """How many targets of each job answer Prometheus."""
    answer = get(project.ports["PROMETHEUS_PORT"], "/api/v1/query?query=sum by (job) (up)")
    results = answer.json()["data"]["result"] if answer else []
    return {result["metric"]["job"]: int(result["value"][1]) for result in results}


def test_grafana_shows_the_dashboard(project, services):
    if "grafana" not in services:
        pytest.skip("no image of grafana")
    wait_until(lambda: get(project.ports["GRAFANA_PORT"], "/api/dashboards/uid/minigpt"), "grafana answers")
    assert get(project.ports["GRAFANA_PORT"], "/api/dashboards/uid/minigpt").status_code == 200


@pytest.mark.parametrize("service", ["gateway", "worker"])
def test_a_container_may_next_to_nothing(project, service):
    container = engine.inspect(project.containers(service)[0])
    assert container["Config"]["User"] == "10001:10001"
    assert container["HostConfig"]["ReadonlyRootfs"]
    assert container["HostConfig"]["CapDrop"] == ["ALL"]
    assert container["Config"]["StopSignal"] == "SIGTERM"


def test_the_gateways_image_has_no_torch(project):
    found = project.run(
        "exec", "-T", "gateway", "python", "-c", "import importlib.util as u; print(u.find_spec('torch'))"
    )
    assert found.strip() == "None"


def test_the_workers_image_computes_natively(project):
    answer = project.run(
        "exec",
        "-T",
        "worker",
        "python",
        "-c",
        "from service.engine.kernels.library import best_level; print(best_level())",
    )
    assert answer.strip() != "None"
