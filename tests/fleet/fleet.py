"""Gateways and workers, real processes around one Redis, each reached through a network that can be made bad."""

import contextlib
import re
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import httpx
import psutil

from tests.fleet.client import Client
from tests.fleet.program import Program
from tests.fleet.proxy import Proxy
from tests.fleet.redis_server import HOST, RedisServer, free_port
from tests.fleet.waiting import PATIENCE_S, wait_until

ROOT = Path(__file__).parents[2]
MODEL = "tiny"
LOGGING = ("--log-format=json", "--log-level=debug")
PACE = "MINIGPT_TEST_PACE"
"""Environment variable of the workers: a file with the seconds that a step is to take more (tests/faults)."""
BRISK_S, SLOW_S = 0.001, 0.05


class Member(Program):
    """A process of the fleet, and the proxy between it and Redis.

    Args:
        name: Of its log.
        verb: `gateway` or `worker`.
        folder: Where its log lies.
        command: What runs, with its options.
        proxy: Between it and its Redis; `None`: nothing is.
        env: What its environment has besides this process' own.
    """

    def __init__(
        self, name: str, verb: str, folder: Path, command: Sequence[str], proxy: Proxy | None, env: dict[str, str]
    ) -> None:
        self.port = free_port()
        self.proxy = proxy
        port = f"--{'port' if verb == 'gateway' else 'metrics-port'}={self.port}"
        super().__init__(name, [sys.executable, "-m", *command, port], folder, env=env)

    @property
    def url(self) -> str:
        """Where it answers HTTP: a gateway everything, a worker its probes and metrics."""
        return f"http://{HOST}:{self.port}"

    @property
    def network(self) -> Proxy:
        """What lies between it and Redis."""
        assert self.proxy is not None, f"{self.name} has no proxy"
        return self.proxy

    def metrics(self) -> str:
        """Return its metrics; "" while it does not answer."""
        try:
            return httpx.get(f"{self.url}/metrics", timeout=PATIENCE_S, trust_env=False).text
        except httpx.TransportError:
            return ""

    def num_descriptors(self) -> int:
        """Return how many files and sockets it has open, but for those to its proxy, of which a pool may keep some."""
        peers = [one.raddr.port for one in self.usage.net_connections("tcp") if one.raddr]
        return self.usage.num_fds() - (peers.count(self.proxy.port) if self.proxy else 0)

    def num_rows(self) -> float:
        """Return how much a worker has computed: one for each sequence in each step."""
        return self.metric("batch_size_sum")

    def metric(self, name: str, labels: str = ".*") -> float:
        """Return the sum of a metric over those of its labels that match an expression."""
        lines = re.findall(rf"^minigpt_{name}(?:{{{labels}}})? (\S+)$", self.metrics(), re.MULTILINE)
        return sum(map(float, lines))


class Fleet:
    """`minigpt gateway`s and `minigpt worker`s that share one Redis; all end with it.

    Args:
        folder: For logs and data.
        checkpoint: What is served, as `MODEL`.
        num_gateways: How many.
        num_workers: How many.
        queue: URL of the queue; `None`: a Redis of its own that writes every command to its disk.
        is_proxied: Whether every member reaches its Redis through a proxy of its own.
        gateway_options: More of the gateways' command line.
        worker_options: More of the workers' command line.
        worker_module: What a worker runs in the place of `service`.
        appendfsync: Of its own Redis; `always` loses nothing that was answered.
    """

    def __init__(
        self,
        folder: Path,
        checkpoint: Path,
        *,
        num_gateways: int = 2,
        num_workers: int = 2,
        queue: str | None = None,
        is_proxied: bool = True,
        gateway_options: Sequence[str] = (),
        worker_options: Sequence[str] = (),
        worker_module: str = "service",
        appendfsync: str = "always",
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self._pace = folder / "pace"
        self.gateways: list[Member] = []
        self.workers: list[Member] = []
        self._redis = None if queue else RedisServer(folder, appendonly="yes", appendfsync=appendfsync)
        self._checkpoint = checkpoint
        self._queue = queue
        self._is_proxied = is_proxied
        self._sizes = {"gateway": num_gateways, "worker": num_workers}
        self._options = {"gateway": gateway_options, "worker": worker_options}
        self._modules = {"gateway": "service", "worker": worker_module}
        self._num_started: Counter[str] = Counter()
        self.set_pace(BRISK_S)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as self._stack:
            if self._redis is not None:
                self._stack.enter_context(self._redis)
            for verb, size in self._sizes.items():
                for _ in range(size):
                    self.add(verb)
            self.wait_until_ready()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def redis(self) -> RedisServer:
        """Its own Redis."""
        assert self._redis is not None, "the Redis of this fleet is another's"
        return self._redis

    @property
    def members(self) -> list[Member]:
        """Every gateway and every worker."""
        return [*self.gateways, *self.workers]

    @property
    def urls(self) -> list[str]:
        """Of its gateways."""
        return [gateway.url for gateway in self.gateways]

    def client(self) -> Client:
        """Return one that may ask every gateway."""
        return Client(self.urls)

    def add(self, verb: str, checkpoint: Path | None = None) -> Member:
        """Start one more `gateway` or `worker`; of another `checkpoint`, under the same name."""
        queue, proxy = self._queue or self.redis.url, None
        if self._is_proxied and self._redis is not None:
            proxy = self._stack.enter_context(Proxy(self.redis.port))
            queue = f"redis://{HOST}:{proxy.port}/0"
        model = f"--model={MODEL}={checkpoint or self._checkpoint}"
        command = [self._modules[verb], verb, f"--queue={queue}", model, *LOGGING, *self._options[verb]]
        env = {"PYTHONPATH": str(ROOT), PACE: str(self._pace)}
        member = Member(f"{verb}-{self._num_started[verb]}", verb, self.folder, command, proxy, env)
        self._num_started[verb] += 1
        (self.gateways if verb == "gateway" else self.workers).append(self._stack.enter_context(member))
        return member

    def retire(self, member: Member, *, hurried: bool = False) -> None:
        """End one for good: SIGTERM, and return when it has drained; `hurried`: SIGTERM until it has ended."""
        (self.gateways if member in self.gateways else self.workers).remove(member)
        member.terminate()
        while hurried and member.is_running:
            member.terminate()
        wait_until(lambda: not member.is_running, lambda: f"{member.name} ends\n{member.tail()}")

    def repair(self) -> None:
        """Make everything whole again: what is dead lives, what is paused goes on, every network is a good one."""
        self.set_pace(BRISK_S)
        if self._redis is not None:
            self._repair(self._redis)
        for member in self.members:
            if member.proxy is not None:
                member.proxy.heal()
            self._repair(member)
        self.wait_until_ready()

    @contextlib.contextmanager
    def keep_alive(self) -> Iterator[None]:
        """Start again, while entered, every member that ends, as a supervisor does."""
        over = threading.Event()

        def keep() -> None:
            while not over.wait(0.05):
                for member in self.members:
                    member.start()

        keeper = threading.Thread(target=keep, name="keeper")
        keeper.start()
        try:
            yield
        finally:
            over.set()
            keeper.join()

    def wait_until_ready(self) -> None:
        """Return once every gateway sees every worker.

        Raises:
            AssertionError: it does not come to that; with the last words of all.
        """
        try:
            for gateway in self.gateways:
                wait_until(lambda: self._is_ready(gateway), f"{gateway.name} sees all workers", period_s=0.05)  # noqa: B023
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.tails()}") from None

    def tails(self) -> str:
        """Return the last words of all."""
        programs: list[Program] = [*self.members, *([self._redis] if self._redis else [])]
        return "\n".join(program.tail() for program in programs)

    def set_pace(self, seconds: float) -> None:
        """Let each step of paced workers take so much longer, from the next one on."""
        written = self.folder / "pace.new"
        written.write_text(str(seconds))
        written.replace(self._pace)

    def num_open(self) -> float:
        """Return how many sequences wait or run."""
        return self.gateways[0].metric("requests_waiting") + self.gateways[0].metric("requests_running")

    def num_rows(self) -> float:
        """Return how much the living workers have computed."""
        return sum(worker.num_rows() for worker in self.workers)

    def words(self) -> str:
        """Return everything that anyone has logged, and every metric there is."""
        logs = [file.read_text(errors="replace") for file in sorted(self.folder.glob("*.log"))]
        return "\n".join([*logs, *(member.metrics() for member in self.members)])

    def descriptors(self) -> dict[int, int]:
        """Return how many files and sockets each member has open, by process id."""
        return {member.pid: member.num_descriptors() for member in self.members if member.is_running}

    def memory(self) -> dict[int, int]:
        """Return the bytes that each member occupies, by process id."""
        return {member.pid: member.usage.memory_info().rss for member in self.members if member.is_running}

    def _is_ready(self, gateway: Member) -> bool:
        for member in self.members:
            assert member.is_running, f"{member.name} has ended with status {member.exits[-1]}"
        # A worker shows metrics once its model is loaded; one that is dead may count for a while.
        return all(worker.metrics() for worker in self.workers) and gateway.metric("workers") == len(self.workers)

    @staticmethod
    def _repair(program: Program) -> None:
        if program.is_running and program.usage.status() == psutil.STATUS_STOPPED:
            program.resume()
        program.start()
