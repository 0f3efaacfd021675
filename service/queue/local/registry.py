"""Every request that is known: found by its id, by the answer that it is a part of, or by an idempotency key."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from service.errors import BadRequest, NotFound
from service.protocol import Idempotency, Request
from service.queue.local.entry import Entry


@dataclass(slots=True, eq=False)
class _Answer:
    """What was submitted together; it is forgotten together."""

    entries: list[Entry]
    idempotency: Idempotency | None


class RequestRegistry:
    """The requests that were submitted, until they are forgotten."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._answers: dict[str, _Answer] = {}
        """By the ids of their requests."""
        self._joined: dict[tuple[str, str], _Answer] = {}
        """By tenant and idempotency key."""
        self._ended: deque[tuple[float, _Answer]] = deque()

    def get(self, request_id: str) -> Entry | None:
        """Return what is known of a request."""
        return self._entries.get(request_id)

    def require(self, request_id: str) -> Entry:
        """Return what is known of a request.

        Raises:
            NotFound: nothing.
        """
        if request_id not in self._entries:
            raise NotFound(f"no request '{request_id}': it was never submitted, or ended too long ago")
        return self._entries[request_id]

    def add(self, entries: Sequence[Entry], idempotency: Idempotency | None) -> None:
        """Know `entries`, one answer's."""
        answer = _Answer(list(entries), idempotency)
        for entry in entries:
            self._entries[entry.request.id] = entry
            self._answers[entry.request.id] = answer
            if idempotency is not None:
                self._joined[entry.tenant, idempotency.key] = answer

    def joined(self, requests: Sequence[Request], idempotency: Idempotency | None) -> list[str] | None:
        """Return the ids of what the tenant of `requests` submitted with the same key before; `None`: nothing.

        Raises:
            BadRequest: the key was for something else.
        """
        answer = None if idempotency is None else self._joined.get((requests[0].tenant, idempotency.key))
        if answer is None:
            return None
        if answer.idempotency != idempotency:
            reason = "was sent before with another body; give each request a key of its own"
            raise BadRequest(f"idempotency_key: {reason}", param="idempotency_key")
        return [entry.request.id for entry in answer.entries]

    def find(self, answer_id: str) -> list[Request]:
        """Return the requests of an answer.

        Raises:
            NotFound: it is not known.
        """
        answer = self._answers.get(f"{answer_id}-0")
        if answer is None:
            raise NotFound(f"no answer '{answer_id}': it was never submitted, or ended too long ago")
        return [entry.request for entry in answer.entries]

    def end(self, entry: Entry, now: float) -> None:
        """Take notice that `entry` ended at `now`."""
        answer = self._answers[entry.request.id]
        if all(part.end is not None for part in answer.entries):
            self._ended.append((now, answer))

    def forget(self, before: float) -> None:
        """Forget the answers whose last request ended no later than `before`."""
        while self._ended and self._ended[0][0] <= before:
            _, answer = self._ended.popleft()
            for entry in answer.entries:
                del self._entries[entry.request.id]
                del self._answers[entry.request.id]
                if answer.idempotency is not None:
                    self._joined.pop((entry.tenant, answer.idempotency.key), None)
