"""`minigpt bench http`: what clients see of a server, beside the engine alone and other servers under the same load."""

import statistics
from collections.abc import Mapping, Sequence
from functools import partial

import msgspec
import numpy as np
import uvloop
from rich.table import Table

from service.bench.api_clients import find_api_client
from service.bench.client import HttpRun, run_load
from service.bench.offline import EngineRun, OfflineEngine
from service.bench.options import Api
from service.bench.rounds import Run, Side, compare, measure_in_turn, median_speed
from service.protocol import Request
from service.queue.redis.processor import processor_s

Load = Sequence[Request]


class HttpResult(msgspec.Struct, frozen=True, kw_only=True):
    """All rounds of one number of streams, a run a round."""

    streams: int
    requests: int
    """In each run."""
    minigpt: list[HttpRun]
    engine: list[EngineRun]
    """The engine alone with the same requests, as many at once; empty for a server that ran before."""
    peers: dict[str, list[HttpRun]]
    """Name → its runs."""


class Server:
    """A server that is up.

    Args:
        url: Where.
        api: What it speaks.

    Raises:
        SettingError: nobody there.
    """

    def __init__(self, url: str, api: Api) -> None:
        self._url = url
        self._client = find_api_client(url, api)

    def run(self, streams: int, requests: Load) -> HttpRun:
        """Send `requests`, `streams` of them at once.

        Raises:
            SettingError: it refuses, or cuts a stream.
        """
        return uvloop.run(run_load(self._url, self._client, requests, streams))


class FleetServer(Server):
    """A gateway and a worker of ours that are up, and meet at a Redis.

    Args:
        url: Of the gateway.
        queue: Of the Redis, which does nothing else meanwhile.
    """

    def __init__(self, url: str, queue: str) -> None:
        super().__init__(url, "auto")
        self._queue = queue

    def run(self, streams: int, requests: Load) -> HttpRun:
        """Do the same, and measure what it costs the Redis."""
        before_s = processor_s(self._queue)
        run = super().run(streams, requests)
        return msgspec.structs.replace(run, queue_s=processor_s(self._queue) - before_s)


def measure_http(
    server: Server,
    engine: OfflineEngine | None,
    peers: Mapping[str, Server],
    loads: Sequence[Load],
    streams: int,
) -> HttpResult:
    """Send each load to each side, in turn; the first load warms up.

    Args:
        server: Ours.
        engine: The same model without a server.
        peers: Name → another server of it.
        loads: Requests, a round each.
        streams: How many at once.

    Raises:
        SettingError: a server refuses, or cuts a stream.
    """
    ours: Side[Load, HttpRun] = Side(partial(server.run, streams))
    alone: list[Side[Load, EngineRun]] = [Side(lambda load: engine.run(load, streams))] if engine else []
    others: dict[str, Side[Load, HttpRun]] = {name: Side(partial(peer.run, streams)) for name, peer in peers.items()}
    measure_in_turn([ours, *alone, *others.values()], loads)
    return HttpResult(
        streams=streams,
        requests=len(loads[0]),
        minigpt=ours.runs,
        engine=alone[0].runs if alone else [],
        peers={name: side.runs for name, side in others.items()},
    )


def http_table(results: Sequence[HttpResult], title: str) -> Table:
    """Return medians and percentiles, a row for each side of each number of streams."""
    table = Table("streams", "", title=title)
    for heading in ("first token\nat once, ms", "one by one\np50", "\np99", "between, ms\np50", "\np99", "tokens/s"):
        table.add_column(heading, justify="right")
    table.add_column("minigpt is times\nas fast (range)", justify="right", no_wrap=True)
    for result in results:
        table.add_row(str(result.streams), "minigpt", *_latency_cells(result.minigpt), *_speed_cells(result.minigpt))
        if result.engine:
            table.add_row("", "engine alone", *["–"] * 5, *_speed_cells(result.minigpt, result.engine))
        for name, runs in result.peers.items():
            table.add_row("", name, *_latency_cells(runs), *_speed_cells(result.minigpt, runs))
    return table


def http_notes(results: Sequence[HttpResult]) -> list[str]:
    """Return what a token cost the Redis of a fleet, for each number of streams."""
    notes = []
    for result in results:
        runs = [run for runs in result.peers.values() for run in runs if run.queue_s is not None]
        if runs:
            costs = [1e6 * (run.queue_s or 0.0) / run.tokens for run in runs]
            notes.append(f"{result.streams} streams: {statistics.median(costs):.1f} µs of Redis' processor a token")
    return notes


def _latency_cells(runs: Sequence[HttpRun]) -> list[str]:
    burst = [seconds for run in runs for seconds in run.burst_first_token_s]
    first = [seconds for run in runs for seconds in run.first_token_s]
    between = [seconds for run in runs for seconds in run.inter_token_s]
    return [_percentile(burst, 50), *(_percentile(times, q) for times in (first, between) for q in (50, 99))]


def _percentile(seconds: Sequence[float], q: int) -> str:
    return f"{1000 * np.percentile(seconds, q):.1f}" if seconds else "–"


def _speed_cells(ours: Sequence[Run], others: Sequence[Run] | None = None) -> list[str]:
    if others is None:
        return [f"{median_speed(ours):,.0f}", ""]
    return [f"{median_speed(others):,.0f}", str(compare(ours, others))]
