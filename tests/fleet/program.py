"""A real process under test: started, signalled, ended for certain, its words kept."""

import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import psutil

from tests.fleet.waiting import wait_until

TAIL_LINES = 15
TAIL_CHARS = 400


class Program:
    """A process that lives no longer than the one that started it, however that one ends.

    Args:
        name: Of its log, `<name>.log`; a program that is started again goes on in it.
        command: What runs.
        folder: Where the log lies.
        env: What its environment has besides this process' own.
    """

    def __init__(self, name: str, command: Sequence[str], folder: Path, env: dict[str, str] | None = None) -> None:
        self.name = name
        self.command = list(command)
        self.log = folder / f"{name}.log"
        self.exits: list[int] = []
        """Exit statuses of its former lives; negative: the signal that ended it."""
        self._env = os.environ | (env or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.RLock()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it, unless it runs."""
        with self._lock:
            if not self.is_running:
                self._log_start = self.log.stat().st_size if self.log.exists() else 0
                self._process = self._spawn()
                guard = ["sh", "-c", f"read -r _ || kill -9 {self.pid}"]
                self._guard = subprocess.Popen(guard, stdin=subprocess.PIPE, start_new_session=True)

    @property
    def is_running(self) -> bool:
        """Whether it has not ended, paused or not; what has ended is noted."""
        with self._lock:
            if self._process is not None and self._process.poll() is not None:
                self.exits.append(self._process.returncode)
                self._process = None
                self._guard.communicate(b"\n")
            return self._process is not None

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None, f"{self.name} does not run:\n{self.tail()}"
        return self._process.pid

    @property
    def usage(self) -> psutil.Process:
        """What it uses."""
        return psutil.Process(self.pid)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self._process is not None, f"{self.name} does not run:\n{self.tail()}"
        self._process.send_signal(number)

    def pause(self) -> None:
        """Stop its clock: SIGSTOP."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on: SIGCONT."""
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once, if it runs: SIGKILL."""
        with self._lock:
            if self.is_running:
                self.signal(signal.SIGKILL)
                self.wait()

    def terminate(self) -> None:
        """Ask it to end: SIGTERM."""
        self.signal(signal.SIGTERM)

    def wait(self, life: int | None = None) -> int:
        """Return the exit status of this life, the present one by default, once it has ended."""
        lives = len(self.exits) if life is None else life
        wait_until(lambda: not self.is_running or len(self.exits) > lives, lambda: f"{self.name} ends\n{self.tail()}")
        return self.exits[lives]

    def words(self) -> str:
        """Return what it has said in this life, or in its last."""
        if not self.log.exists():
            return ""
        return self.log.read_bytes()[self._log_start :].decode(errors="replace")

    def tail(self) -> str:
        """Return the last it said, for a failure's message."""
        lines = self.words().splitlines()[-TAIL_LINES:]
        return "\n".join(f"  {self.name}: {line[:TAIL_CHARS]}" for line in lines)

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._env, start_new_session=True
            )
