"""The order in which waiting requests are claimed. The local queue runs this code; the Redis library keeps the rule.

1. A *line* is what waits for one revision of one model, in one priority. A worker claims from the lines it serves.
2. In a line, tenants take turns by start-time fair queueing. Each has a tag: while it waits the start tag of its next
   request, else its finish tag. The tenant with the least start tag is next (of equal ones the first by name), with its
   oldest request.
3. A tenant that begins to wait starts at the line's virtual time, or at its own finish tag where that is later. Served,
   its start tag becomes the virtual time, and the tag grows by the request's cost. What ends unserved costs nothing.
4. A line where nobody waits forgets its virtual time and all tags: everyone starts at 0 anew.
5. Between lines the one is next whose next request was submitted first, with `PATIENCE_S` of its priority added (of
   equal ones the first to arrive): a bulk request waits at most so much longer than a high one, and never for ever.
6. A request that is taken back has the arrival number and the time of its submission still: it waits in front of what
   its tenant sent later. Claimed again, it costs again.

So of two tenants that wait all the while, neither is served more than the other by over one request's cost of each.

Source: Goyal, Vin, Cheng, *Start-time Fair Queueing*, SIGCOMM 1996.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar

from service.protocol import Priority

PATIENCE_S: dict[Priority, float] = {"high": 0.0, "normal": 5.0, "bulk": 60.0}
"""Seconds for which a request lets those of the highest priority pass that came later."""


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
