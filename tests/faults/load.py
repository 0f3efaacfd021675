"""Load that does not stop while something is done to a fleet: each client asks for one stream after the other."""

import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Self

from tests.fleet.client import Body, Client, Streamed
from tests.fleet.fleet import Fleet
from tests.fleet.waiting import wait_until


class Load:
    """While entered, a client for each of `bodies` asks, again and again; leaving waits for the last ends, checks all.

    Args:
        fleet: Asked are the gateways that it has when a stream begins.
        bodies: What is asked for.
        check: What each stream must be.
    """

    def __init__(self, fleet: Fleet, bodies: Sequence[Body], check: Callable[[Body, Streamed], None]) -> None:
        self.streams: list[tuple[Body, Streamed]] = []
        """All that began."""
        self._fleet = fleet
        self._bodies = bodies
        self._check = check
        self._over = threading.Event()
        self._threads = ThreadPoolExecutor(len(bodies))

    def __enter__(self) -> Self:
        self._asking = [self._threads.submit(self._ask, *numbered) for numbered in enumerate(self._bodies)]
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._over.set()
        self._threads.shutdown()
        if kind is None:
            for future in self._asking:
                future.result()
            for body, got in list(self.streams):
                self._check(body, got)

    def wait_for_more(self) -> None:
        """Return once more streams have come to their end, as many as there are clients."""
        before = self.num_whole()
        wait_until(
            lambda: self.num_whole() >= before + len(self._bodies) or any(future.done() for future in self._asking),
            lambda: f"more than {before} streams end\n{self._fleet.tails()}",
        )

    def num_whole(self) -> int:
        """Return how many streams have ended."""
        return sum(got.is_whole for _, got in list(self.streams))

    def num_under_way(self, url: str) -> int:
        """Return how many streams are being read at a gateway."""
        return sum(got.url == url and got.token_ids != [] and not got.is_whole for _, got in list(self.streams))

    def _ask(self, number: int, body: Body) -> None:
        for turn in itertools.count(number):
            if self._over.is_set():
                return
            urls = self._fleet.urls
            got = Streamed()
            self.streams.append((body, got))
            with Client(urls[turn % len(urls) :] + urls[: turn % len(urls)]) as client:
                client.stream(body, got=got)
