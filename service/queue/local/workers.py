"""Workers as the local queue knows them: what each serves and holds, how long it is believed to live, who waits."""

import asyncio
import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from service.queue.local.entry import Entry


@dataclass(slots=True, eq=False)
class Worker:
    """One that has registered."""

    models: dict[str, str]
    """Name → revision; none when it claims no more."""
    lease_end: float
    """Time of the queue's clock."""
    claims: dict[str, Entry] = field(default_factory=dict)
    """What it holds, by id."""

    @property
    def num_suspects(self) -> int:
        """How much of what it holds another worker died with."""
        return sum(entry.is_suspect for entry in self.claims.values())

    @property
    def holds_last_chance(self) -> bool:
        """Whether it holds what must run alone."""
        return any(entry.has_last_chance for entry in self.claims.values())

    def has_its_share(self, num_waiting: int, rivals: "Sequence[Worker]") -> bool:
        """Whether it holds enough, so that it and its rivals have equally much once all that waits is claimed."""
        num_held = len(self.claims) + sum(len(rival.claims) for rival in rivals)
        return len(self.claims) >= math.ceil((num_waiting + num_held) / (1 + len(rivals)))


class Workers:
    """Those that have registered, by name, and which of them wait for work."""

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._workers: dict[str, Worker] = {}
        self._waiting: dict[str, asyncio.Event] = {}
        """Of the claims that wait."""

    def add(self, name: str, models: dict[str, str], now: float) -> None:
        """Let a worker begin, with nothing."""
        self._workers[name] = Worker(models, now + self._lease_s)

    def get(self, name: str) -> Worker | None:
        """Return a worker whose lease was not lost."""
        return self._workers.get(name)

    def renew(self, name: str, now: float) -> bool:
        """Renew a worker's lease; False when it was lost."""
        if name not in self._workers:
            return False
        self._workers[name].lease_end = now + self._lease_s
        return True

    def retire(self, name: str) -> None:
        """Let a worker serve nothing more."""
        if name in self._workers:
            self._workers[name].models = {}
        self.wake()

    def remove(self, name: str) -> None:
        """Know a worker no more."""
        self.retire(name)
        del self._workers[name]

    def hold(self, name: str, entry: Entry) -> None:
        """Let a worker hold `entry`."""
        self._workers[name].claims[entry.request.id] = entry

    def let_go(self, entry: Entry) -> None:
        """Take `entry` out of its worker's hands."""
        if entry.worker is not None:
            del self._workers[entry.worker].claims[entry.request.id]
        self.wake()  # one that held a last chance, or many suspects, may have others now

    def held(self) -> list[Entry]:
        """Return what all of them hold."""
        return [entry for worker in self._workers.values() for entry in worker.claims.values()]

    def num_held(self) -> int:
        """Count it."""
        return sum(len(worker.claims) for worker in self._workers.values())

    def alive(self, now: float) -> list[Worker]:
        """Return those whose lease holds."""
        return [worker for worker in self._workers.values() if worker.lease_end > now]

    def overdue(self, now: float) -> list[str]:
        """Return the names of those whose lease has run out."""
        return [name for name, worker in self._workers.items() if worker.lease_end <= now]

    # Who waits for work

    @contextlib.contextmanager
    def waiting(self, name: str) -> Iterator[asyncio.Event]:
        """Count this worker among those who wait; what it is given is set whenever there may be something for it."""
        self._waiting[name] = asyncio.Event()
        try:
            yield self._waiting[name]
        finally:
            del self._waiting[name]
            self.wake()  # what it left is for the others alone now

    def wake(self) -> None:
        """Let all who wait look again."""
        for changed in self._waiting.values():
            changed.set()

    def may_claim(self, name: str) -> bool:
        """Whether there can ever be something for this worker."""
        return name in self._workers and bool(self._workers[name].models)

    def rivals(self, worker: Worker) -> list[Worker]:
        """Return the others who wait for any of what `worker` serves."""
        others = [self._workers[name] for name in self._waiting if name in self._workers]
        served = worker.models.items()
        return [other for other in others if other is not worker and not served.isdisjoint(other.models.items())]
