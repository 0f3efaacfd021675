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
    ENGINE,
    GATEWAY,
    QUEUE,
    AllowAnyoneOption,
    BodyBytesOption,
    DeviceOption,
    DrainOption,
    DtypeOption,
    HostOption,
    KeepEndedOption,
    KernelsOption,
    KeysOption,
    KvCacheOption,
    LeaseOption,
    LogFormatOption,
    LogLevelOption,
    ModelsOption,
    NumSeqsOption,
    PortOption,
    PrefixCachingOption,
    QueueDepthOption,
    QueueTokensOption,
    SpeculationOption,
    StepTokensOption,
    TenantDepthOption,
    find_folders,
    start_process,
)
from service.config import EngineSettings, GatewaySettings, QueueSettings, WorkerSettings, parse_settings
from service.queue.local.gateway import LocalQueue
from service.queue.local.wire import queue_url
from service.serving import listen, serve_models
from training.manifest import read_manifest
from training.settings import Settings


def serve(
    model: ModelsOption = None,
    host: HostOption = GATEWAY.host,
    port: PortOption = GATEWAY.port,
    keys: KeysOption = None,
    allow_anyone: AllowAnyoneOption = False,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes of each model.")] = 1,
    device: DeviceOption = ENGINE.device,
    dtype: DtypeOption = ENGINE.dtype,
    kernels: KernelsOption = ENGINE.kernels,
    max_num_seqs: NumSeqsOption = ENGINE.max_num_seqs,
    max_step_tokens: StepTokensOption = ENGINE.max_step_tokens,
    prefix_caching: PrefixCachingOption = ENGINE.prefix_caching,
    speculation: SpeculationOption = ENGINE.speculation,
    kv_cache_mb: KvCacheOption = ENGINE.kv_cache_mb,
    max_queue_depth: QueueDepthOption = QUEUE.max_queue_depth,
    max_queue_tokens: QueueTokensOption = QUEUE.max_queue_tokens,
    max_tenant_depth: TenantDepthOption = QUEUE.max_tenant_depth,
    keep_ended_s: KeepEndedOption = QUEUE.keep_ended_s,
    max_body_bytes: BodyBytesOption = GATEWAY.max_body_bytes,
    drain_s: DrainOption = GATEWAY.drain_s,
    lease_s: LeaseOption = QUEUE.lease_s,
    log_level: LogLevelOption = "info",
    log_format: LogFormatOption = "plain",
) -> None:
    """Serve checkpoints over HTTP: a gateway, its queue, and worker processes that are kept alive."""
    options = dict(locals())
    start_process(log_level, log_format)
    settings, queue_settings = parse_settings(GatewaySettings, options), parse_settings(QueueSettings, options)
    worker_options = [
        *(line for kind in (WorkerSettings, EngineSettings) for line in command_line(parse_settings(kind, options))),
        *(f"--log-level={log_level}", f"--log-format={log_format}"),
    ]
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


def command_line(settings: Settings) -> list[str]:
    """Return the options that say `settings`, where they differ from the defaults."""
    default = type(settings)()
    pairs = [(field, getattr(settings, field)) for field in settings.__struct_fields__]
    return [_option(field.replace("_", "-"), value) for field, value in pairs if value != getattr(default, field)]


def _option(name: str, value: object) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name}={value}"


def _worker_command(socket: Path, name: str, folder: Path) -> list[str]:
    return [sys.executable, "-m", "service", "worker", f"--queue={queue_url(socket)}", f"--model={name}={folder}"]
