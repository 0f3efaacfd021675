"""Every metric of the service, by its name in Prometheus; a label's values are a closed set, never a client's words.

Several processes share their figures through files when `PROMETHEUS_MULTIPROC_DIR` names a folder before this module is
imported (`minigpt serve` sees to it); without that variable each process has its own.
"""

import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from service.errors import ServiceError
from service.protocol import End, FinishReason, QueueStats

_MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
_PREFIX = "minigpt"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SECONDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1),
    *(0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0),
)
_COUNTS = tuple(2**power for power in range(13))


class GatewayMetrics:
    """What the HTTP side counts. Depth and waiting stand here, so that they are there when no worker is.

    Args:
        registry: Where the metrics are registered; one `GatewayMetrics` a registry.
        models: Names of the models served.
    """

    def __init__(self, registry: CollectorRegistry, models: Iterable[str]) -> None:
        self._registry = registry
        counter = partial(Counter, namespace=_PREFIX, registry=registry)
        gauge = partial(Gauge, namespace=_PREFIX, registry=registry, multiprocess_mode="livemostrecent")
        self._received = counter("requests_received", "Every arrival, refused ones too", ["route", "method"])
        self._failures = counter("request_failures", "Requests that ended in an error, by its code", ["error"])
        self._waiting = gauge("requests_waiting", "Sequences in the queue")
        self._running = gauge("requests_running", "Sequences in the hands of workers")
        self._queue_tokens = gauge("queue_tokens", "Prompt tokens and max_tokens of what waits")
        self._workers = gauge("workers", "Workers whose lease holds")
        self._queue_up = gauge("queue_up", "Whether the queue could be reached at this scrape: 1 or 0")
        self._totals = {
            "resumed": counter("requests_resumed", "Sequences that went on with another worker"),
            "fenced": counter("fenced_emits", "Emissions refused because the sequence was another worker's"),
            "quarantined": counter(
                "requests_quarantined", "Sequences given up because too many workers died with them"
            ),
        }
        self._counted = dict.fromkeys(self._totals, 0)
        family = _ModelFamily(registry)
        self.models = {model: ModelMetrics(family, model) for model in models}
        """The figures of each model, by its name."""
        for code in sorted(_error_codes(ServiceError)):
            self._failures.labels(code)

    def receive(self, route: str, method: str) -> None:
        """Count an arrival: at the template of a route or `other`, by a method of HTTP or another."""
        self._received.labels(route, method if method in _METHODS else "other").inc()

    def fail(self, error: ServiceError) -> None:
        """Count a request that ended in `error`, before or after it was accepted."""
        self._failures.labels(error.code).inc()

    def observe_queue(self, stats: QueueStats | None) -> None:
        """Set what waits and runs, and add to what the queue counts what it has counted since the last time.

        Each gateway shows the whole fleet's totals, also of the time before its own start. A queue that lost its
        memory counts from 0 again; the totals shown go on. `None`: it cannot be reached; what was seen last stays.
        """
        self._queue_up.set(stats is not None)
        if stats is None:
            return
        self._waiting.set(stats.waiting)
        self._running.set(stats.running)
        self._queue_tokens.set(stats.waiting_tokens)
        self._workers.set(stats.workers)
        for name, total in self._totals.items():
            so_far = getattr(stats, name)
            before = self._counted[name]
            total.inc(so_far - before if so_far >= before else so_far)
            self._counted[name] = so_far

    def render(self) -> bytes:
        """Return the figures of every process in Prometheus' text format."""
        if _MULTIPROCESS not in os.environ:
            return generate_latest(self._registry)
        gathered = CollectorRegistry()
        MultiProcessCollector(gathered)  # type: ignore[no-untyped-call]
        return generate_latest(gathered)


class _ModelFamily:
    """The gateway's metrics with the label `model`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        counter = partial(Counter, namespace=_PREFIX, registry=registry)
        seconds, count = _histograms(registry)
        self.ended = counter("requests", "Sequences that ended", ["model", "finish_reason"])
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of accepted sequences", ["model"])
        self.generated_tokens = counter("generated_tokens", "Tokens that the model generated", ["model"])
        self.prompt_size = count("request_prompt_tokens", "Prompt tokens of a sequence")
        self.generated_size = count("request_generated_tokens", "Generated tokens of a sequence")
        self.first_token = seconds("time_to_first_token_seconds", "From a request's arrival to its first token")
        self.inter_token = seconds("inter_token_latency_seconds", "From one token of a sequence to its next")
        self.request = seconds("request_seconds", "From a request's arrival to the end of a sequence")
        self.queue = seconds("queue_seconds", "From submission to the first claim")
        self.prefill = seconds("prefill_seconds", "From the first claim to the first token")
        self.decode = seconds("decode_seconds", "From the first token to the last")


class ModelMetrics:
    """What the HTTP side counts of one model; each call costs a few microseconds."""

    def __init__(self, family: _ModelFamily, model: str) -> None:
        self._ended = {reason: family.ended.labels(model, reason) for reason in get_args(FinishReason)}
        self._prompt_tokens = family.prompt_tokens.labels(model)
        self._generated_tokens = family.generated_tokens.labels(model)
        self._prompt_size = family.prompt_size.labels(model)
        self._generated_size = family.generated_size.labels(model)
        self._first_token = family.first_token.labels(model)
        self._inter_token = family.inter_token.labels(model)
        self._request = family.request.labels(model)
        self._queue = family.queue.labels(model)
        self._prefill = family.prefill.labels(model)
        self._decode = family.decode.labels(model)

    def accept(self, num_prompt_tokens: int) -> None:
        """Count a sequence that the queue has taken."""
        self._prompt_tokens.inc(num_prompt_tokens)
        self._prompt_size.observe(num_prompt_tokens)

    def start(self, num_tokens: int, elapsed_s: float) -> None:
        """Count the first tokens of a sequence, `elapsed_s` after its request arrived."""
        self._generated_tokens.inc(num_tokens)
        self._first_token.observe(elapsed_s)

    def go_on(self, num_tokens: int, elapsed_s: float) -> None:
        """Count tokens that came together, `elapsed_s` after the ones before."""
        self._generated_tokens.inc(num_tokens)
        self._inter_token.observe(elapsed_s / num_tokens)

    def end(self, end: End, num_tokens: int, queued_s: float, elapsed_s: float) -> None:
        """Count a sequence that ended after `num_tokens`, `elapsed_s` after its request arrived."""
        self._ended[end.finish_reason].inc()
        self._generated_size.observe(num_tokens)
        self._request.observe(elapsed_s)
        self._queue.observe(queued_s)
        self._prefill.observe(end.prefill_s)
        self._decode.observe(end.decode_s)


class WorkerMetrics:
    """What a worker counts of its engine.

    Args:
        registry: Where the metrics are registered; one `WorkerMetrics` a registry.
        model: Name of the model that the worker serves.
    """

    def __init__(self, registry: CollectorRegistry, model: str) -> None:
        seconds, count = _histograms(registry)
        ratio = Gauge(
            "kv_cache_usage_ratio",
            "Share of the pages of keys and values that are in use, in the fullest worker",
            ["model"],
            namespace=_PREFIX,
            registry=registry,
            multiprocess_mode="livemax",
        )
        counter = partial(Counter, labelnames=["model"], namespace=_PREFIX, registry=registry)
        self._step_seconds = seconds("step_seconds", "One step of the engine").labels(model)
        self._batch_size = count("batch_size", "Sequences in a step").labels(model)
        self._kv_cache_usage = ratio.labels(model)
        self._preemptions = counter("preemptions", "Sequences that lost their pages").labels(model)
        self._queried = counter("prefix_cache_queries", "Tokens looked up in the prefix cache").labels(model)
        self._found = counter("prefix_cache_hits", "Tokens that the prefix cache had").labels(model)
        self._engine_info = Gauge(
            "engine_info",
            "1: what computes; batch_invariant says whether a token's logits are the same bits in any batch",
            ["model", "device", "kernels", "dtype", "batch_invariant"],
            namespace=_PREFIX,
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._model = model

    def describe(self, *, device: str, kernels: str, dtype: str, batch_invariant: bool) -> None:
        """Tell what computes."""
        self._engine_info.labels(self._model, device, kernels, dtype, str(batch_invariant).lower()).set(1)

    def step(
        self,
        seconds: float,
        batch_size: int,
        kv_cache_usage: float,
        *,
        num_preempted: int = 0,
        num_queried_tokens: int = 0,
        num_found_tokens: int = 0,
    ) -> None:
        """Count one step: its duration, its sequences, the share of pages held (0 to 1), who lost theirs; the cache."""
        self._step_seconds.observe(seconds)
        self._batch_size.observe(batch_size)
        self._kv_cache_usage.set(kv_cache_usage)
        self._preemptions.inc(num_preempted)
        self._queried.inc(num_queried_tokens)
        self._found.inc(num_found_tokens)


def forget_process(pid: int) -> None:
    """Drop the gauges of a worker process that is no more; its counters stay."""
    if _MULTIPROCESS in os.environ:
        mark_process_dead(pid)  # type: ignore[no-untyped-call]


def _histograms(registry: CollectorRegistry) -> tuple[Callable[[str, str], Histogram], Callable[[str, str], Histogram]]:
    make = partial(Histogram, labelnames=["model"], namespace=_PREFIX, registry=registry)
    return partial(make, buckets=_SECONDS), partial(make, buckets=_COUNTS)


def _error_codes(kind: type[ServiceError]) -> set[str]:
    return {kind.code}.union(*map(_error_codes, kind.__subclasses__()))
