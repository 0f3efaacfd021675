"""The command `minigpt`: the only place that chooses implementations and wires them. Only a worker imports torch."""

import asyncio
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
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
from service.errors import SettingError, Unavailable
from service.logs import configure_logging
from service.queue.link import LinkQueue, queue_url, serve_link, socket_path
from service.queue.local import LocalQueue
from service.supervisor import Supervisor
from service.worker import EXIT_FAILED, Worker, run_until_stopped
from training.__main__ import app as training_app
from training.command_line import run
from training.config import Settings
from training.manifest import TOKENIZER, read_manifest, resolve_checkpoint
from training.tokenizers.loading import load_tokenizer

if TYPE_CHECKING:
    from service.engine.engine import Engine
    from service.gateway.admission import ServedModel

BUNDLED = Path(__file__).parent / "checkpoints" / "shakespeare"
KILL_AFTER_S = 5.0
"""Seconds beyond its drain that a worker has to end."""
GATEWAY, QUEUE, ENGINE, WORKER = GatewaySettings(), QueueSettings(), EngineSettings(), WorkerSettings()

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Train a small language model on your own text, and serve it."
)
app.add_typer(training_app)
app.add_typer(bench_app, name="bench", context_settings={"obj": BUNDLED})

DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
DtypeOption = Annotated[
    str, typer.Option(help="auto, fp32 or bf16. auto: fp32 on a CPU, where a seed then fixes the text; bf16 on a GPU.")
]
KernelsOption = Annotated[str, typer.Option(help="auto, native or torch. auto: the native kernels where they can.")]
NumSeqsOption = Annotated[int, typer.Option(help="Sequences computed at once.")]
StepTokensOption = Annotated[int, typer.Option(help="Tokens computed at once, prefill included.")]
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
    with tempfile.TemporaryDirectory(prefix="minigpt-") as private, _listen(gateway_settings) as listener:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = private  # before anything imports prometheus_client, which reads it
        models = [_read_model(name, folder) for name, folder in folders.items()]
        link = Path(private) / "link"
        commands = {
            f"{name}-{number}": [*_worker_command(link, name, folder), *worker_options]
            for name, folder in folders.items()
            for number in range(workers)
        }
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            status = runner.run(_serve(models, gateway_settings, LocalQueue(queue_settings), listener, link, commands))
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
    # Threads that spin while they wait starve whoever shares their cores: on a busy machine steps took 50 times longer.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported
    from service.engine.loading import load_engine

    engine = load_engine(folder, engine_settings)
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


async def _serve(
    models: Sequence["ServedModel"],
    settings: GatewaySettings,
    queue: LocalQueue,
    listener: socket.socket,
    link: Path,
    commands: Mapping[str, Sequence[str]],
) -> int:
    """Serve until a signal, which drains, or until a worker is refused; return the exit status."""
    from service.gateway.app import create_app
    from service.gateway.server import make_server
    from service.metrics import forget_process

    server = make_server(create_app(queue, models, settings), settings)
    supervisor = Supervisor(commands, patience_s=settings.drain_s + KILL_AFTER_S, on_exit=forget_process)

    def end() -> None:
        if server.should_exit:  # the second signal: nobody wants to wait
            server.cut()
            supervisor.kill()
        server.drain()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end)
    async with asyncio.TaskGroup() as group, await serve_link(queue, link):
        beside = [group.create_task(queue.keep_reaping()), group.create_task(_announce(queue, models, listener))]
        supervising = group.create_task(supervisor.run())
        serving = group.create_task(server.serve([listener]))
        await asyncio.wait({supervising, serving}, return_when=asyncio.FIRST_COMPLETED)
        server.drain()
        await serving
        supervisor.stop()
        status = await supervising
        for task in beside:
            task.cancel()
    return status


async def _announce(queue: LocalQueue, models: Sequence["ServedModel"], listener: socket.socket) -> None:
    """Print where the server is, once every model has a worker."""
    needed = {model.revision for model in models}
    while not needed <= (await queue.stats()).revisions:
        await asyncio.sleep(0.05)
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    names = ", ".join(model.name for model in models)
    body = '{"prompt": "ROMEO:", "max_tokens": 200, "stream": true}'
    sys.stdout.write(f"minigpt serves {names} on {url}\n  try it: curl -N {url}/generate -d '{body}'\n")
    sys.stdout.flush()


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


def _read_model(name: str, folder: Path) -> "ServedModel":
    from service.gateway.admission import ServedModel

    manifest = read_manifest(folder)
    return ServedModel(
        name=name,
        revision=manifest.revision,
        tokenizer=load_tokenizer(folder / TOKENIZER),
        context_length=manifest.context_length,
        vocab_size=manifest.vocab_size,
    )


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
    return [f"--{field.replace('_', '-')}={value}" for field, value in pairs if value != getattr(default, field)]


def _worker_command(link: Path, name: str, folder: Path) -> list[str]:
    return [sys.executable, "-m", "service", "worker", f"--queue={queue_url(link)}", f"--model={name}={folder}"]


def _step_observer(model: str, engine: "Engine") -> Callable[[float], None]:
    from prometheus_client import CollectorRegistry

    from service.metrics import WorkerMetrics

    metrics = WorkerMetrics(CollectorRegistry(), model)

    def observe(seconds: float) -> None:
        step = engine.last_step
        metrics.step(seconds, step.batch_size, step.kv_cache_usage, step.num_preempted)

    return observe


if __name__ == "__main__":
    main()
