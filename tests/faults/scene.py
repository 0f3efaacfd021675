"""A scene: streams under way in a fleet while something breaks; and what must hold when it is over.

The checks: each stream came to one end, with indices 0 to n - 1 once each (`Streamed` sees to both), and what came is
what the queue has stored and what an undisturbed server answers. Nothing waits or runs any more; memory and descriptors
are back to where they were; the prompt stands in no log and no metric. That its fault really happened, and that nothing
was computed for one who is gone, each case shows by itself.
"""

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Self

from tests.fleet.client import Body, Client, Oracle, Refused, Streamed
from tests.fleet.fleet import BRISK_S, SLOW_S, Fleet, Member
from tests.fleet.waiting import wait_until

SECRET = "quagmire of xylophones"
"""Begins every prompt, and is nowhere else."""
MEMORY_SLACK_BYTES = 64 * 2**20
DESCRIPTOR_SLACK = 4
"""Files that a process may open once, and keep."""


class Scene:
    """While entered, a client for each of `bodies` reads its stream; leaving repairs, waits for the ends, checks all.

    Args:
        fleet: Whole, and idle.
        oracle: Knows the undisturbed answers.
        bodies: What is asked for.
        check: What each stream must be in the end; `None`: what the oracle says.
    """

    def __init__(
        self,
        fleet: Fleet,
        oracle: Oracle,
        bodies: Sequence[Body],
        check: Callable[[Body, Streamed], None] | None = None,
    ) -> None:
        self.fleet = fleet
        self.bodies = bodies
        self.streams = [Streamed() for _ in bodies]
        self._check = check or oracle.check
        self._before = Footprint(fleet)
        self._rows = {worker: worker.num_rows() for worker in fleet.workers}
        self._threads = ThreadPoolExecutor(max(1, len(bodies)))

    def __enter__(self) -> Self:
        self._reading = [
            self._threads.submit(self._read, number, body, got)
            for number, (body, got) in enumerate(zip(self.bodies, self.streams, strict=True))
        ]
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.fleet.repair()
        self._threads.shutdown()
        if kind is None:
            self._check_all()

    def wait_for_tokens(self, count: int = 1) -> None:
        """Return once every stream has so many; from then on they crawl, and none ends before something is done."""
        self.fleet.set_pace(BRISK_S)
        wait_until(
            lambda: all(len(got.token_ids) >= count for got in self.streams) or any(map(_failed, self._reading)),
            lambda: f"{count} tokens in {[len(got.token_ids) for got in self.streams]}\n{self.fleet.tails()}",
        )
        self.fleet.set_pace(SLOW_S)

    def wait_for_ends(self) -> None:
        """Return once every stream has come to its end."""
        self.fleet.set_pace(BRISK_S)
        wait_until(lambda: self.num_unfinished() == 0, lambda: f"all streams have ended\n{self.fleet.tails()}")

    def wait_for_victim(self) -> Member:
        """Return, once every stream has some tokens, the worker that computed the most: it has something to lose."""
        self.wait_for_tokens(20)
        return max(self.fleet.workers, key=lambda worker: worker.num_rows() - self._rows[worker])

    def num_unfinished(self) -> int:
        """Return how many streams still run."""
        return sum(not future.done() for future in self._reading)

    def _read(self, number: int, body: Body, got: Streamed) -> None:
        urls = self.fleet.urls
        with Client(urls[number % len(urls) :] + urls[: number % len(urls)]) as client:
            try:
                client.stream(body, got=got)
            except Refused as refusal:
                got.error = refusal.code

    def _check_all(self) -> None:
        try:
            for future in self._reading:
                future.result()
            for body, got in zip(self.bodies, self.streams, strict=True):
                self._check(body, got)
            self._check_stored()
            self._before.check(self.fleet)
            check_secrecy(self.fleet)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.fleet.tails()}") from error

    def _check_stored(self) -> None:
        with self.fleet.client() as client:
            for got in self.streams:
                if got.id is not None and got.error is None:
                    stored = client.stored(got.id)
                    assert (stored.token_ids, stored.text) == (got.token_ids, got.text), f"{got.id}: stored otherwise"
                    assert stored.finish_reason == got.finish_reason


class Footprint:
    """What a fleet occupied when it was idle."""

    def __init__(self, fleet: Fleet) -> None:
        self._descriptors = fleet.descriptors()
        self._memory = fleet.memory()

    def check(self, fleet: Fleet) -> None:
        """Fail unless the fleet comes to rest, and those of its processes that still live to what they had."""
        wait_until(lambda: fleet.num_open() == 0, "nothing waits or runs any more")
        now: dict[int, int] = {}

        def is_back() -> bool:
            now.update(fleet.descriptors())
            return all(now[pid] <= had + DESCRIPTOR_SLACK for pid, had in self._descriptors.items() if pid in now)

        wait_until(is_back, lambda: f"descriptors are back: {self._descriptors} before, {now} after")
        for pid, size in fleet.memory().items():
            had = self._memory.get(pid, size)
            assert size <= had + MEMORY_SLACK_BYTES, f"process {pid} grew from {had} to {size} bytes"


def check_secrecy(fleet: Fleet) -> None:
    """Fail where a log or a metric has a prompt."""
    assert SECRET not in fleet.words(), "a prompt stands in a log or a metric"


def make_bodies(
    count: int, num_tokens: int, *, num_prompt: int = 40, seed: int = 0, end_of_text_id: int | None = None
) -> list[Body]:
    """Return bodies that differ in prompt and seed.

    Args:
        count: How many.
        num_tokens: Of each answer.
        num_prompt: Characters, at most, of a prompt besides `SECRET`.
        seed: Of what differs.
        end_of_text_id: What is never drawn, so that no answer ends earlier; `None`: they may.
    """
    rng = random.Random(seed)
    never = {} if end_of_text_id is None else {"logit_bias": {str(end_of_text_id): -100}}
    return [
        {
            "prompt": f"{SECRET} {''.join(rng.choices('abcdefgh ', k=rng.randint(num_prompt // 2, num_prompt)))}",
            "max_tokens": num_tokens,
            "seed": rng.getrandbits(63),
            **never,
        }
        for _ in range(count)
    ]


def _failed(future) -> bool:
    return future.done() and future.exception() is not None
