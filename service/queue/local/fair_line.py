"""A line of waiting requests in which tenants take turns: the order of `service.queue.rules`."""

from bisect import bisect_left, insort
from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar

from service.protocol import Priority
from service.queue.rules import PATIENCE_S


class Waiter(Protocol):
    """One who waits in a line."""

    @property
    def tenant(self) -> str:
        """Whose it is."""

    @property
    def cost(self) -> int:
        """What its tenant pays when it is served."""

    @property
    def submitted(self) -> float:
        """Seconds, by any clock that all share."""

    @property
    def arrival(self) -> int:
        """Number in the order of all submissions; no other has it."""


W = TypeVar("W", bound=Waiter)


class FairLine(Generic[W]):
    """What waits for one revision of one model, in one priority."""

    def __init__(self, priority: Priority) -> None:
        self.patience_s = PATIENCE_S[priority]
        self._waiting: dict[str, list[W]] = {}
        """By tenant, the oldest first; no tenant without any."""
        self._tags: dict[str, int] = {}
        self._virtual_time = 0

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def add(self, waiter: W) -> None:
        """Let `waiter` wait, behind what its tenant sent earlier."""
        tenant = waiter.tenant
        if tenant not in self._waiting:
            self._waiting[tenant] = []
            self._tags[tenant] = max(self._virtual_time, self._tags.get(tenant, 0))
        insort(self._waiting[tenant], waiter, key=_arrival)

    def first(self) -> W | None:
        """Return whose turn it is; `None` when nobody waits."""
        if not self._waiting:
            return None
        return self._waiting[min(self._waiting, key=lambda tenant: (self._tags[tenant], tenant))][0]

    def serve(self, waiter: W) -> None:
        """Take out the one whose turn it is: its tenant pays."""
        self._virtual_time = self._tags[waiter.tenant]
        self._tags[waiter.tenant] += waiter.cost
        self.remove(waiter)

    def remove(self, waiter: W) -> None:
        """Take out one that waits no longer: nobody pays."""
        own = self._waiting[waiter.tenant]
        del own[bisect_left(own, waiter.arrival, key=_arrival)]
        if not own:
            del self._waiting[waiter.tenant]
        if not self._waiting:
            self._tags.clear()
            self._virtual_time = 0


def next_of(lines: Iterable[FairLine[W]]) -> W | None:
    """Return who is next of all that wait in `lines`; `None` when nobody does."""
    firsts = [(line.patience_s, first) for line in lines if (first := line.first()) is not None]
    if not firsts:
        return None
    return min(firsts, key=lambda pair: (pair[1].submitted + pair[0], pair[1].arrival))[1]


def _arrival(waiter: Waiter) -> int:
    return waiter.arrival
