import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from service.bench.workload import Workload, open_workload
from service.config import EngineSettings

TINY = ("--shape=2x32", "--vocab=64", "--prompt-tokens=5", "--max-tokens=4", "--rounds=2", "--threads=1")


@pytest.fixture
def call_bench(tmp_path) -> Callable[..., subprocess.CompletedProcess]:
    """Run `minigpt bench …` in a process of its own."""

    def call(*options: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "service", "bench", *options],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"MINIGPT_CACHE": str(tmp_path), "OMP_NUM_THREADS": "2"},
        )

    return call


@pytest.fixture
def run_bench(call_bench, tmp_path) -> Callable[..., tuple[str, dict]]:
    """Run `minigpt bench …`; return what it prints and its JSON."""

    def run(*options: str) -> tuple[str, dict]:
        raw = tmp_path / "raw.json"
        done = call_bench(*options, f"--json={raw}")
        assert done.returncode == 0, done.stderr
        return done.stdout, json.loads(raw.read_bytes())

    return run


@pytest.fixture
def tiny() -> tuple[str, ...]:
    """Options of a model and a load that take no time."""
    return TINY


@pytest.fixture(scope="session")
def workload() -> Iterator[Workload]:
    with open_workload("2x32", 64, prompt_tokens=7, max_tokens=20) as opened:
        yield opened


@pytest.fixture
def settings() -> EngineSettings:
    return EngineSettings(device="cpu", dtype="fp32", page_size=4)
