"""The command `minigpt gateway`: the HTTP side of a fleet, over a queue in Redis."""

import asyncio
import socket

import typer
import uvloop

from service.commands.backends import open_gateway_queue, open_key_ring
from service.commands.options import (
    GATEWAY,
    QUEUE,
    AllowAnyoneOption,
    BodyBytesOption,
    DrainOption,
    HostOption,
    KeepEndedOption,
    KeysOption,
    LogFormatOption,
    LogLevelOption,
    ModelsOption,
    PortOption,
    QueueDepthOption,
    QueueOption,
    QueueTokensOption,
    TenantDepthOption,
    WaitForWorkersOption,
    find_folders,
    start_process,
)
from service.config import GatewaySettings, QueueSettings, parse_settings
from service.gateway.key_ring import KeyRing
from service.serving import Models, listen, serve_gateway
from training.manifest import read_manifest


def gateway(
    queue: QueueOption,
    model: ModelsOption = None,
    host: HostOption = GATEWAY.host,
    port: PortOption = GATEWAY.port,
    keys: KeysOption = None,
    allow_anyone: AllowAnyoneOption = False,
    wait_for_workers: WaitForWorkersOption = GATEWAY.wait_for_workers,
    max_queue_depth: QueueDepthOption = QUEUE.max_queue_depth,
    max_queue_tokens: QueueTokensOption = QUEUE.max_queue_tokens,
    max_tenant_depth: TenantDepthOption = QUEUE.max_tenant_depth,
    keep_ended_s: KeepEndedOption = QUEUE.keep_ended_s,
    max_body_bytes: BodyBytesOption = GATEWAY.max_body_bytes,
    drain_s: DrainOption = GATEWAY.drain_s,
    log_level: LogLevelOption = "info",
    log_format: LogFormatOption = "plain",
) -> None:
    """Answer HTTP for the workers behind --queue; any number of gateways may."""
    options = dict(locals())
    start_process(log_level, log_format)
    settings, queue_settings = parse_settings(GatewaySettings, options), parse_settings(QueueSettings, options)
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
