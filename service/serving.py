"""What `minigpt serve` runs: a gateway and its queue in this process, and worker processes that are kept alive."""

import asyncio
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from service.config import GatewaySettings
from service.queue.link import serve_link
from service.queue.local import LocalQueue
from service.supervisor import Supervisor
from training.manifest import TOKENIZER, Manifest

if TYPE_CHECKING:
    from service.gateway.server import GatewayServer

KILL_AFTER_S = 5.0
"""Seconds beyond its drain that a worker has to end."""

Models = Mapping[str, tuple[Path, Manifest]]
"""Name → checkpoint folder, and what it says of itself."""


async def serve_models(
    models: Models,
    settings: GatewaySettings,
    queue: LocalQueue,
    listener: socket.socket,
    link: Path,
    commands: Mapping[str, Sequence[str]],
) -> int:
    """Serve until a signal, which drains, or until a worker is refused; return the exit status.

    Args:
        models: What is served.
        settings: Of the gateway.
        queue: Between gateway and workers.
        listener: Where clients come in.
        link: Path of the socket where workers come in.
        commands: A worker's name → its command line.
    """
    supervisor = Supervisor(commands, patience_s=settings.drain_s + KILL_AFTER_S, on_exit=_forget)
    _on_signals(supervisor.stop)
    async with await serve_link(queue, link):
        supervising = asyncio.create_task(supervisor.run())
        try:
            server = await asyncio.to_thread(_make_server, models, settings, queue)  # the workers start meanwhile
            _on_signals(partial(_end, server, supervisor))
            async with asyncio.TaskGroup() as group:
                beside = [
                    group.create_task(queue.keep_reaping()),
                    group.create_task(_announce(queue, models, listener)),
                ]
                serving = group.create_task(server.serve([listener]))
                await asyncio.wait({supervising, serving}, return_when=asyncio.FIRST_COMPLETED)
                server.drain()
                await serving
                for task in beside:
                    task.cancel()
        finally:
            supervisor.stop()
            status = await supervising
    return status


def _make_server(models: Models, settings: GatewaySettings, queue: LocalQueue) -> "GatewayServer":
    """Make the gateway; what it imports takes as long as everything else of a start."""
    from service.gateway.admission import ServedModel
    from service.gateway.app import create_app
    from service.gateway.server import make_server
    from training.tokenizers.loading import load_tokenizer

    served = [
        ServedModel(
            name=name,
            revision=manifest.revision,
            tokenizer=load_tokenizer(folder / TOKENIZER),
            context_length=manifest.context_length,
            vocab_size=manifest.vocab_size,
        )
        for name, (folder, manifest) in models.items()
    ]
    return make_server(create_app(queue, served, settings), settings)


def _on_signals(do: Callable[[], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, do)


def _end(server: "GatewayServer", supervisor: Supervisor) -> None:
    if server.should_exit:  # the second signal: nobody wants to wait
        server.cut()
        supervisor.kill()
    server.drain()


async def _announce(queue: LocalQueue, models: Models, listener: socket.socket) -> None:
    """Print where the server is, once every model has a worker."""
    needed = {manifest.revision for _, manifest in models.values()}
    while not needed <= (await queue.stats()).revisions:
        await asyncio.sleep(0.02)
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    names = ", ".join(models)
    body = '{"prompt": "ROMEO:", "max_tokens": 200, "stream": true}'
    sys.stdout.write(f"minigpt serves {names} on {url}\n  try it: curl -N {url}/generate -d '{body}'\n")
    sys.stdout.flush()


def _forget(pid: int) -> None:
    from service.metrics import forget_process

    forget_process(pid)
