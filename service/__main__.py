"""The command `minigpt`: the only place that chooses implementations and wires them. Only a worker imports torch."""

import asyncio
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import uvloop

from service.bench.cli import app as bench_app
from service.config import (
    EngineSettings,
    GatewaySettings,
    LogFormat,
    LogLevel,
    QueueSettings,
    WorkerSettings,
    parse_settings,
)
from service.engine.kernels.library import built_levels
from service.errors import SettingError, Unavailable
from service.logs import configure_logging
from service.queue.link import LinkQueue, queue_url, socket_path
from service.queue.local import LocalQueue
from service.serving import serve_models
from service.worker import EXIT_FAILED, SPIN_COUNT, Worker, run_until_stopped
from training.__main__ import app as training_app
from training.command_line import run
from training.config import Settings
from training.manifest import read_manifest, resolve_checkpoint

if TYPE_CHECKING:
    from service.engine.engine import Engine

logger = logging.getLogger("service")  # by this name also where it runs as __main__

BUNDLED = Path(__file__).parent / "checkpoints" / "shakespeare"
GATEWAY, QUEUE, ENGINE, WORKER = GatewaySettings(), QueueSettings(), EngineSettings(), WorkerSettings()

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Train a small language model on your own text, and serve it."
)
app.add_typer(training_app)
app.add_typer(bench_app, name="bench", context_settings={"obj": BUNDLED})

DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
DtypeOption = Annotated[
    str, typer.Option(help="auto, fp32, bf16 or int8. auto: int8 with the native kernels, bf16 on a GPU, else fp32.")
]
KernelsOption = Annotated[
    str,
    typer.Option(
        help=f"auto, native or torch. auto: native where it can. Native here: {', '.join(built_levels()) or 'none'}."
    ),
]
NumSeqsOption = Annotated[int, typer.Option(help="Sequences computed at once.")]
StepTokensOption = Annotated[int, typer.Option(help="Tokens computed at once, prefill included.")]
PrefixCachingOption = Annotated[bool, typer.Option(help="Compute the common beginning of prompts once.")]
SpeculationOption = Annotated[bool, typer.Option(help="Guess the next tokens of a lone stream, where it is faster.")]
KvCacheOption = Annotated[int | None, typer.Option(help="MiB for keys and values. Default: as many as are useful.")]
DrainOption = Annotated[float, typer.Option(help="Seconds that running requests still have after SIGTERM.")]
LeaseOption = Annotated[float, typer.Option(help="Seconds without a word after which a worker's requests move on.")]
LogLevelOption = Annotated[LogLevel, typer.Option(help="Least level that is logged.")]
LogFormatOption = Annotated[LogFormat, typer.Option(help="plain: readable lines; json: an object a line.")]


@app.command()
def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]FOLDER", help="Checkpoint to serve; repeatable. Default: the bundled one."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all.")] = GATEWAY.host,
    port: Annotated[int, typer.Option(help="Port to listen on; 0: any free one.")] = GATEWAY.port,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes of each model.")] = 1,
    device: DeviceOption = ENGINE.device,
    dtype: DtypeOption = ENGINE.dtype,
    kernels: KernelsOption = ENGINE.kernels,
    max_num_seqs: NumSeqsOption = ENGINE.max_num_seqs,
    max_step_tokens: StepTokensOption = ENGINE.max_step_tokens,
    prefix_caching: PrefixCachingOption = ENGINE.prefix_caching,
    speculation: SpeculationOption = ENGINE.speculation,
    kv_cache_mb: KvCacheOption = ENGINE.kv_cache_mb,
    max_queue_depth: Annotated[int, typer.Option(help="Sequences that may wait.")] = QUEUE.max_queue_depth,
    max_queue_tokens: Annotated[
        int, typer.Option(help="Tokens, of prompts and to come, that may wait.")
    ] = QUEUE.max_queue_tokens,
    max_body_bytes: Annotated[int, typer.Option(help="Largest body of a request.")] = GATEWAY.max_body_bytes,
    drain_s: DrainOption = GATEWAY.drain_s,
    lease_s: LeaseOption = QUEUE.lease_s,
    log_level: LogLevelOption = "info",
    log_format: LogFormatOption = "plain",
) -> None:
    """Serve checkpoints over HTTP: a gateway, its queue, and worker processes that are kept alive."""
    options = dict(locals())
    configure_logging(log_level, log_format)
    gateway_settings = parse_settings(GatewaySettings, options)
    queue_settings = parse_settings(QueueSettings, options)
    worker_options = [
        *(line for kind in (WorkerSettings, EngineSettings) for line in _command_line(parse_settings(kind, options))),
        *(f"--log-level={log_level}", f"--log-format={log_format}"),
    ]
    folders = _find_folders(model or [str(BUNDLED)])
    models = {name: (folder, read_manifest(folder)) for name, folder in folders.items()}
    with tempfile.TemporaryDirectory(prefix="minigpt-") as private, _listen(gateway_settings) as listener:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = private  # before anything imports prometheus_client, which reads it
        link = Path(private) / "link"
        commands = {
            f"{name}-{number}": [*_worker_command(link, name, folder), *worker_options]
            for name, folder in folders.items()
            for number in range(workers)
        }
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            status = runner.run(
                serve_models(models, gateway_settings, LocalQueue(queue_settings), listener, link, commands)
            )
    raise typer.Exit(status)


@app.command()
def worker(
    queue: Annotated[str, typer.Option(help="Where work comes from: local:///path/to/socket.")],
    model: Annotated[str, typer.Option(metavar="[NAME=]FOLDER", help="Checkpoint to compute with.")],
    device: DeviceOption = ENGINE.device,
    dtype: DtypeOption = ENGINE.dtype,
    kernels: KernelsOption = ENGINE.kernels,
    max_num_seqs: NumSeqsOption = ENGINE.max_num_seqs,
    max_step_tokens: StepTokensOption = ENGINE.max_step_tokens,
    prefix_caching: PrefixCachingOption = ENGINE.prefix_caching,
    speculation: SpeculationOption = ENGINE.speculation,
    kv_cache_mb: KvCacheOption = ENGINE.kv_cache_mb,
    drain_s: DrainOption = WORKER.drain_s,
    lease_s: LeaseOption = WORKER.lease_s,
    log_level: LogLevelOption = "info",
    log_format: LogFormatOption = "plain",
) -> None:
    """Compute for the gateway behind --queue; `serve` starts these by itself."""
    options = dict(locals())
    configure_logging(log_level, log_format)
    worker_settings, engine_settings = parse_settings(WorkerSettings, options), parse_settings(EngineSettings, options)
    [(name, folder)] = _find_folders([model]).items()
    path = socket_path(queue)
    os.environ.setdefault(*SPIN_COUNT)
    from service.engine.loading import load_engine

    engine = load_engine(folder, engine_settings)
    logger.info("%s: %s", name, engine.info)
    models = {name: read_manifest(folder, verify=False).revision}
    try:
        link = LinkQueue(path, worker_settings.lease_s)
    except Unavailable as error:
        sys.stderr.write(f"error: {error}\n")
        raise typer.Exit(EXIT_FAILED) from error
    working = Worker(link, engine, models, worker_settings, on_step=_step_observer(name, engine))
    raise typer.Exit(run_until_stopped(working))


def main() -> None:
    """Run the command that was typed."""
    run(app)


def _find_folders(options: Sequence[str]) -> dict[str, Path]:
    """Read `name=folder` or `folder`, which is its own name; return name → checkpoint folder."""
    folders: dict[str, Path] = {}
    for option in options:
        name, equals, folder = option.partition("=")
        if not equals:
            name, folder = Path(option).resolve().name, option
        if not name or name in folders:
            raise SettingError(f"--model {option}: give each model a name of its own, NAME=FOLDER")
        folders[name] = resolve_checkpoint(Path(folder))
    return folders


def _listen(settings: GatewaySettings) -> socket.socket:
    """Take the port before anything else is started."""
    where = f"{settings.host}:{settings.port}"
    try:
        family, *_, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=settings.max_connections)
    except OSError as error:
        remedy = "stop the program that has it, or choose another --port"
        raise SettingError(f"cannot listen on {where}: {error.strerror}; {remedy}") from error


def _command_line(settings: Settings) -> list[str]:
    """Return the options that say `settings`, where they differ from the defaults."""
    default = type(settings)()
    pairs = [(field, getattr(settings, field)) for field in settings.__struct_fields__]
    return [_option(field.replace("_", "-"), value) for field, value in pairs if value != getattr(default, field)]


def _option(name: str, value: object) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name}={value}"


def _worker_command(link: Path, name: str, folder: Path) -> list[str]:
    return [sys.executable, "-m", "service", "worker", f"--queue={queue_url(link)}", f"--model={name}={folder}"]


def _step_observer(model: str, engine: "Engine") -> Callable[[float], None]:
    from prometheus_client import CollectorRegistry

    from service.metrics import WorkerMetrics

    metrics = WorkerMetrics(CollectorRegistry(), model)
    info = engine.info
    metrics.describe(device=info.device, kernels=info.kernels, dtype=info.dtype, exact=info.exact)

    def observe(seconds: float) -> None:
        step = engine.last_step
        metrics.step(
            seconds,
            step.batch_size,
            step.kv_cache_usage,
            num_preempted=step.num_preempted,
            num_queried_tokens=step.num_queried_tokens,
            num_found_tokens=step.num_found_tokens,
        )

    return observe


if __name__ == "__main__":
    main()
