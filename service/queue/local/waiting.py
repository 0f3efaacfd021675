"""All that waits, each in its place: in a line, among the suspects, or for its last chance."""

from collections import Counter
from collections.abc import Iterator, Sequence

from service.config import QueueSettings
from service.protocol import Priority, Request
from service.queue.local.entry import Entry, Served
from service.queue.local.fair_line import FairLine, next_of
from service.queue.local.suspects import Suspects
from service.queue.local.workers import Worker
from service.queue.rules import PATIENCE_S


class Waiting:
    """The requests that no worker holds and that have not ended."""

    def __init__(self) -> None:
        self.num_tokens = 0
        """Sum of their costs."""
        self._entries: dict[str, Entry] = {}
        self._tenants: Counter[str] = Counter()
        self._lines: dict[tuple[Served, Priority], FairLine[Entry]] = {}
        self._suspects = Suspects()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def fullness(self, requests: Sequence[Request], caps: QueueSettings) -> str | None:
        """Return what keeps `requests` from waiting too; `None` when nothing does."""
        tenants = Counter(request.tenant for request in requests)
        if any(self._tenants[tenant] + count > caps.max_tenant_depth for tenant, count in tenants.items()):
            return f"your share of the queue is full: {caps.max_tenant_depth} requests may wait"
        is_deep = len(self) + len(requests) > caps.max_queue_depth
        if requests and (is_deep or self.num_tokens + sum(r.cost for r in requests) > caps.max_queue_tokens):
            return f"the queue is full: {len(self)} requests ({self.num_tokens} tokens) wait"
        return None

    def add(self, entry: Entry) -> None:
        """Let `entry` wait, in the place that its attempts give it."""
        self._entries[entry.request.id] = entry
        self._tenants[entry.tenant] += 1
        self.num_tokens += entry.cost
        (self._suspects if entry.is_suspect else self._line(entry)).add(entry)

    def remove(self, entry: Entry) -> None:
        """Take out one that has ended."""
        self._forget(entry)
        (self._suspects if entry.is_suspect else self._line(entry)).remove(entry)

    def serve(self, entry: Entry) -> None:
        """Take out what `next_for` returned."""
        self._forget(entry)
        if entry.is_suspect:
            self._suspects.remove(entry)
        else:
            self._line(entry).serve(entry)

    def next_for(self, worker: Worker, capacity: int, rivals: Sequence[Worker]) -> Entry | None:
        """Return what `worker` is to take next, by the rules of `service.queue.rules`; `None`: nothing now.

        Args:
            worker: Who asks.
            capacity: What it held when it asked, and the most that it asked for.
            rivals: Others who wait for the same, with whom it shares.
        """
        if worker.holds_last_chance:
            return None
        last_chance = self._suspects.last_chance_for(worker)
        if last_chance is not None:
            return None if worker.claims else last_chance
        return self._suspects.next_for(worker, capacity) or self._next_ordinary(worker, rivals)

    def _next_ordinary(self, worker: Worker, rivals: Sequence[Worker]) -> Entry | None:
        places = [(served, priority) for served in worker.models.items() for priority in PATIENCE_S]
        lines = [self._lines[place] for place in places if place in self._lines]
        free = [rival for rival in rivals if not self._suspects.sets_apart(rival)]
        if worker.has_its_share(sum(map(len, lines)), free):
            return None
        return next_of(lines)

    def _line(self, entry: Entry) -> FairLine[Entry]:
        place = entry.served, entry.request.priority
        if place not in self._lines:
            self._lines[place] = FairLine(entry.request.priority)
        return self._lines[place]

    def _forget(self, entry: Entry) -> None:
        del self._entries[entry.request.id]
        self.num_tokens -= entry.cost
        self._tenants[entry.tenant] -= 1
        if not self._tenants[entry.tenant]:
            del self._tenants[entry.tenant]
