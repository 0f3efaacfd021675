"""The command line: every command is there, a mistake is one line."""

import subprocess
import sys

import typer

from service.__main__ import _command_line, app
from service.config import EngineSettings, parse_settings


def run_minigpt(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "service", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def test_one_command_trains_and_serves():
    told = run_minigpt("--help").stdout
    for command in ("train", "evaluate", "sample", "serve", "worker"):
        assert command in told


def test_a_worker_refuses_an_address_that_is_none(tmp_path):
    done = run_minigpt("worker", "--queue=redis://here", f"--model={tmp_path}")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_what_differs_from_the_defaults_reaches_a_worker():
    assert _command_line(EngineSettings()) == []
    settings = EngineSettings(prefix_caching=False, max_num_seqs=3, kv_cache_mb=7, kernels="torch")
    worker = typer.main.get_command(app).commands["worker"]
    context = worker.make_context("worker", ["--queue=local:///link", "--model=m", *_command_line(settings)])
    assert parse_settings(EngineSettings, context.params) == settings


def test_the_command_line_loads_no_openmp():
    """It reads its settings when it is loaded; a worker makes them after the command line is read."""
    listed = "import service.__main__; print(open('/proc/self/maps').read())"
    maps = subprocess.run([sys.executable, "-c", listed], capture_output=True, text=True, check=True).stdout
    assert "libgomp" not in maps
