"""`minigpt queue …` on a fleet at work."""

import json

import httpx

from tests.fleet.waiting import PATIENCE_S


def test_status_counts_what_waits_runs_and_works(fleet, minigpt):
    queue = f"--queue={fleet.redis.url}"
    told = json.loads(minigpt("queue", "status", queue, "--json").stdout)
    assert told.pop("revisions")[0].startswith("sha256:")
    assert told == {
        "waiting": 0,
        "waiting_tokens": 0,
        "running": 0,
        "workers": 1,
        "resumed": 0,
        "fenced": 0,
        "quarantined": 0,
    }
    assert "workers" in minigpt("queue", "status", queue).stdout


def test_an_answer_is_cancelled_or_one_sequence_of_it(fleet, minigpt):
    queue = f"--queue={fleet.redis.url}"
    [worker] = fleet.workers
    worker.pause()
    body = {"prompt": "a", "max_tokens": 2000, "n": 3, "background": True}
    with httpx.Client(base_url=fleet.urls[0], timeout=PATIENCE_S, trust_env=False) as client:
        answer = client.post("/generate", json=body).json()["id"]
        cancelled = minigpt("queue", "cancel", f"{answer}-1", queue).stdout
        assert cancelled == f"cancelled {answer}-1\n"
        cancelled = minigpt("queue", "cancel", answer, queue).stdout
        assert cancelled == "".join(f"cancelled {answer}-{k}\n" for k in range(3))
        worker.resume()
        assert client.get(f"/streams/{answer}").text.count('"finish_reason":"abort"') == 3


def test_what_is_not_there_cannot_be_cancelled(fleet, refused):
    for request_id in ("nothing", "nothing-0", "-"):
        assert "no answer" in refused("queue", "cancel", request_id, f"--queue={fleet.redis.url}")


def test_dead_lists_nothing_where_nothing_died(fleet, minigpt):
    assert json.loads(minigpt("queue", "dead", f"--queue={fleet.redis.url}", "--json").stdout) == []
    assert "attempts" in minigpt("queue", "dead", f"--queue={fleet.redis.url}").stdout


def test_a_redis_that_is_not_there_is_one_line_without_its_password(refused):
    line = refused("queue", "status", "--queue=redis://someone:hidden-word@127.0.0.1:1/0")
    assert "127.0.0.1:1/0" in line
    assert "hidden-word" not in line
