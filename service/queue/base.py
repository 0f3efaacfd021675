"""The queue's two faces. One contract, kept by every home (`local`, later `redis`); tests/contracts holds it.

What is promised: every accepted request reaches exactly one terminal state; no token is delivered twice, out of order,
or contradicting what was delivered, through the death of any worker. The token log is the truth; a watcher reads it.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from service.protocol import Claim, Emission, EmitStatus, QueueStats, Request, Update


class GatewayQueue(Protocol):
    """The gateway's face: asynchronous, inside its event loop."""

    async def submit(self, requests: Sequence[Request]) -> None:
        """Accept all of `requests` or none; the same id again is no error (a time-out may be retried).

        Raises:
            QueueFull: over the cap of requests or of tokens; with `retry_after_s` from the measured drain rate.
        """

    def watch(self, request_ids: Sequence[str]) -> AsyncIterator[Sequence[Update]]:
        """Yield what comes of any of them: from the first token on, in order, without gaps, each up to its `end`."""

    async def cancel(self, request_id: str) -> None:
        """End a request: at once if it waits, else at its worker's next emission. Unknown or ended: no error."""

    async def stats(self) -> QueueStats:
        """Count what waits and runs."""


class WorkerQueue(Protocol):
    """The worker's face: blocking. One call at a time, but for `claim`, which may wait on a thread of its own."""

    def register(self, models: dict[str, str]) -> None:
        """Say which models (name → revision) this worker serves; ready from now on."""

    def claim(self, max_requests: int, wait_s: float) -> list[Claim]:
        """Take up to `max_requests`, oldest first; wait up to `wait_s` for the first. Epochs grow."""

    def emit(self, emissions: Sequence[Emission]) -> list[EmitStatus]:
        """Append one step's tokens and ends, one status each; renews the lease."""

    def renew(self) -> bool:
        """Renew the lease; False when it was lost: everything claimed belongs to others now."""

    def retire(self) -> None:
        """Claim no more: a claim that waits comes back empty. What is claimed stays."""

    def release(self) -> None:
        """Hand everything claimed back to the front of the queue, attempts unchanged, and claim no more."""
