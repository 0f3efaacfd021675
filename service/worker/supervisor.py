"""Keeps worker processes alive: starts them, starts them again when they die, and ends them with the server."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence

from service.worker.worker import EXIT_FAILED, EXIT_REFUSED

FIRST_DELAY_S = 0.5
MAX_DELAY_S = 30.0
STEADY_S = 60.0
"""Seconds of life after which the next death waits only `FIRST_DELAY_S` again."""

logger = logging.getLogger(__name__)


class Supervisor:
    """Runs one process for each command.

    Args:
        commands: A worker's name → its command line.
        patience_s: Seconds that a worker has between SIGTERM and SIGKILL.
        on_exit: Told the process id of each worker that is no more.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        commands: Mapping[str, Sequence[str]],
        *,
        patience_s: float,
        on_exit: Callable[[int], None] = lambda _pid: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._commands = commands
        self._patience_s = patience_s
        self._on_exit = on_exit
        self._clock = clock
        self._stopping = asyncio.Event()
        self._killing = asyncio.Event()

    async def run(self) -> int:
        """Keep all alive until `stop`; return 0, `EXIT_FAILED` after `kill`, `EXIT_REFUSED` if one was at its start."""
        keepers = [asyncio.create_task(self._keep(name, command)) for name, command in self._commands.items()]
        await asyncio.wait(keepers, return_when=asyncio.FIRST_COMPLETED)
        self.stop()
        statuses = await asyncio.gather(*keepers)
        return EXIT_FAILED if self._killing.is_set() else max(statuses)

    def stop(self) -> None:
        """End all: SIGTERM, and SIGKILL for those that do not follow it."""
        self._stopping.set()

    def kill(self) -> None:
        """End all at once: SIGKILL."""
        self._killing.set()
        self.stop()

    async def _keep(self, name: str, command: Sequence[str]) -> int:
        delay_s = FIRST_DELAY_S
        while True:
            began = self._clock()
            status = await self._run_once(name, command)
            if status == EXIT_REFUSED:
                return status
            if self._stopping.is_set():
                return 0
            lived_s = self._clock() - began
            delay_s = FIRST_DELAY_S if lived_s >= STEADY_S else delay_s
            logger.warning("%s %s after %.0f s: next start in %.1f s", name, _describe(status), lived_s, delay_s)
            if await _happens_within(self._stopping, delay_s):
                return 0
            delay_s = min(2 * delay_s, MAX_DELAY_S)

    async def _run_once(self, name: str, command: Sequence[str]) -> int:
        """Run a process to its end, or end it when stopping; return its status, negative for a signal."""
        # In a session of its own: Ctrl-C in a terminal is for the server, which drains before its workers may.
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, start_new_session=True
        )
        ended = asyncio.create_task(process.wait())
        stopping = asyncio.create_task(self._stopping.wait())
        killing = asyncio.create_task(self._killing.wait())
        try:
            await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                process.terminate()
                await asyncio.wait({ended, killing}, timeout=self._patience_s, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                logger.warning("%s has not ended: killed", name)
                process.kill()
            return await ended
        finally:
            stopping.cancel()
            killing.cancel()
            self._on_exit(process.pid)


async def _happens_within(event: asyncio.Event, timeout_s: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), timeout_s)
    except TimeoutError:
        return False
    return True


def _describe(status: int) -> str:
    return f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
