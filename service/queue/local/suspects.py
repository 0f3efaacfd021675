"""Requests with which a worker died before: the second rule of `service.queue.rules`."""

from bisect import bisect_left, insort
from collections import defaultdict

from service.protocol import DeadRequest, End
from service.queue.local.entry import Entry, Served
from service.queue.local.workers import Worker
from service.queue.rules import CLEARED_AFTER, QUARANTINE_ERROR


class Suspects:
    """Those that wait and with which a worker died before."""

    def __init__(self) -> None:
        self._spread: defaultdict[Served, list[Entry]] = defaultdict(list)
        self._last_chances: defaultdict[Served, list[Entry]] = defaultdict(list)
        self._reserved: dict[Served, Worker] = {}

    def add(self, entry: Entry) -> None:
        """Let `entry` wait, the oldest in front."""
        insort(self._own(entry), entry, key=_arrival)

    def remove(self, entry: Entry) -> None:
        """Take out one that waits no longer."""
        own = self._own(entry)
        del own[bisect_left(own, entry.arrival, key=_arrival)]
        if entry.has_last_chance:
            self._reserved.pop(entry.served, None)

    def last_chance_for(self, worker: Worker) -> Entry | None:
        """Return the last chance for which `worker` is reserved, or is from now on; `None` when it is free."""
        for served in worker.models.items():
            if self._last_chances[served] and self._reserve(served, worker) is worker:
                return self._last_chances[served][0]
        return None

    def next_for(self, worker: Worker, capacity: int) -> Entry | None:
        """Return the next that `worker` may take without it becoming too many; `None` when there is none.

        Args:
            worker: Who asks.
            capacity: What it held when it asked, and the most that it asked for.
        """
        firsts = [own[0] for served in worker.models.items() if (own := self._spread[served])]
        if not firsts or worker.num_suspects >= max(1, capacity // 4):
            return None
        return min(firsts, key=_arrival)

    def sets_apart(self, worker: Worker) -> bool:
        """Whether `worker` is reserved, or holds a last chance: it gets nothing else."""
        return worker.holds_last_chance or worker in self._reserved.values()

    def _own(self, entry: Entry) -> list[Entry]:
        return (self._last_chances if entry.has_last_chance else self._spread)[entry.served]

    def _reserve(self, served: Served, worker: Worker) -> Worker:
        reserved = self._reserved.get(served)
        if reserved is None or not reserved.models:
            reserved = self._reserved[served] = worker
        return reserved


def is_cleared(entry: Entry) -> bool:
    """Return whether a suspect has shown that it does not kill its worker where another died."""
    return entry.is_suspect and len(entry.log) - entry.claimed_at >= CLEARED_AFTER


def given_up(entry: Entry) -> End | None:
    """Return the end of a request with which too many workers died."""
    if entry.attempts < entry.max_attempts:
        return None
    return End(finish_reason="error", quarantined=True, error=f"{entry.attempts}{QUARANTINE_ERROR}")


def dead_request(entry: Entry, ended: float) -> DeadRequest:
    """Return what is kept of a request that was given up at `ended` (Unix time, s)."""
    return DeadRequest(
        id=entry.request.id,
        tenant=entry.tenant,
        model=entry.request.model,
        revision=entry.request.revision,
        attempts=entry.attempts,
        ended=ended,
    )


def _arrival(entry: Entry) -> int:
    return entry.arrival
