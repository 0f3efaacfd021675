"""`minigpt serve`: its workers get its settings, and beyond this machine it wants keys."""

import typer

from service.__main__ import app
from service.commands.options import command_line
from service.config import EngineSettings, parse_settings


def test_what_differs_from_the_defaults_reaches_a_worker():
    assert command_line(EngineSettings()) == []
    settings = EngineSettings(prefix_caching=False, max_num_seqs=3, kv_cache_mb=7, kernels="torch")
    worker = typer.main.get_command(app).commands["worker"]
    context = worker.make_context("worker", ["--queue=local:///link", "--model=m", *command_line(settings)])
    assert parse_settings(EngineSettings, context.params) == settings


def test_beyond_this_machine_it_wants_keys(refused):
    for host in ("0.0.0.0", "::"):
        assert "--allow-anyone" in refused("serve", f"--host={host}", "--port=0")


def test_with_keys_it_listens_beyond_this_machine(serving, minigpt, checkpoint, tmp_path):
    keys = f"--keys={tmp_path / 'keys.json'}"
    secret = minigpt("keys", "add", "alice", keys).stdout.strip()
    with serving(f"--model={checkpoint}", keys, "--host=0.0.0.0") as server:
        assert server.client.get("/v1/models").status_code == 401
        headers = {"authorization": f"Bearer {secret}"}
        assert server.client.post("/generate", json={"prompt": "a", "max_tokens": 3}, headers=headers).is_success
        assert secret not in server.log.read_text()


def test_or_is_told_that_anyone_may_come(serving, checkpoint):
    with serving(f"--model={checkpoint}", "--allow-anyone", "--host=0.0.0.0") as server:
        assert server.client.get("/v1/models").is_success


def test_keys_that_are_none_are_refused_at_start(refused, tmp_path):
    missing = tmp_path / "keys.json"
    assert str(missing) in refused("serve", f"--keys={missing}", "--port=0")
    assert str(missing) in refused("serve", "--port=0", env={"MINIGPT_KEYS": str(missing)})
    assert "--queue" in refused("serve", "--keys=redis", "--port=0")
