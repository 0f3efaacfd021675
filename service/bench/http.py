"""`minigpt bench http`: what clients see of a server, beside the engine alone under the same load."""

from collections.abc import Sequence

import msgspec
import numpy as np
import uvloop
from rich.table import Table

from service.bench.client import HttpRun, run_load
from service.bench.offline import EngineRun, OfflineEngine
from service.bench.rounds import compare, measure_in_turn, median_speed
from service.protocol import Request


class HttpResult(msgspec.Struct, frozen=True, kw_only=True):
    """All rounds of one number of streams, a run a round."""

    streams: int
    requests: int
    """In each run."""
    http: list[HttpRun]
    engine: list[EngineRun]
    """The engine alone with the same requests, as many at once; empty for a server that ran before."""


def measure_http(
    url: str, engine: OfflineEngine | None, requests: Sequence[Request], streams: int, rounds: int
) -> HttpResult:
    """Send `requests` to a server and, in turn, to the engine alone.

    Raises:
        SettingError: the server cannot be reached, refuses, or cuts a stream.
    """
    runs, alone = measure_in_turn(
        lambda: uvloop.run(run_load(url, requests, streams)),
        (lambda: engine.run(requests, streams)) if engine else None,
        rounds,
    )
    return HttpResult(streams=streams, requests=len(requests), http=runs, engine=alone)


def http_table(results: Sequence[HttpResult], title: str) -> Table:
    """Return medians and percentiles, a row for each number of streams."""
    table = Table("streams", title=title)
    for heading in ("first token, ms\np50", "\np99", "between tokens, ms\np50", "\np99", "HTTP\ntokens/s"):
        table.add_column(heading, justify="right")
    if results[0].engine:
        table.add_column("engine alone\ntokens/s", justify="right")
        table.add_column("HTTP costs\nmedian (range)", justify="right")
    for result in results:
        table.add_row(*_cells(result))
    return table


def _cells(result: HttpResult) -> list[str]:
    first = [seconds for run in result.http for seconds in run.first_token_s]
    between = [seconds for run in result.http for seconds in run.inter_token_s]
    cells = [str(result.streams), *_percentiles(first), *_percentiles(between), f"{median_speed(result.http):,.0f}"]
    if result.engine:
        share = compare(result.http, result.engine)
        costs = f"{1 - share.median:.0%} ({1 - share.highest:.0%} – {1 - share.lowest:.0%})"
        cells += [f"{median_speed(result.engine):,.0f}", costs]
    return cells


def _percentiles(seconds: Sequence[float]) -> list[str]:
    return [f"{1000 * value:.1f}" for value in np.percentile(seconds, (50, 99))] if seconds else ["–", "–"]
