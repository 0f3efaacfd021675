"""The commands `minigpt bench …`. torch is imported when one runs."""

import importlib.util
import os
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from service.bench.report import Report, command_line, read_machine, show, write_json
from service.config import EngineSettings, parse_settings
from service.errors import SettingError

DEFAULT_SHAPE = "6x384"
TRAIN_PRESET = "nanogpt-cpu"

app = typer.Typer(no_args_is_help=True, help="Measure speed beside a peer, in turn, in the same minutes.")

Peer = Literal["auto", "transformers", "none"]
CheckpointOption = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Checkpoint to measure. Default: the bundled one.")
]
ShapeOption = Annotated[
    str | None, typer.Option(metavar="LAYERSxWIDTH", help="Measure random weights of this shape, e.g. 6x384.")
]
VocabOption = Annotated[int, typer.Option(help="Entries of the vocabulary of a --shape.")]
PromptOption = Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")]
AnswerOption = Annotated[int, typer.Option(min=1, help="Tokens of each answer, exactly.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
DtypeOption = Annotated[str, typer.Option(help="auto, fp32 or bf16: arithmetic of the matrix products.")]
KvCacheOption = Annotated[int | None, typer.Option(help="MiB for keys and values. Default: as many as are useful.")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="Threads of torch. Default: as torch chooses.")]
RoundsOption = Annotated[int, typer.Option(min=1, help="Times that each side is measured.")]
JsonOption = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the raw figures there.")]


@app.command()
def engine(
    context: typer.Context,
    checkpoint: CheckpointOption = None,
    shape: ShapeOption = None,
    vocab: VocabOption = 1024,
    batch: Annotated[str, typer.Option(metavar="N,N,…", help="Sequences computed at once.")] = "1,8,32",
    prompt_tokens: PromptOption = 64,
    max_tokens: AnswerOption = 64,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    kv_cache_mb: KvCacheOption = None,
    threads: ThreadsOption = None,
    rounds: RoundsOption = 3,
    against: Annotated[Peer, typer.Option(help="The peer; auto: transformers, if it is installed.")] = "auto",
    json_file: JsonOption = None,
) -> None:
    """Measure the engine alone, beside transformers' generate on the same weights."""
    machine, batches = read_machine(), _read_counts("--batch", batch)
    settings = _engine_settings(max(batches), device=device, dtype=dtype, kv_cache_mb=kv_cache_mb)
    peer = _choose_peer(against)
    _set_threads(threads)
    from service.bench.engine import EngineBench, engine_table
    from service.bench.subject import open_subject

    chosen = _choose_model(checkpoint, shape, context.obj)
    with open_subject(chosen, vocab, prompt_tokens=prompt_tokens, max_tokens=max_tokens) as subject:
        bench = EngineBench(subject.folder, settings, against_transformers=peer == "transformers")
        results = [bench.measure(subject.requests(size), rounds) for size in batches]
    facts = subject.describe() | bench.engine.describe() | {"rounds": rounds}
    all_facts = facts | {"kv_cache_bytes": bench.engine.kv_cache_bytes}
    report = Report(command=command_line(), machine=machine, settings=all_facts, results=results)
    _finish(report, engine_table(results, _title("engine", facts), bench.engine.kv_cache_bytes), json_file)


@app.command()
def http(
    context: typer.Context,
    url: Annotated[str | None, typer.Option(help="A running server of this model. Default: one is started.")] = None,
    checkpoint: CheckpointOption = None,
    shape: ShapeOption = None,
    vocab: VocabOption = 1024,
    streams: Annotated[str, typer.Option(metavar="N,N,…", help="Requests at once, each a stream.")] = "1,8,32",
    prompt_tokens: PromptOption = 64,
    max_tokens: AnswerOption = 64,
    requests: Annotated[int | None, typer.Option(min=1, help="In each round. Default: two for each stream.")] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    threads: ThreadsOption = None,
    rounds: RoundsOption = 3,
    json_file: JsonOption = None,
) -> None:
    """Measure a server as its clients see it; one that is started here, beside the engine alone."""
    machine, counts = read_machine(), _read_counts("--streams", streams)
    settings = _engine_settings(max(counts), device=device, dtype=dtype)
    _set_threads(threads)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the server's workers have it
    from service.bench.http import http_table, measure_http
    from service.bench.offline import OfflineEngine
    from service.bench.server import start_server
    from service.bench.subject import open_subject

    chosen = _choose_model(checkpoint, shape, context.obj)
    with ExitStack() as stack:
        subject = stack.enter_context(open_subject(chosen, vocab, prompt_tokens=prompt_tokens, max_tokens=max_tokens))
        alone = None if url else OfflineEngine(subject.folder, settings)
        address = url or stack.enter_context(start_server(subject.folder, settings))
        results = [
            measure_http(address, alone, subject.requests(requests or 2 * count), count, rounds) for count in counts
        ]
    facts = subject.describe() | (alone.describe() if alone else {}) | {"rounds": rounds}
    report = Report(command=command_line(), machine=machine, settings=facts, results=results)
    _finish(report, http_table(results, _title("http", facts)), json_file)


@app.command()
def train(
    data: Annotated[Path | None, typer.Option(help="UTF-8 file or folder. Default: Tiny-Shakespeare.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of each side in a round.")] = 100,
    rounds: RoundsOption = 3,
    to_the_end: Annotated[bool, typer.Option("--to-the-end", help="Train both to their end, and evaluate.")] = False,
    threads: ThreadsOption = None,
    json_file: JsonOption = None,
) -> None:
    """Measure preset nanogpt-cpu beside nanoGPT's own CPU recipe: time a step and, to the end, the losses."""
    machine = read_machine()
    _set_threads(threads)
    from service.bench.train import TrainBench, train_table
    from training.config import load_config
    from training.data.corpus import default_cache_dir, load_corpus
    from training.data.prepare import prepare

    config = load_config(TRAIN_PRESET, ["run.device=cpu"])  # as its peer
    if to_the_end:
        rounds = _rounds_to_the_end(config.budget.steps or 0, steps)
    prepared = prepare(config.data, load_corpus(config.data.corpus, data), default_cache_dir())
    with tempfile.TemporaryDirectory(prefix="minigpt-bench-") as folder:
        bench = TrainBench(config, prepared, Path(folder))
        result = bench.measure(steps, rounds, to_the_end=to_the_end)
    facts = {"model": TRAIN_PRESET, **bench.describe(), "rounds": rounds}
    report = Report(command=command_line(), machine=machine, settings=facts, results=[result])
    _finish(report, train_table(result, _title("train", facts)), json_file)


def _finish(report: Report, table: Table, json_file: Path | None) -> None:
    show(report, table)
    if json_file is not None:
        write_json(report, json_file)


def _title(mode: str, facts: Mapping[str, Any]) -> str:
    parts = [f"{value} {key.replace('_', ' ')}" if isinstance(value, int) else value for key, value in facts.items()]
    return " · ".join([f"bench {mode}", *parts])


def _read_counts(option: str, text: str) -> list[int]:
    counts = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if min(counts) < 1:
        raise SettingError(f"{option} {text}: write counts with commas between them, e.g. 1,8,32")
    return counts


def _engine_settings(num_seqs: int, **options: object) -> EngineSettings:
    """Return serve's settings, with room for `num_seqs` sequences at once."""
    default = EngineSettings()
    room = {
        "max_num_seqs": max(default.max_num_seqs, num_seqs),
        "max_step_tokens": max(default.max_step_tokens, num_seqs),
    }
    return parse_settings(EngineSettings, room | options)


def _choose_peer(against: Peer) -> Peer:
    is_installed = importlib.util.find_spec("transformers") is not None
    if against == "transformers" and not is_installed:
        raise SettingError("--against transformers: it is not installed; pip install 'minigpt[dev]', or --against none")
    if against == "auto":
        return "transformers" if is_installed else "none"
    return against


def _choose_model(checkpoint: Path | None, shape: str | None, bundled: Path) -> Path | str:
    """Return a checkpoint's folder, or a shape."""
    if checkpoint is not None and shape is not None:
        raise SettingError("--checkpoint and --shape: give one of them")
    return checkpoint or shape or (bundled if bundled.is_dir() else DEFAULT_SHAPE)


def _set_threads(threads: int | None) -> None:
    """Tell torch and every process started here, before torch is imported."""
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)


def _rounds_to_the_end(total: int, steps: int) -> int:
    rounds, rest = divmod(total, steps)
    if rest:
        raise SettingError(f"--steps {steps}: must divide the {total} steps of {TRAIN_PRESET}, e.g. 100")
    return rounds
