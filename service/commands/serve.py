"""The command `minigpt serve`: gateway, queue and workers on one machine, without Redis."""

import asyncio
import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from service.commands.backends import open_key_ring
from service.commands.options import (
    AllowAnyoneOption,
    KeysOption,
    ModelsOption,
    command_line,
    find_folders,
    start_process,
    with_settings,
)
from service.config import EngineSettings, GatewaySettings, LogSettings, QueueSettings, WorkerSettings
from service.queue.local.gateway import LocalQueue
from service.queue.local.wire import queue_url
from service.serving import listen, serve_models
from training.manifest import read_manifest


@with_settings
def serve(
    *,
    model: ModelsOption = None,
    keys: KeysOption = None,
    allow_anyone: AllowAnyoneOption = False,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes of each model.")] = 1,
    settings: GatewaySettings,
    engine_settings: EngineSettings,
    queue_settings: QueueSettings,
    worker_settings: WorkerSettings,
    logging: LogSettings,
) -> None:
    """Serve checkpoints over HTTP: a gateway, its queue, and worker processes that are kept alive."""
    start_process(logging)
    worker_options = [line for table in (worker_settings, engine_settings, logging) for line in command_line(table)]
    ring = open_key_ring(keys)
    folders = find_folders(model)
    models = {name: (folder, read_manifest(folder)) for name, folder in folders.items()}
    listener = listen(settings, reachable=allow_anyone or ring is not None)
    with tempfile.TemporaryDirectory(prefix="minigpt-") as private, listener:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = private  # before anything imports prometheus_client, which reads it
        socket = Path(private) / "queue"
        commands = {
            f"{name}-{number}": [*_worker_command(socket, name, folder), *worker_options]
            for name, folder in folders.items()
            for number in range(workers)
        }
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            status = runner.run(
                serve_models(models, settings, LocalQueue(queue_settings), ring, listener, socket, commands)
            )
    raise typer.Exit(status)


def _worker_command(socket: Path, name: str, folder: Path) -> list[str]:
    return [sys.executable, "-m", "service", "worker", f"--queue={queue_url(socket)}", f"--model={name}={folder}"]
