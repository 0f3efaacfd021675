"""Options of the commands, made from the tables of settings, and those that no table has; how a process starts."""

import functools
import inspect
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from service.config import LogSettings, parse_settings
from service.engine.kernels.library import built_levels
from service.errors import SettingError
from service.logs import configure_logging
from training.manifest import resolve_checkpoint
from training.settings import Settings

BUNDLED = Path(__file__).parents[1] / "checkpoints" / "shakespeare"

ModelsOption = Annotated[
    list[str] | None,
    typer.Option(metavar="[NAME=]FOLDER", help="Checkpoint to serve; repeatable. Default: the bundled one."),
]
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
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Let `command` be typed with the options of the tables of settings that it takes as parameters.

    A field that two tables have is one option, and both get its value.

    Raises:
        SettingError: from the command, for a value out of range.
    """
    signature = inspect.signature(command)
    tables = {p.name: p.annotation for p in signature.parameters.values() if _is_table(p.annotation)}
    options: dict[str, inspect.Parameter] = {}
    for parameter in signature.parameters.values():
        for option in _options_of(parameter.annotation) if parameter.name in tables else [parameter]:
            options.setdefault(option.name, option.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def run(**values: Any) -> None:  # noqa: ANN401 - whatever the options are
        given = {name: parse_settings(table, values) for name, table in tables.items()}
        command(**given, **{name: values[name] for name in signature.parameters if name not in tables})

    run.__signature__ = signature.replace(parameters=list(options.values()))  # type: ignore[attr-defined]
    run.__annotations__ = {name: option.annotation for name, option in options.items()}
    return run


def option_of(table: type[Settings], field: str) -> Any:  # noqa: ANN401 - a type, for the annotation of a parameter
    """Return the type of a parameter that is the option of one field."""
    return next(option.annotation for option in _options_of(table) if option.name == field)


def command_line(settings: Settings) -> list[str]:
    """Return the options that say `settings`, where they differ from the defaults."""
    default = type(settings)()
    pairs = [(option.name, getattr(settings, option.name)) for option in _options_of(type(settings))]
    return [_written(name.replace("_", "-"), value) for name, value in pairs if value != getattr(default, name)]


def start_process(logging: LogSettings) -> None:
    """Configure the log; SIGTERM ends the process at once, until the work has begun and has its own way to end.

    Without a handler the kernel would keep the signal from the first process of a container, and an exception from the
    handler would be swallowed where torch is being imported. There is nothing yet that could be lost.
    """
    configure_logging(logging.log_level, logging.log_format)
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


def _is_table(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Settings)


def _options_of(table: type[Settings]) -> Iterator[inspect.Parameter]:
    """Yield the options of a table as parameters of a command, in the order of its fields."""
    defaults = table()
    for name, hint in get_type_hints(table, include_extras=True).items():
        if get_origin(hint) is Annotated:
            default = getattr(defaults, name)
            annotation = _typed(name, *get_args(hint), default=default, panel=table.__name__.removesuffix("Settings"))
            yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _typed(name: str, type_: Any, meta: Any, *, default: object, panel: str) -> Any:  # noqa: ANN401
    flag = f"--{name.replace('_', '-')}"
    more = f" Native here: {', '.join(built_levels()) or 'none'}." if name == "kernels" else ""
    option = functools.partial(typer.Option, help=meta.description + more, rich_help_panel=panel)
    if type_ is bool:  # one that is off needs no way to say so
        return Annotated[bool, option(*([] if default else [flag]))]
    if get_origin(type_) is Literal:  # what is none of them is refused as every other value is, in one line
        return Annotated[str, option(flag, metavar=f"[{'|'.join(get_args(type_))}]")]
    return Annotated[type_, option(flag)]


def _written(name: str, value: object) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name}={value}"
