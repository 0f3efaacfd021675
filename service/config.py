"""Every setting of the service: frozen, typed, with its unit and its range; each part gets only its own table."""

from collections.abc import Mapping
from typing import Literal, TypeVar

import msgspec

from service.errors import SettingError
from training.settings import Settings, require

LogFormat = Literal["plain", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]


class GatewaySettings(Settings, frozen=True, kw_only=True):
    """The HTTP side: where it listens and what it takes."""

    host: str = "127.0.0.1"
    port: int = 8000
    """TCP port; 0: any free one."""
    max_body_bytes: int = 262_144
    """Largest body of a request."""
    receive_timeout_s: float = 10.0
    """Seconds in which header and body must have arrived."""
    write_timeout_s: float = 30.0
    """Seconds that a reader may take nothing before its connection is closed."""
    ping_s: float = 15.0
    """Seconds of silence after which a stream sends a comment, so that no proxy takes it for dead."""
    max_connections: int = 2048
    """Connections open at once."""
    wait_for_workers: bool = False
    """Whether requests are taken also before a worker was ever seen, where workers start when something waits."""
    drain_s: float = 30.0
    """Seconds that running requests may still take after SIGTERM."""

    def __post_init__(self) -> None:
        require(0 <= self.port <= 65_535, "port", self.port, "a TCP port, 0 to 65535 (0: any free one)")
        require(self.host != "", "host", self.host, "an address to listen on, e.g. 127.0.0.1 or 0.0.0.0")
        require(self.max_body_bytes >= 1024, "max_body_bytes", self.max_body_bytes, "at least 1024")
        for field in ("receive_timeout_s", "write_timeout_s", "ping_s", "max_connections"):
            require(getattr(self, field) > 0, field, getattr(self, field), "greater than 0")
        require(self.drain_s >= 0, "drain_s", self.drain_s, "at least 0 (0: cut at once)")


class QueueSettings(Settings, frozen=True, kw_only=True):
    """How much may wait, and how long a silent worker keeps its requests."""

    max_queue_depth: int = 1024
    """Requests that may wait."""
    max_queue_tokens: int = 1_000_000
    """Sum of `cost` over the waiting requests."""
    max_tenant_depth: int = 1024
    """Requests of one tenant that may wait."""
    max_age_s: float = 3600.0
    """Seconds after which a request without a deadline of its own is given up."""
    lease_s: float = 5.0
    """Seconds without a word after which a worker's requests go to another."""
    max_attempts: int = 3
    """Workers that may die with a request before it fails."""
    keep_ended_s: float = 60.0
    """Seconds that an ended request can still be read and submitted again without effect."""

    def __post_init__(self) -> None:
        for field in ("max_queue_depth", "max_queue_tokens", "max_tenant_depth", "max_attempts"):
            require(getattr(self, field) >= 1, field, getattr(self, field), "at least 1")
        for field in ("max_age_s", "lease_s", "keep_ended_s"):
            require(getattr(self, field) > 0, field, getattr(self, field), "greater than 0")


class EngineSettings(Settings, frozen=True, kw_only=True):
    """How much is computed at once, and with what."""

    max_num_seqs: int = 64
    """Sequences in one step."""
    max_step_tokens: int = 512
    """Tokens in one step: all decodes and the prefill chunks that fit beside them."""
    page_size: int | None = None
    """Tokens in a page of keys and values; `None`: 256 on CUDA, for flash attention reads these in place, else 16."""
    prefix_caching: bool = True
    """Whether a prompt's pages are found again by a later one of the same tenant that begins alike."""
    speculation: bool = True
    """Whether a sequence that is alone may have its next tokens guessed, where that measures faster."""
    kv_cache_mb: int | None = None
    """MiB for keys and values; `None`: enough for `max_num_seqs` full contexts, within the memory there is."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    dtype: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """Of the weights, and of what they are multiplied with; `auto`: the fastest that costs less than 0.001 nats."""

    kernels: Literal["auto", "native", "torch"] = "auto"
    """Who computes: the native kernels (the Qwen3 layout on a CPU), or torch; `auto`: native where it can."""

    def __post_init__(self) -> None:
        for field in ("max_num_seqs", "max_step_tokens"):
            require(getattr(self, field) >= 1, field, getattr(self, field), "at least 1")
        require(self.page_size is None or self.page_size >= 1, "page_size", self.page_size, "at least 1")
        require(self.kv_cache_mb is None or self.kv_cache_mb >= 1, "kv_cache_mb", self.kv_cache_mb, "at least 1 MiB")
        fits = self.max_step_tokens >= self.max_num_seqs
        require(fits, "max_step_tokens", self.max_step_tokens, f"at least max_num_seqs = {self.max_num_seqs}")


class WorkerSettings(Settings, frozen=True, kw_only=True):
    """How a worker lives with its queue."""

    lease_s: float = 5.0
    """The queue's lease, in seconds; renewed at 0.3 of it."""
    drain_s: float = 30.0
    """Seconds that running requests may still take after SIGTERM; the rest is handed back."""
    idle_wait_s: float = 0.2
    """Seconds of one wait for work while there is none; an idle worker leaves after one at the latest."""
    max_step_s: float = 15.0
    """Seconds after which a step counts as hung, and the worker ends itself."""

    def __post_init__(self) -> None:
        for field in ("lease_s", "idle_wait_s", "max_step_s"):
            require(getattr(self, field) > 0, field, getattr(self, field), "greater than 0")
        in_lease = self.idle_wait_s <= self.lease_s / 2
        require(in_lease, "idle_wait_s", self.idle_wait_s, f"at most half of lease_s = {self.lease_s}")
        require(self.drain_s >= 0, "drain_s", self.drain_s, "at least 0 (0: hand everything back)")


S = TypeVar("S", bound=Settings)


def parse_settings(kind: type[S], options: Mapping[str, object]) -> S:
    """Make the table `kind` of those `options` that are its fields.

    Raises:
        SettingError: wrong type or value; names the field, the value and the remedy.
    """
    values = {field: options[field] for field in kind.__struct_fields__ if field in options}
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise SettingError(str(error)) from error
