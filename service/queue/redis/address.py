"""Where a queue in Redis is: its URL read, refused or shown; the clients that lead there."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from service.errors import SettingError

SCHEMES = ("redis", "rediss", "redis+sentinel")
SENTINEL_PORT = 26379
EXAMPLES = "redis://host:6379/0, rediss://user:password@host:6379/0 or redis+sentinel://host:26379,host:26379/service/0"
CONNECTION_ERRORS = (redis.ConnectionError, redis.TimeoutError, redis.ReadOnlyError, OSError)
"""What passes when the server is back, or another has taken its place."""
FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_ca_path")
"""Parameters that name files."""


@dataclass(frozen=True, slots=True)
class Address:
    """A URL of one of `SCHEMES`, once it is known to be one.

    Raises:
        SettingError: it is none, or names files that cannot be read; the message has no password.
    """

    url: str = field(repr=False)

    def __post_init__(self) -> None:
        try:
            is_valid, missing = self._names_server(), self._missing_files()
            self.connect(1.0).connection_pool.make_connection()  # opens nothing, refuses senseless parameters
        except (ValueError, TypeError, redis.RedisError):
            is_valid = False
        if not is_valid:
            raise SettingError(f"queue: {redact(self.url)} is no address of a Redis; write e.g. {EXAMPLES}")
        if missing:
            raise SettingError(f"queue: {self}: the file that {missing[0]} names cannot be read")

    def __str__(self) -> str:
        return redact(self.url)

    def connect(self, timeout_s: float) -> "redis.Redis":
        """Return a client that tries each command once and waits `timeout_s` for its reply."""
        options = _options(timeout_s) | {"retry": Retry(NoBackoff(), 0)}
        if not self._is_sentinel:
            return redis.Redis.from_url(self.url, **options)
        return self._find_primary(Sentinel, options)

    def connect_async(self, timeout_s: float) -> "redis.asyncio.Redis":
        """Return the same for an event loop, where a caller says himself how long he waits for a reply.

        The client's own way is `asyncio.wait_for`, which swallows a cancellation that comes as it is done.
        """
        options = _options(timeout_s) | {"retry": AsyncRetry(NoBackoff(), 0), "socket_timeout": None}
        if not self._is_sentinel:
            return redis.asyncio.Redis.from_url(self.url, **options)
        return self._find_primary(AsyncSentinel, options)

    @property
    def _is_sentinel(self) -> bool:
        return self.url.startswith("redis+sentinel://")

    def _names_server(self) -> bool:
        """Return whether scheme, host and database are there, and nothing that would be taken for another part."""
        parts = urlsplit(self.url)
        path = parts.path.strip("/").split("/")
        is_named = bool(path.pop(0)) and not parts.query if self._is_sentinel else parts.port != 0
        is_torn = bool(parts.fragment) or "@" in parts.query  # by a ? or # in a password
        return (
            parts.scheme in SCHEMES
            and bool(parts.hostname)
            and is_named
            and not is_torn
            and int("/".join(path) or 0) >= 0
        )

    def _missing_files(self) -> list[str]:
        parameters = parse_qsl(urlsplit(self.url).query)
        return [name for name, path in parameters if name in FILES and not os.access(path, os.R_OK)]

    def _find_primary(self, kind: Callable[..., Any], options: dict[str, Any]) -> Any:  # noqa: ANN401 - of either client
        """Return a client of whichever server the sentinels call the primary, asked again at each connection."""
        parts = urlsplit(self.url)
        service, _, database = parts.path.strip("/").partition("/")
        credentials, _, hosts = parts.netloc.rpartition("@")
        user, _, password = credentials.partition(":")
        sentinels = [(host, int(port or SENTINEL_PORT)) for host, _, port in map(_split_port, hosts.split(","))]
        known = {"username": unquote(user) or None, "password": unquote(password) or None, "db": int(database or 0)}
        return kind(sentinels, sentinel_kwargs=options).master_for(service, **known, **options)


def redact(url: str) -> str:
    """Return `url` without what may be a password, and without its parameters."""
    scheme, separator, rest = url.partition("://")
    secret, at, hosts = rest.rpartition("@")
    if not separator or "?" in secret:  # the @ may be one of a password among the parameters
        return "what was given"
    return f"{scheme}{separator}{at and '***@'}{hosts.partition('?')[0]}"


def reason_of(error: BaseException) -> str:
    """Return why a server cannot be used: what the system says, else the kind of the error. Nothing that was sent."""
    origin: BaseException | None = error
    while origin is not None:
        if isinstance(origin, OSError) and origin.strerror:
            return origin.strerror
        origin = origin.__cause__ or origin.__context__
    return type(error).__name__


def _split_port(host: str) -> tuple[str, str, str]:
    return host.partition(":")


def _options(timeout_s: float) -> dict[str, Any]:
    return {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s, "protocol": 2}
