"""The command line: every command is there, a mistake is one line, and nothing heavy is loaded before it is needed."""

import subprocess
import sys

import pytest


def run_minigpt(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "service", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def test_one_command_trains_and_serves():
    told = run_minigpt("--help").stdout
    for command in ("train", "evaluate", "sample", "serve", "worker"):
        assert command in told


@pytest.mark.parametrize("module", ["service.__main__", "service.gateway.app", "service.queue.link"])
def test_torch_is_not_loaded_where_it_is_not_needed(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=100, check=False).returncode == 0


def test_a_worker_refuses_an_address_that_is_none(tmp_path):
    done = run_minigpt("worker", "--queue=redis://here", f"--model={tmp_path}")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
