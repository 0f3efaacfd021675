"""`minigpt bench engine`: the engine alone, beside transformers' `generate` on the same weights."""

import statistics
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.table import Table

from service.bench.offline import EngineRun, OfflineEngine
from service.bench.rounds import compare, measure_in_turn, median_speed
from service.config import EngineSettings
from service.protocol import Request

MEBIBYTE = 2**20


class EngineResult(msgspec.Struct, frozen=True, kw_only=True):
    """All rounds of one batch size, a run a round."""

    batch: int
    minigpt: list[EngineRun]
    transformers: list[EngineRun]
    """Empty if not asked for."""


class EngineBench:
    """The sides, loaded.

    Args:
        checkpoint: Folder of the model.
        settings: Of the engine.
        against_transformers: Whether transformers is measured beside it.

    Raises:
        CheckpointError: the folder is refused.
        SettingError: the memory for keys and values does not hold one full context.
    """

    def __init__(self, checkpoint: Path, settings: EngineSettings, *, against_transformers: bool) -> None:
        self.engine = OfflineEngine(checkpoint, settings)
        self._peer = None
        if against_transformers:
            from service.bench.transformers_peer import TransformersPeer

            self._peer = TransformersPeer(checkpoint, self.engine.device, self.engine.dtype)

    def measure(self, requests: Sequence[Request], rounds: int) -> EngineResult:
        """Compute `requests` as one batch with each side, in turn."""
        batch, peer = len(requests), self._peer
        minigpt, transformers = measure_in_turn(
            lambda: self.engine.run(requests, batch), (lambda: peer.run(requests)) if peer else None, rounds
        )
        return EngineResult(batch=batch, minigpt=minigpt, transformers=transformers)


def engine_table(results: Sequence[EngineResult], title: str, kv_cache_bytes: int) -> Table:
    """Return the medians, a row for each batch size."""
    sides = ["minigpt", "transformers"] if results[0].transformers else ["minigpt"]
    table = Table("batch", title=title)
    for side in sides:
        table.add_column(f"{side}\ntokens/s", justify="right")
        table.add_column("\nms a step", justify="right")
    if results[0].transformers:
        table.add_column("times as fast\nmedian (range)", justify="right")
    table.add_column(f"KV cache, peak\nof {kv_cache_bytes / MEBIBYTE:.1f} MiB", justify="right")
    for result in results:
        table.add_row(*_cells(result))
    return table


def _cells(result: EngineResult) -> list[str]:
    cells = [str(result.batch), *_speed_cells(result.minigpt)]
    if result.transformers:
        cells += [*_speed_cells(result.transformers), str(compare(result.minigpt, result.transformers))]
    peak = max(run.kv_cache_peak_bytes for run in result.minigpt)
    return [*cells, f"{peak / MEBIBYTE:.2f} MiB"]


def _speed_cells(runs: Sequence[EngineRun]) -> list[str]:
    steps = [seconds for run in runs for seconds in run.step_s]
    return [f"{median_speed(runs):,.0f}", f"{1000 * statistics.median(steps):.2f}" if steps else "–"]
