"""The command line: every command is there, a mistake is one line."""

import subprocess
import sys


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
