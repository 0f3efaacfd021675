"""A `minigpt serve` of its own for the time of a benchmark."""

import contextlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from service.config import EngineSettings
from service.errors import SettingError

PATIENCE_S = 30.0
"""Seconds that the server has to end."""


@contextlib.contextmanager
def start_server(checkpoint: Path, settings: EngineSettings) -> Iterator[str]:
    """Serve `checkpoint` on a free port and give the server's URL; it ends with the context.

    Args:
        checkpoint: Folder of the model.
        settings: Of the worker's engine.

    Raises:
        SettingError: it does not start.
    """
    command = [sys.executable, "-m", "service", "serve", f"--model=bench={checkpoint}", "--port=0"]
    fields = ("device", "dtype", "max_num_seqs", "max_step_tokens")
    options = [f"--{field.replace('_', '-')}={getattr(settings, field)}" for field in fields]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [*command, *options, "--log-level=warning"], stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            yield _read_url(process, log)
        finally:
            _end(process)


def _read_url(process: subprocess.Popen[str], log: IO[str]) -> str:
    """Wait for the line in which the server says that it serves."""
    greeting = process.stdout.readline() if process.stdout else ""
    url = re.search(r"http://\S+", greeting)
    if url is None:
        process.wait()
        log.seek(0)
        words = log.read().strip().splitlines() or ["it said nothing"]
        raise SettingError(f"the server does not start: {words[-1].removeprefix('error: ')}")
    return url[0]


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
