"""The command `minigpt worker`: an engine that works for a queue. Only this command imports torch."""

import os
import socket
import sys
from collections.abc import Callable
from logging import getLogger
from typing import TYPE_CHECKING, Annotated

import typer

from service.commands.backends import open_worker_queue
from service.commands.options import QueueOption, find_folders, start_process, with_settings
from service.config import EngineSettings, LogSettings, WorkerSettings
from service.errors import SettingError, Unavailable
from service.worker.worker import EXIT_FAILED, SPIN_COUNT, Worker, run_until_stopped
from training.manifest import read_manifest

if TYPE_CHECKING:
    from service.engine.engine import Engine
    from service.metrics import WorkerMetrics

_log = getLogger(__name__)


@with_settings
def worker(
    *,
    queue: QueueOption,
    model: Annotated[
        str | None, typer.Option(metavar="[NAME=]FOLDER", help="Checkpoint to compute with. Default: the bundled one.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Of the container, which has one worker at a time. Default: there, the host's name."),
    ] = None,
    metrics_port: Annotated[int, typer.Option(help="Port of /metrics, for Prometheus and probes; 0: none.")] = 0,
    metrics_host: Annotated[str, typer.Option(help="Address of /metrics; 0.0.0.0: all.")] = "127.0.0.1",
    engine_settings: EngineSettings,
    settings: WorkerSettings,
    logging: LogSettings,
) -> None:
    """Compute for the gateways behind --queue; `serve` starts workers of its own."""
    start_process(logging)
    [(model_name, folder)] = find_folders([model] if model else None).items()
    try:
        opened = open_worker_queue(queue, settings.lease_s, name or _container_name())
    except Unavailable as error:
        sys.stderr.write(f"error: {error}\n")
        raise typer.Exit(EXIT_FAILED) from error
    os.environ.setdefault(*SPIN_COUNT)
    from service.engine.loading import load_engine

    engine = load_engine(folder, engine_settings)
    _log.info("%s: %s", model_name, engine.info)
    metrics = _serve_metrics(model_name, metrics_host, metrics_port)
    models = {model_name: read_manifest(folder, verify=False).revision}
    working = Worker(opened, engine, models, settings, on_step=_step_observer(engine, metrics))
    raise typer.Exit(run_until_stopped(working))


def _container_name() -> str:
    """Return the name of the container that this process is the first of; "" where it is none's."""
    return socket.gethostname() if os.getpid() == 1 else ""


def _serve_metrics(model: str, host: str, port: int) -> "WorkerMetrics":
    """Return what counts for `model`, and show it on `port`, at any path, unless that is 0."""
    from prometheus_client import CollectorRegistry, start_http_server

    from service.metrics import WorkerMetrics

    registry = CollectorRegistry()
    if port:
        try:
            start_http_server(port, host, registry)
        except (OSError, OverflowError) as error:
            raise SettingError(f"cannot listen on {host}:{port}: {error}; choose another --metrics-port") from error
    return WorkerMetrics(registry, model)


def _step_observer(engine: "Engine", metrics: "WorkerMetrics") -> Callable[[float], None]:
    info = engine.info
    metrics.describe(device=info.device, kernels=info.kernels, dtype=info.dtype, batch_invariant=info.batch_invariant)

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
