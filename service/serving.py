"""What `minigpt gateway` runs, and `minigpt serve` with a queue in this process and workers that are kept alive."""

import asyncio
import ipaddress
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.config import GatewaySettings
from service.errors import SettingError
from service.gateway.key_ring import KeyRing
from service.queue.base import GatewayQueue
from service.queue.local.gateway import LocalQueue
from service.queue.local.server import serve_workers
from service.worker.supervisor import Supervisor
from service.worker.worker import EXIT_FAILED
from training.manifest import TOKENIZER, Manifest

if TYPE_CHECKING:
    from service.gateway.server import GatewayServer

KILL_AFTER_S = 5.0
"""Seconds beyond its drain that a worker has to end."""

Models = Mapping[str, tuple[Path, Manifest]]
"""Name → checkpoint folder, and what it says of itself."""


def listen(settings: GatewaySettings, *, reachable: bool) -> socket.socket:
    """Take the port.

    Args:
        settings: Host and port.
        reachable: Whether other machines may reach it.

    Raises:
        SettingError: they may not, but could; the port is in use; no such host.
    """
    try:
        family, *_, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        if not reachable and not ipaddress.ip_address(address[0]).is_loopback:
            remedy = "give --keys, made by 'minigpt keys add', or --allow-anyone"
            raise SettingError(f"host = '{settings.host}': whoever reaches this machine could use it; {remedy}")
        return socket.create_server(address[:2], family=family, backlog=settings.max_connections)
    except OSError as error:
        where = f"{settings.host}:{settings.port}"
        remedy = "stop the program that has it, or choose another --port"
        raise SettingError(f"cannot listen on {where}: {error.strerror}; {remedy}") from error


async def serve_gateway(
    models: Models,
    settings: GatewaySettings,
    queue: GatewayQueue,
    keys: KeyRing | None,
    listener: socket.socket,
) -> int:
    """Serve until a signal, which drains; a second one cuts. Return the exit status.

    Args:
        models: What is served.
        settings: Of the gateway.
        queue: Between gateway and workers, which come and go by themselves.
        keys: Who may ask; `None`: anyone.
        listener: Where clients come in.
    """
    hurried = asyncio.Event()
    server = await asyncio.to_thread(_make_server, models, settings, queue, keys, keeps_cut=True)
    _on_signals(partial(_end, server, hurried.set))
    _say(f"minigpt gateway on {_url(listener)}\n")
    await _serve(server, listener, queue, keys)
    return EXIT_FAILED if hurried.is_set() else 0


async def serve_models(
    models: Models,
    settings: GatewaySettings,
    queue: LocalQueue,
    keys: KeyRing | None,
    listener: socket.socket,
    socket_path: Path,
    commands: Mapping[str, Sequence[str]],
) -> int:
    """Serve until a signal, which drains, or until a worker is refused; return the exit status.

    Args:
        models: What is served.
        settings: Of the gateway.
        queue: Between gateway and workers.
        keys: Who may ask; `None`: anyone.
        listener: Where clients come in.
        socket_path: Path of the socket where workers come in.
        commands: A worker's name → its command line.
    """
    supervisor = Supervisor(commands, patience_s=settings.drain_s + KILL_AFTER_S, on_exit=_forget)
    _on_signals(supervisor.stop)
    async with await serve_workers(queue, socket_path):
        supervising = asyncio.create_task(supervisor.run())
        try:
            # The workers start meanwhile.
            server = await asyncio.to_thread(_make_server, models, settings, queue, keys, keeps_cut=False)
            _on_signals(partial(_end, server, supervisor.kill))
            supervising.add_done_callback(lambda _: server.drain())
            await _serve(server, listener, queue, keys, _announce(queue, models, listener))
        finally:
            supervisor.stop()
            status = await supervising
    return status


def _make_server(
    models: Models, settings: GatewaySettings, queue: GatewayQueue, keys: KeyRing | None, *, keeps_cut: bool
) -> "GatewayServer":
    """Make the gateway; what it imports takes as long as everything else of a start."""
    from service.gateway.app import create_app
    from service.gateway.models import ServedModel
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
    return make_server(create_app(queue, served, settings, keys=keys), settings, keeps_cut=keeps_cut)


async def _serve(
    server: "GatewayServer",
    listener: socket.socket,
    queue: GatewayQueue,
    keys: KeyRing | None,
    *beside: Coroutine[Any, Any, None],
) -> None:
    """Serve until `server` has drained; what runs beside ends with it."""
    freshening = [keys.keep_fresh()] if keys is not None else []
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work) for work in (queue.keep_reaping(), *freshening, *beside)]
        await server.serve([listener])
        for task in tasks:
            task.cancel()


def _on_signals(do: Callable[[], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, do)


def _end(server: "GatewayServer", hurry: Callable[[], None]) -> None:
    if server.should_exit:  # the second signal: nobody wants to wait
        server.cut()
        hurry()
    server.drain()


async def _announce(queue: LocalQueue, models: Models, listener: socket.socket) -> None:
    """Print where the server is, once every model has a worker."""
    needed = {manifest.revision for _, manifest in models.values()}
    while not needed <= (await queue.stats()).revisions:
        await asyncio.sleep(0.02)
    url, names = _url(listener), ", ".join(models)
    body = '{"prompt": "ROMEO:", "max_tokens": 200, "stream": true}'
    _say(f"minigpt serves {names} on {url}\n  try it: curl -N {url}/generate -d '{body}'\n")


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _forget(pid: int) -> None:
    from service.metrics import forget_process

    forget_process(pid)
