"""What the commands `minigpt bench …` have in common: their options, and how these are read. No torch here."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import typer

from service.commands.options import option_of
from service.config import EngineSettings, parse_settings
from service.errors import SettingError

DEFAULT_SHAPE = "6x384"

Api = Literal["auto", "generate", "completions"]
"""What a server speaks."""

CheckpointOption = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Checkpoint to measure. Default: the bundled one.")
]
ShapeOption = Annotated[
    str | None,
    typer.Option(metavar="[FAMILY:]LAYERSxWIDTH", help="Measure random weights of this shape, e.g. 6x384, lstm:2x512."),
]
VocabOption = Annotated[int, typer.Option(help="Entries of the vocabulary of a --shape.")]
PromptOption = Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")]
AnswerOption = Annotated[int, typer.Option(min=1, help="Tokens of each answer, exactly.")]
DeviceOption = option_of(EngineSettings, "device")
DtypeOption = option_of(EngineSettings, "dtype")
KvCacheOption = option_of(EngineSettings, "kv_cache_mb")
CpusOption = Annotated[
    str | None, typer.Option(metavar="N,N,…", help="Keep to these CPUs, with all that is started. Default: any.")
]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="Threads of torch. Default: one for each CPU.")]
RoundsOption = Annotated[int, typer.Option(min=1, help="Times that each side is measured.")]
JsonOption = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the raw figures there.")]


def read_counts(option: str, text: str) -> list[int]:
    """Read whole numbers from 1 on, with commas between them.

    Raises:
        SettingError: they are none.
    """
    counts = _read_numbers(text)
    if min(counts) < 1:
        raise SettingError(f"{option} {text}: write counts with commas between them, e.g. 1,8,32")
    return counts


def engine_settings(num_seqs: int, **options: object) -> EngineSettings:
    """Return serve's settings, for at least `num_seqs` sequences at once.

    Raises:
        SettingError: no such device, dtype, …
    """
    default = EngineSettings()
    limits = {
        "max_num_seqs": max(default.max_num_seqs, num_seqs),
        "max_step_tokens": max(default.max_step_tokens, num_seqs),
    }
    return parse_settings(EngineSettings, limits | options)


def choose_model(checkpoint: Path | None, shape: str | None, bundled: Path) -> Path | str:
    """Return a checkpoint's folder, or a shape.

    Raises:
        SettingError: both are asked for.
    """
    if checkpoint is not None and shape is not None:
        raise SettingError("--checkpoint and --shape: give one of them")
    return checkpoint or shape or (bundled if bundled.is_dir() else DEFAULT_SHAPE)


def bind(cpus: str | None, threads: int | None) -> None:
    """Keep this process and whatever it starts to some CPUs and threads.

    Raises:
        SettingError: no such CPU, or a system that cannot do it.
    """
    if cpus is not None:
        numbers = set(_read_numbers(cpus))
        try:
            os.sched_setaffinity(0, numbers)
        except (OSError, AttributeError, ValueError) as error:
            raise SettingError(f"--cpus {cpus}: write numbers of CPUs that this system has, e.g. 0 or 0,1") from error
        threads = threads or len(numbers)
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # for what is started; here OpenMP may have looked before
        import torch

        torch.set_num_threads(threads)


def read_servers(against: Sequence[str]) -> dict[str, str]:
    """Read `[NAME=]URL` of each peer; return name → URL, a URL without a name under its host and port.

    Raises:
        SettingError: no URL, or a name twice.
    """
    servers: dict[str, str] = {}
    for text in against:
        named, _, url = text.partition("=") if "=" in text.partition("://")[0] else ("", "", text)
        name = named or urlsplit(url).netloc
        if "://" not in url or not name or name in servers:
            raise SettingError(f"--against {text}: write URL or NAME=URL, e.g. vllm=http://127.0.0.1:8001, each once")
        servers[name] = url
    return servers


def _read_numbers(text: str) -> list[int]:
    """Read whole numbers; -1 for what is none."""
    return [int(part) if part.strip().isdecimal() else -1 for part in text.split(",")]
