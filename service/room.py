"""What the thread that claims may take, told by the thread that computes."""

import threading


class Room:
    """How many requests may be claimed: those that the engine takes, less those on their way to it.

    Leaving the context closes it.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._room = 0
        self._num_coming = 0
        self._is_closed = False

    def set(self, room: int, *, num_arrived: int = 0) -> None:
        """Say how many more the engine takes, now that `num_arrived` have reached it."""
        with self._changed:
            self._room = room
            self._num_coming -= num_arrived
            self._changed.notify()

    def depart(self, count: int) -> None:
        """Count claimed requests as on their way."""
        with self._changed:
            self._num_coming += count

    def wait(self) -> int:
        """Return how many may be claimed, once any may; 0 when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._room > self._num_coming)
            return 0 if self._is_closed else self._room - self._num_coming

    def close(self) -> None:
        """Let nothing more be claimed."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self.close()
