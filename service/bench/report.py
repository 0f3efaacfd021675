"""What a benchmark says: the machine, the command that says it again, one table, and the raw figures as JSON."""

import os
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from service.errors import SettingError

PIPE_WIDTH = 120
"""Columns of a table that goes into a file or a pipe."""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where figures come from; without it they say nothing."""

    cpu: str
    cores: int
    """That this process may use."""
    load: float
    """Processes that ran or waited in the minute before the start; near 0 on a quiet machine."""
    python: str
    torch: str
    date: str
    """UTC, at the start."""

    def __str__(self) -> str:
        return (
            f"{self.cpu}, {self.cores} cores, load {self.load:.2f} at the start · torch {self.torch}, "
            f"Python {self.python} · {self.date}"
        )


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was measured."""

    command: str
    machine: Machine
    settings: dict[str, Any]
    """The options, and what came of those that choose by themselves."""
    results: Sequence[Any]
    """One for each load: `EngineResult`, `HttpResult` or `TrainResult`."""


def read_machine() -> Machine:
    """Describe this machine, now."""
    return Machine(
        cpu=_cpu_model(),
        cores=len(usable_cpus()),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
        python=platform.python_version(),
        torch=version("torch"),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def usable_cpus() -> list[int]:
    """Return the numbers of the CPUs that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def command_line() -> str:
    """Return the command that runs, ready to be pasted."""
    return shlex.join(["minigpt", *sys.argv[1:]])


def show(report: Report, table: Table, notes: Sequence[str] = ()) -> None:
    """Print a report for people."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPE_WIDTH)
    for line in (f"$ {report.command}", str(report.machine)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(table)
    for note in notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)


def write_json(report: Report, path: Path) -> None:
    """Write the raw figures.

    Raises:
        SettingError: no such folder, no permission, no room.
    """
    aside = path.with_name(f".{path.name}.new")
    try:
        aside.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
        aside.replace(path)
    except OSError as error:
        raise SettingError(
            f"--json {path}: cannot write: {error.strerror}; name a file in a folder of yours"
        ) from error


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
