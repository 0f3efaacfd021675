"""A seeded mix of faults over many streams: none lost, none repeated, none wrong, and a table of what was done to them.

    python -m tests.faults.chaos --streams 1000 --seed 1

A fault every so often while clients read streams without a pause; some of them leave in the middle for good. Each
stream is held, token for token, against the answer of a server that nothing happens to.
"""

import argparse
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.scene import check_secrecy, make_bodies
from tests.fleet.client import Body, Client, Oracle, Refused, Streamed
from tests.fleet.fleet import Fleet, Member
from tests.fleet.program import Program
from tests.fleet.redis_server import HOST, free_port
from tests.fleet.waiting import wait_until

BUNDLED = Path(__file__).parents[2] / "service" / "checkpoints" / "shakespeare"
LEASE_S = 2.0
PAUSE_S = 3 * LEASE_S
NUM_CLIENTS = 24
MAX_TOKENS = 160
LEFT = "left"
LEAVING = 0.1
"""Share of the clients who leave in the middle."""
WORKER_OPTIONS = (f"--lease-s={LEASE_S}", "--drain-s=0.2")


class Left(Exception):
    """This client has read enough."""


@dataclass
class Counts:
    """What was done, and what came of it."""

    faults: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    num_tokens: int = 0
    num_breaks: int = 0


class Disturber:
    """Does one fault after another to a fleet, and mends it again.

    Args:
        fleet: Members that die are started again by someone else.
        rng: Draws fault, victim and time.
        counts: Counts those that really happened.
    """

    def __init__(self, fleet: Fleet, rng: random.Random, counts: Counts) -> None:
        self._fleet = fleet
        self._rng = rng
        self._counts = counts
        self._bag: list[str] = []

    def disturb(self) -> None:
        """Do one: each comes up as often as its weight says before any comes up again."""
        if not self._bag:
            self._bag = [name for name, (_, weight) in self._faults().items() for _ in range(weight)]
            self._rng.shuffle(self._bag)
        name = self._bag.pop()
        do, _ = self._faults()[name]
        if do():
            self._counts.faults[name] += 1

    def disturb_until(self, over: threading.Event) -> None:
        """Do one after another."""
        while not over.wait(self._rng.uniform(0.2, 1.0)):
            self.disturb()

    def _faults(self) -> dict[str, tuple[Callable[[], bool], int]]:
        """What can be done, each to a victim that is drawn now, and its weight."""
        worker, gateway = self._rng.choice(self._fleet.workers), self._rng.choice(self._fleet.gateways)
        return {
            "worker killed (SIGKILL)": (lambda: self._kill(worker), 4),
            "worker stopped for 3 leases (SIGSTOP)": (lambda: self._stop(worker, PAUSE_S), 2),
            "worker ended (SIGTERM)": (lambda: self._end(worker), 2),
            "gateway killed (SIGKILL)": (lambda: self._kill(gateway), 2),
            "Redis killed and restarted (SIGKILL)": (self._restart_redis, 2),
            "Redis stopped for 2 s (SIGSTOP)": (lambda: self._stop(self._fleet.redis, 2.0), 1),
            "connections worker–Redis reset": (lambda: self._reset(worker), 2),
            "connections gateway–Redis reset": (lambda: self._reset(gateway), 2),
            "worker cut from Redis for 1 s": (lambda: self._cut(worker), 2),
            "gateway cut from Redis for 1 s": (lambda: self._cut(gateway), 2),
        }

    def _kill(self, program: Program) -> bool:
        lives = len(program.exits)
        program.kill()
        return program.exits[lives:] == [-9]

    def _end(self, program: Program) -> bool:
        if not program.is_running:
            return False
        life = len(program.exits)  # before, for one that has just begun ends at once, and is started again
        program.terminate()
        return program.wait(life) in (0, 1)

    def _stop(self, program: Program, seconds: float) -> bool:
        if not program.is_running:
            return False
        program.pause()
        time.sleep(seconds)
        program.resume()
        return True

    def _restart_redis(self) -> bool:
        self._fleet.redis.restart()
        return self._fleet.redis.exits[-1] == -9

    def _reset(self, member: Member) -> bool:
        before = member.network.num_broken
        member.network.reset()
        return member.network.num_broken > before

    def _cut(self, member: Member) -> bool:
        before = member.network.num_broken
        member.network.cut()
        time.sleep(1.0)
        member.network.heal()
        return member.network.num_broken > before


def read(fleet: Fleet, number: int, body: Body, leaves_after: int | None) -> tuple[Body, Streamed]:
    """Read a stream to its end, or up to where this client leaves, for good: then nobody wants it any more."""

    def leave(got: Streamed) -> None:
        if leaves_after is not None and len(got.token_ids) >= leaves_after:
            raise Left

    urls = fleet.urls
    got = Streamed()
    with Client([urls[number % len(urls)], urls[(number + 1) % len(urls)]]) as client:
        try:
            client.stream(body, got=got, on_frame=leave, outlives_client=leaves_after is None)
        except (Left, Refused, AssertionError) as error:
            got.error = str(error) or LEFT
    return body, got


def judge(oracle: Oracle, body: Body, got: Streamed, leaves: bool, counts: Counts) -> None:
    """Hold a stream against the oracle; of one whose client leaves, what had come."""
    counts.num_tokens += len(got.token_ids)
    counts.num_breaks += got.num_breaks
    try:
        if leaves:
            oracle.check_beginning(body, got)
        else:
            oracle.check(body, got)
    except AssertionError as error:
        counts.outcomes["lost or wrong"] += 1
        counts.wrong.append(str(error))
    else:
        outcome = "left by its client, right so far" if leaves else "complete, every token as undisturbed"
        counts.outcomes[outcome] += 1


@contextmanager
def undisturbed(folder: Path, model: Path) -> Iterator[Oracle]:
    """A server of its own, which nothing happens to."""
    port = free_port()
    command = [sys.executable, "-m", "service", "serve", f"--model={model}", f"--port={port}", "--log-level=warning"]
    with Program("oracle", command, folder) as server, Oracle(f"http://{HOST}:{port}") as oracle:
        wait_until(lambda: "http://" in server.words(), lambda: f"the oracle serves\n{server.tail()}")
        yield oracle


def run(folder: Path, model: Path, num_streams: int, seed: int) -> Counts:
    """Run it all."""
    rng, counts, over = random.Random(seed), Counts(), threading.Event()
    bodies = make_bodies(num_streams, MAX_TOKENS, seed=seed)
    leaving = [rng.randint(1, MAX_TOKENS // 2) if rng.random() < LEAVING else None for _ in bodies]
    with undisturbed(folder, model) as oracle, Fleet(folder / "fleet", model, worker_options=WORKER_OPTIONS) as fleet:
        disturber = Disturber(fleet, rng, counts)
        with fleet.keep_alive(), ThreadPoolExecutor(NUM_CLIENTS + 1) as threads:
            disturbing = threads.submit(disturber.disturb_until, over)
            try:
                reading = [threads.submit(read, fleet, n, bodies[n], leaving[n]) for n in range(num_streams)]
                results = [future.result() for future in reading]
            finally:
                over.set()
            disturbing.result()
        fleet.repair()
        wait_until(lambda: fleet.num_open() == 0, "nothing waits or runs any more")
        check_secrecy(fleet)
        for (body, got), leaves_after in zip(results, leaving, strict=True):
            judge(oracle, body, got, leaves_after is not None, counts)
    return counts


def show(counts: Counts) -> None:
    """Print the tables."""
    lines = ["| Fault | Times |", "|---|---|"]
    lines += [f"| {name} | {count} |" for name, count in sorted(counts.faults.items())]
    lines += ["", "| Streams | Number |", "|---|---|"]
    lines += [f"| {name} | {count} |" for name, count in sorted(counts.outcomes.items())]
    lines += [
        "",
        f"{counts.num_tokens} tokens compared; {counts.num_breaks} times a client had to ask again.",
        *counts.wrong,
    ]
    sys.stdout.write("\n".join(lines) + "\n")


def main() -> int:
    """Run it; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", type=Path, default=BUNDLED, help="checkpoint folder")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="minigpt-chaos-") as folder:
        counts = run(Path(folder), options.model, options.streams, options.seed)
    show(counts)
    sys.stdout.write(f"{options.streams} streams, seed {options.seed}, {time.monotonic() - began:.0f} s\n")
    return 1 if counts.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
