"""Every setting of the service: frozen, typed, with its unit and its range; each part gets only its own table.

A field with an `option` is an option of every command that takes its table; the other fields are fixed.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar

import msgspec

from service.errors import SettingError
from training.settings import Settings, option, require

LogFormat = Literal["plain", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]


class LogSettings(Settings, frozen=True, kw_only=True):
    """What is logged, and how."""

    log_level: Annotated[LogLevel, option("Least level that is logged.")] = "info"
    log_format: Annotated[LogFormat, option("plain: readable lines; json: an object a line.")] = "plain"


class GatewaySettings(Settings, frozen=True, kw_only=True):
    """The HTTP side: where it listens and what it takes."""

    host: Annotated[str, option("Address to listen on; 0.0.0.0: all.")] = "127.0.0.1"
    port: Annotated[int, option("Port to listen on; 0: any free one.")] = 8000
    max_body_bytes: Annotated[int, option("Largest body of a request.")] = 262_144
    receive_timeout_s: float = 10.0
    """Seconds in which header and body must have arrived."""
    write_timeout_s: float = 30.0
    """Seconds that a reader may take nothing before its connection is closed."""
    ping_s: float = 15.0
    """Seconds of silence after which a stream sends a comment, so that no proxy takes it for dead."""
    max_connections: int = 2048
    """Connections open at once."""
    wait_for_workers: Annotated[bool, option("Take requests also where no worker was seen yet, for it will come.")] = (
        False
    )
    drain_s: Annotated[float, option("Seconds that running requests still have after SIGTERM.")] = 30.0

    def __post_init__(self) -> None:
        require(0 <= self.port <= 65_535, "port", self.port, "a TCP port, 0 to 65535 (0: any free one)")
        require(self.host != "", "host", self.host, "an address to listen on, e.g. 127.0.0.1 or 0.0.0.0")
        require(self.max_body_bytes >= 1024, "max_body_bytes", self.max_body_bytes, "at least 1024")
        for field in ("receive_timeout_s", "write_timeout_s", "ping_s", "max_connections"):
            require(getattr(self, field) > 0, field, getattr(self, field), "greater than 0")
        require(self.drain_s >= 0, "drain_s", self.drain_s, "at least 0 (0: cut at once)")


class QueueSettings(Settings, frozen=True, kw_only=True):
    """How much may wait, and how long a silent worker keeps its requests."""

    max_queue_depth: Annotated[int, option("Sequences that may wait.")] = 1024
    max_queue_tokens: Annotated[int, option("Tokens, of prompts and to come, that may wait.")] = 1_000_000
    max_tenant_depth: Annotated[int, option("Sequences of one tenant that may wait.")] = 1024
    max_age_s: float = 3600.0
    """Seconds after which a request without a deadline of its own is given up."""
    lease_s: Annotated[float, option("Seconds without a word after which a worker's requests move on.")] = 5.0
    max_attempts: int = 3
    """Workers that may die with a request before it fails."""
    keep_ended_s: Annotated[float, option("Seconds for which an ended answer can still be read and joined.")] = 60.0

    def __post_init__(self) -> None:
        for field in ("max_queue_depth", "max_queue_tokens", "max_tenant_depth", "max_attempts"):
            require(getattr(self, field) >= 1, field, getattr(self, field), "at least 1")
        for field in ("max_age_s", "lease_s", "keep_ended_s"):
            require(getattr(self, field) > 0, field, getattr(self, field), "greater than 0")


class EngineSettings(Settings, frozen=True, kw_only=True):
    """How much is computed at once, and with what."""

    max_num_seqs: Annotated[int, option("Sequences computed at once.")] = 64
    max_step_tokens: Annotated[int, option("Tokens computed at once, prefill included.")] = 512
    page_size: int | None = None
    """Tokens in a page of keys and values; `None`: 256 on CUDA, for flash attention reads these in place, else 16."""
    prefix_caching: Annotated[bool, option("Compute the common beginning of prompts once.")] = True
    speculation: Annotated[bool, option("Guess the next tokens of a lone stream, where it is faster.")] = True
    kv_cache_mb: Annotated[int | None, option("MiB for keys and values. Default: as many as are useful.")] = None
    device: Annotated[str, option("auto, cpu, cuda or cuda:N.")] = "auto"
    dtype: Annotated[
        Literal["auto", "fp32", "bf16", "int8"],
        option("What is computed in. auto: int8 with the native kernels, bf16 on a GPU that has it, else fp32."),
    ] = "auto"
    kernels: Annotated[Literal["auto", "native", "torch"], option("What computes. auto: native where it can.")] = "auto"

    def __post_init__(self) -> None:
        for field in ("max_num_seqs", "max_step_tokens"):
            require(getattr(self, field) >= 1, field, getattr(self, field), "at least 1")
        require(self.page_size is None or self.page_size >= 1, "page_size", self.page_size, "at least 1")
        require(self.kv_cache_mb is None or self.kv_cache_mb >= 1, "kv_cache_mb", self.kv_cache_mb, "at least 1 MiB")
        fits = self.max_step_tokens >= self.max_num_seqs
        require(fits, "max_step_tokens", self.max_step_tokens, f"at least max_num_seqs = {self.max_num_seqs}")


class WorkerSettings(Settings, frozen=True, kw_only=True):
    """How a worker lives with its queue."""

    lease_s: Annotated[float, option("Seconds without a word after which a worker's requests move on.")] = 5.0
    drain_s: Annotated[float, option("Seconds that running requests still have after SIGTERM.")] = 30.0
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
