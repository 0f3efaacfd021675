"""The command `minigpt gateway`: the HTTP side of a fleet, over a queue in Redis."""

import asyncio
import socket

import typer
import uvloop

from service.commands.backends import open_gateway_queue, open_key_ring
from service.commands.options import (
    AllowAnyoneOption,
    KeysOption,
    ModelsOption,
    QueueOption,
    find_folders,
    start_process,
    with_settings,
)
from service.config import GatewaySettings, LogSettings, QueueSettings
from service.gateway.key_ring import KeyRing
from service.serving import Models, listen, serve_gateway
from training.manifest import read_manifest


@with_settings
def gateway(
    *,
    queue: QueueOption,
    model: ModelsOption = None,
    keys: KeysOption = None,
    allow_anyone: AllowAnyoneOption = False,
    settings: GatewaySettings,
    queue_settings: QueueSettings,
    logging: LogSettings,
) -> None:
    """Answer HTTP for the workers behind --queue; any number of gateways may."""
    start_process(logging)
    ring = open_key_ring(keys, queue)
    models = {name: (folder, read_manifest(folder)) for name, folder in find_folders(model).items()}
    with (
        listen(settings, reachable=allow_anyone or ring is not None) as listener,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        status = runner.run(_serve(models, settings, queue, queue_settings, ring, listener))
    raise typer.Exit(status)


async def _serve(
    models: Models,
    settings: GatewaySettings,
    url: str,
    queue_settings: QueueSettings,
    ring: KeyRing | None,
    listener: socket.socket,
) -> int:
    async with open_gateway_queue(url, queue_settings) as queue:
        return await serve_gateway(models, settings, queue, ring, listener)
