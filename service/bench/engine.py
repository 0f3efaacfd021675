"""`minigpt bench engine`: the engine alone, beside others on the same weights, and beside what the machine can do."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import msgspec
import torch
from rich.table import Table

from service.bench.costs import Costs, count_costs
from service.bench.gpt_beside import open_gpt_beside
from service.bench.limits import Limits, measure_limits
from service.bench.offline import EngineRun, OfflineEngine
from service.bench.peers.choice import PeerChoice
from service.bench.peers.process import start_peer
from service.bench.rounds import Side, compare, measure_in_turn, median_speed
from service.bench.workload import Workload
from service.config import EngineSettings
from service.protocol import Request

MEBIBYTE = 2**20

Compute = Callable[[Sequence[Request]], EngineRun]
"""Computes a batch."""


class EngineResult(msgspec.Struct, frozen=True, kw_only=True):
    """All rounds of one batch size, a run a round."""

    batch: int
    minigpt: list[EngineRun]
    peers: dict[str, list[EngineRun]]
    """Name → its runs."""


class EngineFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was measured, and what it is held against."""

    results: list[EngineResult]
    engine: dict[str, str | int]
    """What the settings came to on this machine."""
    kv_cache_bytes: int
    versions: dict[str, str]
    """Of the peers."""
    costs: Costs
    limits: Limits
    prompt_tokens: int
    max_tokens: int

    def facts(self) -> dict[str, Any]:
        """Return what stands in the report beside the results."""
        return {"kv_cache_bytes": self.kv_cache_bytes, "peers": self.versions, "limits": self.limits}


def measure_engine(
    workload: Workload, settings: EngineSettings, choices: Sequence[PeerChoice], batches: Sequence[int], rounds: int
) -> EngineFigures:
    """Compute each batch with minigpt's engine and each peer, in turn.

    Beside a model that is no GPT stands a GPT of as many parameters, in the same engine.

    Raises:
        CheckpointError: the folder is refused.
        SettingError: the model does not fit the settings or the context, or a peer fails.
    """
    engine = OfflineEngine(workload.folder, settings)
    dtype, device = engine.info.dtype, torch.device(engine.info.device)
    limits = measure_limits(dtype, device)
    with ExitStack() as stack:
        started = (start_peer(choice, workload, engine.info, max(batches)) for choice in choices)
        peers = [stack.enter_context(peer) for peer in started]
        beside: dict[str, Compute] = {peer.name: peer.run for peer in peers}
        if not workload.is_gpt:
            gpt = stack.enter_context(open_gpt_beside(workload))
            beside[f"GPT {gpt.name}"] = _computing(OfflineEngine(gpt, settings))
        results = [_measure_batch(engine, beside, workload, batch, rounds) for batch in batches]
    return EngineFigures(
        results=results,
        engine=engine.describe(),
        kv_cache_bytes=engine.info.kv_cache_bytes,
        versions={peer.name: peer.version for peer in peers},
        costs=count_costs(workload.config, dtype),
        limits=limits.best(measure_limits(dtype, device)),
        prompt_tokens=workload.prompt_tokens,
        max_tokens=workload.max_tokens,
    )


def _computing(engine: OfflineEngine) -> Compute:
    return lambda requests: engine.run(requests, len(requests))


def _measure_batch(
    engine: OfflineEngine, beside: Mapping[str, Compute], workload: Workload, batch: int, rounds: int
) -> EngineResult:
    ours = Side(_computing(engine))
    others = {name: Side(compute) for name, compute in beside.items()}
    loads = [workload.requests(batch, seed) for seed in range(rounds + 1)]
    measure_in_turn([ours, *others.values()], loads)
    return EngineResult(batch=batch, minigpt=ours.runs, peers={name: side.runs for name, side in others.items()})


def engine_table(figures: EngineFigures, title: str) -> Table:
    """Return the medians, a row for each side of each batch size."""
    table, limits = Table("batch", "", title=title), figures.limits
    for heading in ("tokens/s", "ms a step", "minigpt is times\nas fast (range)"):
        table.add_column(heading, justify="right")
    table.add_column(f"products, GFLOP/s\nof {limits.flops / 1e9:,.0f} ({limits.dtype})", justify="right")
    table.add_column(f"reads, GB/s\nof {limits.read_bytes / 1e9:.1f}", justify="right")
    for result in figures.results:
        table.add_row(str(result.batch), "minigpt", *_speed_cells(result.minigpt), "", *_share_cells(result, figures))
        for name, runs in result.peers.items():
            table.add_row("", name, *_speed_cells(runs), str(compare(result.minigpt, runs)))
    return table


def engine_notes(figures: EngineFigures) -> list[str]:
    """Return the lines under the table."""
    peak = max(run.kv_cache_peak_bytes for result in figures.results for run in result.minigpt)
    notes = [
        f"Keys and values, or states: at most {peak / MEBIBYTE:.2f} of {figures.kv_cache_bytes / MEBIBYTE:.1f} MiB."
    ]
    if figures.versions:
        notes.append("Peers: " + ", ".join(f"{name} {version}" for name, version in figures.versions.items()) + ".")
    return notes


def _speed_cells(runs: Sequence[EngineRun]) -> list[str]:
    step = _median_step(runs)
    return [f"{median_speed(runs):,.0f}", f"{1000 * step:.2f}" if step else "–"]


def _share_cells(result: EngineResult, figures: EngineFigures) -> list[str]:
    """Return what minigpt reached of the machine's limits."""
    load = (result.batch, figures.prompt_tokens, figures.max_tokens)
    seconds, step = statistics.median(run.seconds for run in result.minigpt), _median_step(result.minigpt)
    flops = figures.costs.flops(*load) / seconds
    read_bytes = figures.costs.step_bytes(*load) / step if step else 0.0
    return [
        f"{flops / 1e9:,.0f} = {flops / figures.limits.flops:.0%}",
        f"{read_bytes / 1e9:.1f} = {read_bytes / figures.limits.read_bytes:.0%}" if step else "–",
    ]


def _median_step(runs: Sequence[EngineRun]) -> float:
    """Return the seconds of a step that only decodes; 0 if there was none."""
    return statistics.median([seconds for run in runs for seconds in run.step_s] or [0.0])
