"""The commands `minigpt bench …`. torch is imported when one runs."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from service.bench.options import (
    AnswerOption,
    Api,
    CheckpointOption,
    CpusOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    KvCacheOption,
    PromptOption,
    RoundsOption,
    ShapeOption,
    ThreadsOption,
    VocabOption,
    bind,
    choose_model,
    engine_settings,
    read_counts,
    read_servers,
)
from service.bench.peers.choice import choose_peers
from service.bench.report import Report, command_line, read_machine, show, write_json
from service.errors import SettingError
from service.worker.worker import SPIN_COUNT

TRAIN_PRESET = "nanogpt-cpu"
REQUESTS_PER_STREAM = 5

app = typer.Typer(no_args_is_help=True, help="Measure speed beside a peer, in turn, in the same minutes.")


@app.command()
def engine(
    context: typer.Context,
    checkpoint: CheckpointOption = None,
    shape: ShapeOption = None,
    vocab: VocabOption = 1024,
    batch: Annotated[str, typer.Option(metavar="N,N,…", help="Sequences computed at once.")] = "1,8,32,128",
    prompt_tokens: PromptOption = 64,
    max_tokens: AnswerOption = 64,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    kv_cache_mb: KvCacheOption = None,
    cpus: CpusOption = None,
    threads: ThreadsOption = None,
    rounds: RoundsOption = 3,
    against: Annotated[
        list[str],
        typer.Option(
            metavar="ENGINE[:DTYPE],…",
            help="Peers: transformers, vllm, llama.cpp, or none. auto: transformers, if it is installed.",
        ),
    ] = ["auto"],  # noqa: B006
    peer_python: Annotated[
        list[str], typer.Option(metavar="[ENGINE=]PATH", help="Python that has the peers. Default: this one.")
    ] = [],  # noqa: B006
    json_file: JsonOption = None,
) -> None:
    """Measure the engine alone, beside other engines on the same weights, and beside the machine's limits.

    Beside a model that is no GPT, one of as many parameters is measured.
    """
    os.environ.setdefault(*SPIN_COUNT)  # as a server's workers have it
    bind(cpus, threads)
    machine, batches = read_machine(), read_counts("--batch", batch)
    settings = engine_settings(max(batches), device=device, dtype=dtype, kv_cache_mb=kv_cache_mb)
    choices = choose_peers(against, peer_python)
    from service.bench.engine import engine_notes, engine_table, measure_engine
    from service.bench.workload import open_workload

    chosen = choose_model(checkpoint, shape, context.obj)
    with open_workload(chosen, vocab, prompt_tokens=prompt_tokens, max_tokens=max_tokens) as workload:
        if against == ["auto"] and not workload.is_gpt:
            choices = []  # the peers have GPTs alone
        figures = measure_engine(workload, settings, choices, batches, rounds)
    facts = workload.describe() | figures.engine | {"rounds": rounds}
    report = Report(command=command_line(), machine=machine, settings=facts | figures.facts(), results=figures.results)
    _finish(report, engine_table(figures, _title("engine", facts)), json_file, engine_notes(figures))


@app.command()
def http(
    context: typer.Context,
    url: Annotated[str | None, typer.Option(help="A running server of this model. Default: one is started.")] = None,
    checkpoint: CheckpointOption = None,
    shape: ShapeOption = None,
    vocab: VocabOption = 1024,
    streams: Annotated[str, typer.Option(metavar="N,N,…", help="Requests at once, each a stream.")] = "1,8,32,128",
    prompt_tokens: PromptOption = 64,
    max_tokens: AnswerOption = 64,
    requests: Annotated[int | None, typer.Option(min=1, help="In each round. Default: five for each stream.")] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    cpus: CpusOption = None,
    threads: ThreadsOption = None,
    rounds: RoundsOption = 3,
    against: Annotated[
        list[str], typer.Option(metavar="[NAME=]URL", help="A running server of the same model; repeatable.")
    ] = [],  # noqa: B006
    api: Annotated[Api, typer.Option(help="What these speak; auto: /generate if they know it.")] = "auto",
    queue: Annotated[
        str | None, typer.Option(metavar="URL", help="A Redis: also measure a gateway and a worker that meet there.")
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Measure a server as its clients see it, beside other servers, and its engine alone."""
    os.environ.setdefault(*SPIN_COUNT)  # as a server's workers have it
    bind(cpus, threads)
    machine, counts = read_machine(), read_counts("--streams", streams)
    settings = engine_settings(max(counts), device=device, dtype=dtype)
    servers = read_servers(against)
    from service.bench.http import FleetServer, Server, http_notes, http_table, measure_http
    from service.bench.offline import OfflineEngine
    from service.bench.server import start_fleet, start_server
    from service.bench.workload import open_workload

    chosen = choose_model(checkpoint, shape, context.obj)
    with ExitStack() as stack:
        workload = stack.enter_context(open_workload(chosen, vocab, prompt_tokens=prompt_tokens, max_tokens=max_tokens))
        peers = {name: Server(address, api) for name, address in servers.items()}
        if queue:
            fleet = stack.enter_context(start_fleet(workload.folder, settings, queue))
            peers["over Redis"] = FleetServer(fleet, queue)
        alone = None if url else OfflineEngine(workload.folder, settings)
        ours = Server(url, api) if url else Server(stack.enter_context(start_server(workload.folder, settings)), "auto")
        results = []
        for count in counts:
            total = requests or REQUESTS_PER_STREAM * count
            loads = [workload.stream_requests(count, total, seed) for seed in range(rounds + 1)]
            results.append(measure_http(ours, alone, peers, loads, count))
    facts = workload.describe() | (alone.describe() if alone else {}) | {"rounds": rounds}
    report = Report(command=command_line(), machine=machine, settings=facts, results=results)
    _finish(report, http_table(results, _title("http", facts)), json_file, http_notes(results))


@app.command()
def queue(
    url: Annotated[str, typer.Option("--queue", metavar="URL", help="A Redis that does nothing else meanwhile.")],
    batch: Annotated[str, typer.Option(metavar="N,N,…", help="Requests in one call.")] = "1,16,64,256",
    tokens: Annotated[str, typer.Option(metavar="N,N,…", help="Tokens of each in one call.")] = "1,4",
    emits: Annotated[int, typer.Option(min=1, help="Calls of each shape.")] = 500,
    json_file: JsonOption = None,
) -> None:
    """Measure what a token costs a Redis server."""
    machine, batches, each = read_machine(), read_counts("--batch", batch), read_counts("--tokens", tokens)
    from service.bench.queue import measure_queue, queue_table

    results = measure_queue(url, batches, each, emits)
    facts = {"calls": emits}
    report = Report(command=command_line(), machine=machine, settings=facts, results=results)
    _finish(report, queue_table(results, _title("queue", facts)), json_file)


@app.command()
def train(
    data: Annotated[Path | None, typer.Option(help="UTF-8 file or folder. Default: Tiny-Shakespeare.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of each side in a round.")] = 100,
    rounds: RoundsOption = 3,
    to_the_end: Annotated[bool, typer.Option("--to-the-end", help="Train both to their end, and evaluate.")] = False,
    cpus: CpusOption = None,
    threads: ThreadsOption = None,
    json_file: JsonOption = None,
) -> None:
    """Measure preset nanogpt-cpu beside nanoGPT's own CPU recipe: time a step and, to the end, the losses."""
    bind(cpus, threads)
    machine = read_machine()
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


@app.command()
def weights(
    context: typer.Context,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where to.")],
    checkpoint: CheckpointOption = None,
    shape: ShapeOption = None,
    vocab: VocabOption = 1024,
    gguf: Annotated[str, typer.Option(metavar="TYPE,…", help="Also as GGUF: some of f32, bf16, q8_0.")] = "",
) -> None:
    """Write a model for servers of other makes: a --shape's random weights as a checkpoint, any model as GGUF files."""
    types = [part.strip() for part in gguf.split(",") if part]
    from service.bench.weights import write_weights

    for path in write_weights(choose_model(checkpoint, shape, context.obj), vocab, out, types):
        typer.echo(path)


def _finish(report: Report, table: Table, json_file: Path | None, notes: Sequence[str] = ()) -> None:
    show(report, table, notes)
    if json_file is not None:
        write_json(report, json_file)


def _title(mode: str, facts: Mapping[str, Any]) -> str:
    parts = [f"{value} {key.replace('_', ' ')}" if isinstance(value, int) else value for key, value in facts.items()]
    return " · ".join([f"bench {mode}", *parts])


def _rounds_to_the_end(total: int, steps: int) -> int:
    rounds, rest = divmod(total, steps)
    if rest:
        raise SettingError(f"--steps {steps}: must divide the {total} steps of {TRAIN_PRESET}, e.g. 100")
    return rounds
