"""`minigpt gateway`: listens at once, answers 503 until there is a queue, and goes when it is told to."""

import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from tests.fleet.program import Program
from tests.fleet.redis_server import free_port
from tests.fleet.waiting import PATIENCE_S, wait_until


@contextmanager
def run_gateway(folder, checkpoint, queue: str, *options: str) -> Iterator[tuple[Program, httpx.Client]]:
    """A gateway of the model `tiny` on a free port, once it has said where."""
    command = [sys.executable, "-m", "service", "gateway", f"--model=tiny={checkpoint}", "--port=0", *options]
    with Program("gateway", command, folder, {"MINIGPT_QUEUE": queue}) as gateway:
        wait_until(lambda: "http://" in gateway.words() or not gateway.is_running, "the gateway says where it is")
        [url] = re.findall(r"^minigpt gateway on (http://\S+)$", gateway.words(), re.MULTILINE)
        with httpx.Client(base_url=url, timeout=PATIENCE_S, trust_env=False) as client:
            yield gateway, client


@pytest.fixture
def nowhere() -> str:
    """The address of a Redis that is not there."""
    return f"redis://someone:hidden-word@127.0.0.1:{free_port()}/0"


def test_without_its_queue_it_answers_503_and_ends_when_told(tmp_path, checkpoint, nowhere):
    with run_gateway(tmp_path, checkpoint, nowhere) as (gateway, client):
        assert client.get("/livez").status_code == 200
        assert client.get("/readyz").status_code == 503
        assert client.post("/generate", json={"prompt": "a"}).status_code == 503
        assert client.get("/metrics").status_code == 200
        gateway.terminate()
        assert gateway.wait() == 0
        assert "hidden-word" not in gateway.words()
        assert "Traceback" not in gateway.words()


def test_without_its_queue_it_knows_no_key_yet(tmp_path, checkpoint, nowhere):
    with run_gateway(tmp_path, checkpoint, nowhere, "--keys=redis", "--host=0.0.0.0") as (gateway, client):
        answer = client.post("/generate", json={"prompt": "a"}, headers={"x-api-key": "mg_0"})
        assert answer.status_code == 503
        assert "hidden-word" not in gateway.words()


def test_it_serves_what_the_workers_compute_and_asks_for_the_keys_in_redis(tmp_path, checkpoint, fleet, minigpt):
    queue = fleet.redis.url
    secret = minigpt("keys", "add", "alice", "--keys=redis", f"--queue={queue}").stdout.strip()
    with run_gateway(tmp_path, checkpoint, queue, "--keys=redis") as (_, client):
        body = {"prompt": "a", "max_tokens": 3}
        assert client.post("/generate", json=body).status_code == 401
        headers = {"authorization": f"Bearer {secret}"}
        assert client.post("/generate", json=body, headers=headers).json()["choices"][0]["token_ids"]
        minigpt("keys", "revoke", secret_id(minigpt, queue), "--keys=redis", f"--queue={queue}")
        wait_until(lambda: client.post("/generate", json=body, headers=headers).status_code == 401, "it is revoked")


def secret_id(minigpt, queue: str) -> str:
    [line] = [
        line
        for line in minigpt("keys", "list", "--keys=redis", f"--queue={queue}").stdout.splitlines()
        if "alice" in line
    ]
    return line.split()[0]


def test_a_second_signal_cuts(tmp_path, checkpoint, fleet, tokenizer):
    never = {str(tokenizer.end_of_text_id): -100}
    body = {"prompt": "a", "max_tokens": 2000, "stream": True, "logit_bias": never}
    with (
        run_gateway(tmp_path, checkpoint, fleet.redis.url, "--drain-s=1000") as (gateway, client),
        client.stream("POST", "/generate", json=body) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        gateway.terminate()
        gateway.signal(signal.SIGINT)
        with pytest.raises(httpx.TransportError):
            list(lines)
        assert gateway.wait() == 1
        assert "Traceback" not in gateway.words()


def test_beyond_this_machine_it_wants_keys(refused):
    assert "--allow-anyone" in refused("gateway", "--queue=redis://127.0.0.1/0", "--host=0.0.0.0", "--port=0")


def test_an_address_that_is_none_is_refused_without_its_password(refused):
    line = refused("gateway", "--queue=http://someone:hidden-word@here", "--port=0")
    assert "redis://" in line
    assert "hidden-word" not in line
