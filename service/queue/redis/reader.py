"""Follows the token log of a request: by hints while they have no gaps, else from the log itself."""

import asyncio
from array import array
from collections import deque
from typing import NamedTuple

import msgspec

from service.errors import Diverged, NotFound
from service.protocol import End, TokenLogprobs, Update, Wire

MAX_HINTS = 256
"""Hints kept for one who does not come to read them; beyond, the log keeps them."""


class Hint(Wire, frozen=True, kw_only=True, array_like=True):
    """An `Update` on its way, without the names of its fields; the library makes those of its own decisions."""

    id: str
    base: int
    token_ids: tuple[int, ...]
    queued_s: float
    end: End | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()


class LogState(NamedTuple):
    """What Redis has of a request."""

    tokens: bytes
    logprobs: list[bytes]
    prompt_logprobs: bytes | None
    queued_s: bytes
    end: bytes | None


class Reader:
    """Yields each token once, in order, and notices when one comes again as another.

    Args:
        request_id: Whose log.
        changed: Set whenever there is something to take.
    """

    def __init__(self, request_id: str, changed: asyncio.Event) -> None:
        self.id = request_id
        self.changed = changed
        self.must_read_log = True
        self.has_ended = False
        self._seen = array("I")
        self._knows_prompt = False
        self._hints: deque[Hint] = deque()
        self._ready: Update | None = None

    def invalidate(self) -> None:
        """Count hints as lost: the log is read next."""
        self.must_read_log = True
        self.changed.set()

    def on_hint(self, hint: Hint) -> None:
        """Keep a hint."""
        if len(self._hints) >= MAX_HINTS:
            self._hints.clear()
            self.must_read_log = True
        self._hints.append(hint)
        self.changed.set()

    def read_log(self, state: LogState | None) -> None:
        """Take what the whole log has; None: nothing is known of the request.

        Raises:
            NotFound: it is not there.
            Diverged: other tokens stand where some were yielded.
        """
        if state is None:
            raise NotFound(f"no request '{self.id}': it ended too long ago, was lost with the queue, or never was")
        logged = Hint(
            id=self.id,
            base=0,
            queued_s=float(state.queued_s or 0),
            token_ids=tuple(array("I", state.tokens)),
            end=None if state.end is None else msgspec.msgpack.decode(state.end, type=End),
            logprobs=tuple(msgspec.msgpack.decode(entry, type=TokenLogprobs) for entry in state.logprobs),
            prompt_logprobs=_prompt_logprobs(state.prompt_logprobs),
        )
        # A log that lost its tail says nothing of what was yielded beyond it, and neither does a hint that follows.
        self.must_read_log |= len(logged.token_ids) < len(self._seen)
        self._ready = self._advance(logged)

    def take(self) -> Update | None:
        """Return what is new, as one update; None if nothing is.

        Raises:
            Diverged: other tokens stand where some were yielded.
        """
        parts = [] if self._ready is None else [self._ready]
        self._ready = None
        while self._hints and not self.has_ended and not self.must_read_log:
            if (part := self._advance(self._hints.popleft())) is not None:
                parts.append(part)
        return _join(parts) if parts else None

    def _advance(self, hint: Hint) -> Update | None:
        """Return what is new in `hint`; None when nothing is, or when something before it is missing."""
        num_seen = len(self._seen)
        if hint.base > num_seen:
            self.must_read_log = True
            return None
        known = hint.token_ids[: num_seen - hint.base]
        is_short = hint.end is not None and hint.base + len(hint.token_ids) < num_seen
        if tuple(self._seen[hint.base : hint.base + len(known)]) != known or is_short:
            raise Diverged("tokens that were sent came again otherwise; ask again")
        token_ids = hint.token_ids[len(known) :]
        prompt_logprobs = () if self._knows_prompt else hint.prompt_logprobs
        if not token_ids and hint.end is None and not prompt_logprobs:
            return None
        self._knows_prompt |= bool(prompt_logprobs)
        self._seen.extend(token_ids)
        self.has_ended = hint.end is not None
        return Update(
            id=self.id,
            base=num_seen,
            token_ids=token_ids,
            end=hint.end,
            logprobs=hint.logprobs[len(known) :],
            prompt_logprobs=prompt_logprobs,
            queued_s=hint.queued_s,
        )


def _join(parts: list[Update]) -> Update:
    if len(parts) == 1:
        return parts[0]
    return msgspec.structs.replace(
        parts[-1],
        base=parts[0].base,
        token_ids=tuple(id_ for part in parts for id_ in part.token_ids),
        logprobs=tuple(entry for part in parts for entry in part.logprobs),
        prompt_logprobs=tuple(entry for part in parts for entry in part.prompt_logprobs),
    )


def _prompt_logprobs(packed: bytes | None) -> tuple[TokenLogprobs, ...]:
    return () if packed is None else msgspec.msgpack.decode(packed, type=tuple[TokenLogprobs, ...])
