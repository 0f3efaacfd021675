"""A `minigpt serve`, or a fleet of one gateway and one worker, for the time of a benchmark."""

import contextlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import IO

import httpx

from service.config import EngineSettings
from service.errors import SettingError

PATIENCE_S = 30.0
"""Seconds that the server has to end."""
POLL_S = 0.1


@contextlib.contextmanager
def start_server(checkpoint: Path, settings: EngineSettings) -> Iterator[str]:
    """Serve `checkpoint` on a free port and give the server's URL; it ends with the context.

    Args:
        checkpoint: Folder of the model.
        settings: Of the worker's engine.

    Raises:
        SettingError: it does not start.
    """
    with _run("serve", f"--model=bench={checkpoint}", "--port=0", *_engine_options(settings)) as (server, log):
        yield _read_url(server, log)


@contextlib.contextmanager
def start_fleet(checkpoint: Path, settings: EngineSettings, queue: str) -> Iterator[str]:
    """Do the same with a gateway and a worker that meet at `queue`, a Redis URL.

    Raises:
        SettingError: one of them does not start.
    """
    where = f"--queue={queue}", f"--model=bench={checkpoint}"
    with (
        _run("gateway", *where, "--port=0") as (gateway, log),
        _run("worker", *where, *_engine_options(settings)) as (worker, worker_log),
    ):
        url = _read_url(gateway, log)
        while httpx.get(f"{url}/readyz", trust_env=False).status_code != HTTPStatus.OK:
            if worker.poll() is not None:
                raise SettingError(f"the worker does not start: {_last_words(worker_log)}")
            time.sleep(POLL_S)
        yield url


def _engine_options(settings: EngineSettings) -> list[str]:
    fields = ("device", "dtype", "max_num_seqs", "max_step_tokens")
    return [f"--{field.replace('_', '-')}={getattr(settings, field)}" for field in fields]


@contextlib.contextmanager
def _run(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """Run a command of ours; give the process and its log."""
    command = [sys.executable, "-m", "service", *arguments, "--log-level=warning"]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            yield process, log
        finally:
            _end(process)


def _read_url(process: subprocess.Popen[str], log: IO[str]) -> str:
    """Wait for the line in which the server says where it is."""
    greeting = process.stdout.readline() if process.stdout else ""
    url = re.search(r"http://\S+", greeting)
    if url is None:
        process.wait()
        raise SettingError(f"the server does not start: {_last_words(log)}")
    return url[0]


def _last_words(log: IO[str]) -> str:
    log.seek(0)
    words = log.read().strip().splitlines() or ["it said nothing"]
    return words[-1].removeprefix("error: ")


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
