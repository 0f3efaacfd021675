"""Commands as they are typed, and a fleet for them to look into."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.fleet.fleet import Fleet
from tests.fleet.waiting import PATIENCE_S

Minigpt = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="session")
def minigpt() -> Minigpt:
    """Run a command to its end; `env` is added to the environment."""

    def run(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "service", *arguments]
        environment = os.environ | (env or {})
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False, env=environment)

    return run


@pytest.fixture(scope="session")
def refused(minigpt) -> Callable[..., str]:
    """Run a command that must be refused: exit status 2 and one line, which is returned."""

    def run(*arguments: str, env: dict[str, str] | None = None) -> str:
        done = minigpt(*arguments, env=env)
        assert done.returncode == 2, done.stderr
        [line] = done.stderr.splitlines()
        assert line.startswith("error: ")
        return line

    return run


@pytest.fixture(scope="module")
def fleet(tmp_path_factory, checkpoint) -> Iterator[Fleet]:
    """A gateway and a worker around a Redis."""
    folder = tmp_path_factory.mktemp("fleet")
    with Fleet(folder, checkpoint, num_gateways=1, num_workers=1, is_proxied=False) as fleet:
        yield fleet
