"""Options that several commands have, and how a process of the service starts. Defaults are those of the settings."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from service.config import EngineSettings, GatewaySettings, LogFormat, LogLevel, QueueSettings, WorkerSettings
from service.engine.kernels.library import built_levels
from service.errors import SettingError
from service.logs import configure_logging
from training.manifest import resolve_checkpoint

BUNDLED = Path(__file__).parents[1] / "checkpoints" / "shakespeare"
GATEWAY, QUEUE, ENGINE, WORKER = GatewaySettings(), QueueSettings(), EngineSettings(), WorkerSettings()

ModelsOption = Annotated[
    list[str] | None,
    typer.Option(metavar="[NAME=]FOLDER", help="Checkpoint to serve; repeatable. Default: the bundled one."),
]
HostOption = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all.")]
PortOption = Annotated[int, typer.Option(help="Port to listen on; 0: any free one.")]
QueueOption = Annotated[
    str,
    typer.Option(
        metavar="URL", envvar="MINIGPT_QUEUE", help="The queue's Redis: redis://, rediss:// or redis+sentinel://."
    ),
]
KeysOption = Annotated[
    str | None,
    typer.Option(metavar="FILE|redis", envvar="MINIGPT_KEYS", help="API keys: in a file, or in the queue's Redis."),
]
AllowAnyoneOption = Annotated[bool, typer.Option("--allow-anyone", help="Listen beyond this machine without API keys.")]
WaitForWorkersOption = Annotated[
    bool,
    typer.Option("--wait-for-workers", help="Take requests also where no worker was seen yet, for it will come."),
]
QueueDepthOption = Annotated[int, typer.Option(help="Sequences that may wait.")]
QueueTokensOption = Annotated[int, typer.Option(help="Tokens, of prompts and to come, that may wait.")]
TenantDepthOption = Annotated[int, typer.Option(help="Sequences of one tenant that may wait.")]
KeepEndedOption = Annotated[
    float, typer.Option(help="Seconds for which an answer can still be read after its end, and asked for by its key.")
]
BodyBytesOption = Annotated[int, typer.Option(help="Largest body of a request.")]
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
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def start_process(log_level: LogLevel, log_format: LogFormat) -> None:
    """Configure the log; SIGTERM ends the process at once, until the work has begun and has its own way to end.

    Without a handler the kernel would keep the signal from the first process of a container, and an exception from the
    handler would be swallowed where torch is being imported. There is nothing yet that could be lost.
    """
    configure_logging(log_level, log_format)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


def find_folders(models: Sequence[str] | None) -> dict[str, Path]:
    """Read `name=folder`, or `folder`, which is its own name; return name → checkpoint folder.

    Args:
        models: As typed; none: the bundled one.

    Raises:
        SettingError: two of one name.
        CheckpointError: no checkpoint there.
    """
    folders: dict[str, Path] = {}
    for option in models or [str(BUNDLED)]:
        name, equals, folder = option.partition("=")
        if not equals:
            name, folder = Path(option).resolve().name, option
        if not name or name in folders:
            raise SettingError(f"--model {option}: give each model a name of its own, NAME=FOLDER")
        folders[name] = resolve_checkpoint(Path(folder))
    return folders
