"""The supervisor: what dies is started again, what is refused ends everything, what is stopped is gone."""

import asyncio
import logging
import os
import sys
from pathlib import Path

from service.worker.supervisor import FIRST_DELAY_S, Supervisor
from service.worker.worker import EXIT_FAILED, EXIT_REFUSED
from tests.fleet.waiting import PATIENCE_S, become

SLEEP = "import time; time.sleep(1000)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); open({file!r}, 'w'); time.sleep(1000)"
NOTE = "open({file!r}, 'a').write('x'); raise SystemExit({status})"


def python(code: str, **values: object) -> list[str]:
    return [sys.executable, "-c", code.format(**values)]


async def wait_for_bytes(file: Path, size: int) -> None:
    await become(lambda: file.exists() and file.stat().st_size >= size, f"{file.name} has {size} bytes")


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_what_dies_is_started_again_and_told(tmp_path, caplog):
    pids = []
    file = tmp_path / "starts"
    command = python(NOTE, file=str(file), status=1)
    supervisor = Supervisor({"tiny-0": command}, patience_s=PATIENCE_S, on_exit=pids.append, clock=lambda: 0.0)
    with caplog.at_level(logging.WARNING):
        running = asyncio.create_task(supervisor.run())
        await wait_for_bytes(file, 2)
        supervisor.stop()
        assert await running == 0
    assert len(set(pids)) >= 2
    assert f"tiny-0 ended with status 1 after 0 s: next start in {FIRST_DELAY_S:.1f} s" in caplog.messages


async def test_one_that_is_refused_ends_all(tmp_path):
    pids = []
    commands = {"good": python(SLEEP), "bad": python(NOTE, file=str(tmp_path / "x"), status=EXIT_REFUSED)}
    assert await Supervisor(commands, patience_s=PATIENCE_S, on_exit=pids.append).run() == EXIT_REFUSED
    assert len(pids) == 2
    assert not any(is_alive(pid) for pid in pids)
    assert (tmp_path / "x").read_text() == "x"


async def test_one_that_is_deaf_to_sigterm_is_killed(tmp_path):
    pids = []
    file = tmp_path / "ready"
    supervisor = Supervisor({"deaf": python(DEAF, file=str(file))}, patience_s=0.05, on_exit=pids.append)
    running = asyncio.create_task(supervisor.run())
    await wait_for_bytes(file, 0)
    supervisor.stop()
    assert await running == 0
    assert not is_alive(pids[0])


async def test_kill_ends_one_that_is_deaf_without_patience(tmp_path):
    pids = []
    file = tmp_path / "ready"
    supervisor = Supervisor({"deaf": python(DEAF, file=str(file))}, patience_s=1e6, on_exit=pids.append)
    running = asyncio.create_task(supervisor.run())
    await wait_for_bytes(file, 0)
    supervisor.stop()
    await asyncio.sleep(0)
    supervisor.kill()
    assert await running == EXIT_FAILED
    assert not is_alive(pids[0])


async def test_stop_before_the_first_start_ends_as_well():
    supervisor = Supervisor({"tiny-0": python(SLEEP)}, patience_s=PATIENCE_S)
    supervisor.stop()
    assert await supervisor.run() == 0
