"""How many requests the claiming thread may take; the computing thread sets it."""

import threading


class ClaimCapacity:
    """What may be claimed: as many requests as the engine takes, less those that are claimed but not yet in it.

    Leaving the context closes it.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._engine_capacity = 0
        self._num_on_the_way = 0
        self._is_closed = False

    def set(self, engine_capacity: int, *, num_arrived: int = 0) -> None:
        """Set how many more requests the engine takes, now that `num_arrived` claimed ones have reached it."""
        with self._changed:
            self._engine_capacity = engine_capacity
            self._num_on_the_way -= num_arrived
            self._changed.notify()

    def depart(self, count: int) -> None:
        """Count `count` claimed requests as on their way to the engine."""
        with self._changed:
            self._num_on_the_way += count

    def wait(self) -> int:
        """Wait until any request may be claimed; return how many, 0 when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._engine_capacity > self._num_on_the_way)
            return 0 if self._is_closed else self._engine_capacity - self._num_on_the_way

    def close(self) -> None:
        """Let nothing more be claimed."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self.close()
