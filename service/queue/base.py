"""The two interfaces of a queue, one contract for every backend (`local`, `redis`); tests/contracts holds them to it.

What is promised: every accepted request reaches exactly one terminal state; no token is delivered twice, out of order,
or contradicting what was delivered, through the death of any worker. The token log is the truth; a watcher reads it.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from service.protocol import Claim, DeadRequest, Emission, EmitStatus, Idempotency, QueueStats, Request, Update


class GatewayQueue(Protocol):
    """What the gateway calls, in its event loop. `Unavailable` from any method: the queue cannot be reached."""

    async def submit(self, requests: Sequence[Request], idempotency: Idempotency | None = None) -> list[str]:
        """Accept all of `requests`, one answer's, or none; the same id again is no error (a time-out may be retried).

        Returns:
            The ids that stand for them: their own, or those of the answer that the same tenant submitted before with
            the same `idempotency`.

        Raises:
            QueueFull: over the cap of requests, of tokens or of the tenant; with `retry_after_s` from the measured
                drain rate.
            BadRequest: the same idempotency key with another digest.
        """

    async def find(self, answer_id: str) -> list[Request]:
        """Return the requests that an answer is made of, also for a while after their ends.

        Raises:
            NotFound: never submitted, or forgotten.
        """

    def watch(self, request_ids: Sequence[str]) -> AsyncIterator[Sequence[Update]]:
        """Yield what comes of any of them: from the first token on, in order, without gaps, each up to its `end`.

        Raises:
            NotFound: one was never submitted, or is forgotten.
            Diverged: a log was lost in part, and its tokens came again otherwise than they had been yielded.
        """

    async def cancel(self, request_id: str) -> None:
        """End a request: at once if it waits, else at its worker's next emission. Unknown or ended: no error."""

    async def stats(self) -> QueueStats:
        """Count what waits and runs."""

    async def dead(self) -> list[DeadRequest]:
        """Return what was quarantined lately, the newest first."""

    async def keep_reaping(self) -> None:
        """For ever: take back what overdue workers hold, end what is past its deadline, forget what ended."""


class WorkerQueue(Protocol):
    """What a worker calls; every method blocks. One call at a time, but `claim` may wait on a thread of its own.

    `Unavailable` from any method: the queue is gone for good. A queue that may come back is waited for inside the
    call, with the same emission sent again, for as long as the lease can still hold.
    """

    @property
    def gather_s(self) -> float:
        """Seconds for which tokens should gather before they are emitted, so that emissions cost it little."""

    def register(self, models: dict[str, str]) -> None:
        """Say which models (name → revision) this worker serves; ready from now on.

        Called again by a worker that lost its lease: what it held is others', and it starts with nothing.
        """

    def claim(self, max_requests: int, wait_s: float) -> list[Claim]:
        """Take up to `max_requests`, in the order of `service.queue.rules`; wait up to `wait_s` for the first."""

    def emit(self, emissions: Sequence[Emission]) -> list[EmitStatus]:
        """Append one step's tokens and ends, one status each; renews the lease.

        Raises:
            LeaseLost: the queue could not be told for so long that the lease must be taken for lost.
        """

    def renew(self) -> bool:
        """Renew the lease; False when it was lost: everything claimed belongs to others now."""

    def retire(self) -> None:
        """Claim no more: a claim that waits comes back empty. What is claimed stays."""

    def release(self) -> None:
        """Hand everything claimed back to the front of the queue, attempts unchanged, and claim no more."""
