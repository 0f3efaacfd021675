"""Threads of a worker beside the one that computes: one makes calls that block, one beats."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")


class SerialExecutor:
    """A thread that makes calls one after the other, for threads that must not block.

    Leaving the context does not wait for what is asked already, nor does the end of the process: a call may be waiting
    for a queue that never comes back.
    """

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._calls.put(None)

    def submit(self, call: Callable[[], T]) -> "Future[T]":
        """Have `call` made after those before it; return what is to come of it."""
        future: Future[T] = Future()
        self._calls.put(partial(_make, call, future))
        return future

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()


def _make(call: Callable[[], T], future: "Future[T]") -> None:
    try:
        result = call()
    except BaseException as error:  # whoever asked is told
        future.set_exception(error)
    else:
        future.set_result(result)


class Heartbeat:
    """While entered, calls `beat` on a thread of its own, every `period_s`."""

    def __init__(self, period_s: float, beat: Callable[[], None]) -> None:
        self._period_s = period_s
        self._beat = beat
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._period_s):
            self._beat()
