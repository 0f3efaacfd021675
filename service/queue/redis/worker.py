"""The `WorkerQueue` in Redis: it blocks, and repeats a call for as long as the lease can still hold."""

import logging
import math
import random
import threading
import time
import uuid
from array import array
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec
from redis.client import PubSub
from typing_extensions import override

from service.errors import LeaseLost
from service.protocol import Claim, Emission, EmitStatus, Request
from service.queue.base import WorkerQueue
from service.queue.process_identity import ProcessIdentity
from service.queue.redis.address import CONNECTION_ERRORS, Address, reason_of
from service.queue.redis.library import PREFIX, Argument, call, line_of
from service.queue.redis.reader import Hint

GIVE_UP_AT = 0.66
"""Share of a lease after which one that could not be renewed is taken for lost: before anybody else takes it so."""
REPLY_WITHIN = 0.25
"""Share of a lease for which a reply is waited for before the call is sent again."""
SECOND_LOOK_S = 0.02
"""Seconds that a worker leaves to the others what is theirs by a fair share."""
POLL_S = 0.2
"""Seconds after which a worker that waits looks by itself: a hint may be lost."""
PATIENT_BEATS = 2
"""Renewals in a row after which a difference between the server's account and ours is none of timing."""
RETRY_S = (0.05, 0.5)
"""First and last bound of the random waits between two tries."""

_STATUSES = {
    ord(letter): status
    for letter, status in (
        ("O", EmitStatus.OK),
        ("C", EmitStatus.CANCEL),
        ("F", EmitStatus.FENCED),
        ("G", EmitStatus.GAP),
    )
}

T = TypeVar("T")
logger = logging.getLogger(__name__)


class RedisWorkerQueue(WorkerQueue):
    """A `WorkerQueue` in Redis. A call that gets no answer is sent again: each says the same twice.

    Args:
        url: One that `Address` takes.
        lease_s: Seconds without a word after which everything it holds is another worker's.
        identity: Who this process is, so that others can prove its death, and it theirs.
        clock: Seconds, monotonic.

    Raises:
        SettingError: the URL is none.
    """

    gather_s = 0.02  # an emission costs the server more than a token does

    def __init__(
        self, url: str, lease_s: float, identity: ProcessIdentity, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.address = Address(url)
        self._lease_s = lease_s
        self._identity = identity
        self._clock = clock
        self._client = self.address.connect(lease_s * REPLY_WITHIN)
        self._id = ""
        self._renewed = clock()
        self._num_claims = 0
        """Of those that were answered: one that was not is asked for again by the same number."""
        self._more_waits = True
        """Whether to ask again at once may bring something: beyond what was asked for, or left to others."""
        self._queued_s: dict[str, float] = {}
        """Of each request that is held: seconds that it waited, for those who follow it."""
        self._num_differing = 0
        """Renewals in a row at which the server had us hold more than we do."""
        self._retired = threading.Event()
        self._hints: PubSub | None = None
        self._encode = msgspec.msgpack.Encoder().encode
        self._identities = msgspec.msgpack.Decoder(ProcessIdentity)
        self._requests = msgspec.msgpack.Decoder(Request)

    @override
    def register(self, models: dict[str, str]) -> None:
        self._queued_s.clear()
        former, self._id = self._id, uuid.uuid4().hex[:16]
        lines = " ".join(line_of(*model) for model in models.items())
        about: list[Argument] = [self._encode(self._identity), self._encode(list(models.values())), lines]

        is_new = not former  # later on, another of this name may be the newer one

        def begin() -> None:
            if former:
                self._call("release", former)
            self._reap(lambda other: self._identity.sees_dead(other) or (is_new and self._identity.replaces(other)))
            self._call("register", self._id, self._lease_s, *about)

        self._persist(begin, for_s=math.inf)

    @override
    def claim(self, max_requests: int, wait_s: float) -> list[Claim]:
        until = self._clock() + wait_s
        is_shared = wait_s > 0  # who does not wait will not come back for what others leave
        while True:
            try:
                left_s = until - self._clock()
                if left_s > 0 and not (self._more_waits and is_shared):
                    self._await_hint(min(left_s, POLL_S if is_shared else SECOND_LOOK_S))
                claims = self._claim(max_requests, is_shared=is_shared)
                is_shared = not (self._more_waits and is_shared)
            except CONNECTION_ERRORS:
                self._drop_hints()
                claims = []
                self._retired.wait(min(max(0.0, left_s), random.uniform(*RETRY_S)))
            if claims or self._retired.is_set() or self._clock() >= until:
                return claims

    @override
    def emit(self, emissions: Sequence[Emission]) -> list[EmitStatus]:
        args: list[Argument] = [self._id, self._lease_s]
        for emission in emissions:
            args += self._flatten(emission)
        letters = self._persist(lambda: self._call("emit", *args))
        statuses = [_STATUSES[letter] for letter in letters]
        for emission, status in zip(emissions, statuses, strict=True):
            if emission.end is not None or status is not EmitStatus.OK:
                self._queued_s.pop(emission.id, None)
        return statuses

    @override
    def renew(self) -> bool:

        def beat() -> bool:
            self._reap(self._identity.sees_dead)
            num_held = self._call("renew", self._id, self._lease_s)
            self._settle_accounts(num_held)
            return bool(num_held >= 0)

        try:
            return self._persist(beat)
        except LeaseLost:
            return False

    @override
    def retire(self) -> None:
        self._retired.set()
        self._persist(lambda: self._call("retire", self._id))

    @override
    def release(self) -> None:
        self._retired.set()
        try:
            self._persist(lambda: self._call("release", self._id))
        except LeaseLost:
            logger.warning("the queue at %s cannot be reached: what is held waits for its lease to end", self.address)

    def close(self) -> None:
        """Close the connections: what is still claimed waits for proof of our death, or for its lease to end."""
        self._drop_hints()
        self._client.close()

    def _call(self, verb: str, *args: Argument) -> Any:  # noqa: ANN401 - as Redis answers
        return call(self._client, verb, args)

    def _persist(self, do: Callable[[], T], for_s: float | None = None) -> T:
        """Do it again until it is done, and count it as a renewal from when it began.

        Raises:
            LeaseLost: not within `for_s` seconds of the last renewal; by default those of `GIVE_UP_AT`.
        """
        last_s = self._lease_s * GIVE_UP_AT if for_s is None else for_s
        longest_s = RETRY_S[0]
        while True:
            began = self._clock()
            try:
                reply = do()
            except CONNECTION_ERRORS as error:
                if longest_s == RETRY_S[0]:
                    logger.warning("the queue at %s cannot be reached: %s", self.address, reason_of(error))
                if self._clock() - self._renewed > last_s:
                    what = f"the queue at {self.address} cannot be reached ({reason_of(error)})"
                    raise LeaseLost(f"{what}: what was claimed is taken for another worker's") from error
                time.sleep(random.uniform(0, longest_s))
                longest_s = min(2 * longest_s, RETRY_S[1])
            else:
                if longest_s > RETRY_S[0]:
                    logger.info("the queue at %s is back", self.address)
                self._renewed = began
                return reply

    def _settle_accounts(self, num_held: int) -> None:
        """Give up what the server has us hold and we know nothing of, once it is no claim on its way to us."""
        self._num_differing = self._num_differing + 1 if num_held > len(self._queued_s) else 0
        if self._num_differing == PATIENT_BEATS:
            self._call("keep", self._id, *list(self._queued_s))
            self._num_differing = 0

    def _reap(self, is_dead: Callable[[ProcessIdentity], bool]) -> None:
        """Let the queue take back what overdue workers hold, and what those hold that `is_dead` proves dead."""
        workers = self._call("reap")
        identities = zip(workers[::2], workers[1::2], strict=True)
        dead = [
            id_ for id_, packed in identities if id_ != self._id.encode() and is_dead(self._identities.decode(packed))
        ]
        if dead:
            self._call("reap", *dead)

    def _read_claim(self, epoch: int, body: bytes, prompt: bytes, log: bytes, queued_s: bytes) -> Claim:
        request = msgspec.structs.replace(self._requests.decode(body), token_ids=tuple(array("I", prompt)))
        self._queued_s[request.id] = float(queued_s)
        return Claim(request=request, epoch=epoch, token_ids=tuple(array("I", log)))

    def _flatten(self, emission: Emission) -> list[Argument]:
        e = emission
        hint: bytes = b""
        beside: list[Argument] = []
        if e.end is not None or e.logprobs or e.prompt_logprobs:
            end = b"" if e.end is None else self._encode(e.end)
            scores = self._encode(e.prompt_logprobs) if e.prompt_logprobs else b""
            beside = [end, scores, *map(self._encode, e.logprobs)]
        if e.token_ids or beside:
            hint = self._encode(
                Hint(
                    id=e.id,
                    base=e.base,
                    token_ids=e.token_ids,
                    queued_s=self._queued_s.get(e.id, 0.0),
                    end=e.end,
                    logprobs=e.logprobs,
                    prompt_logprobs=e.prompt_logprobs,
                )
            )
        tokens = array("I", e.token_ids).tobytes()
        return [e.id, f"{self._id}:{e.epoch}", e.base, tokens, hint, len(beside), *beside]

    def _claim(self, max_requests: int, *, is_shared: bool) -> list[Claim]:
        more, claims = self._call("claim", self._id, max_requests, self._lease_s, int(is_shared), self._num_claims)
        self._num_claims += 1
        self._more_waits = bool(more)
        return [self._read_claim(*claim) for claim in claims]

    def _await_hint(self, timeout_s: float) -> None:
        if self._hints is None:
            self._hints = self._client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
            self._hints.subscribe(f"{PREFIX}:work")
            return  # what came before the subscription is looked for at once
        heard = self._hints.get_message(timeout=timeout_s)
        while heard is not None:
            heard = self._hints.get_message(timeout=0.0)

    def _drop_hints(self) -> None:
        if self._hints is not None:
            hints, self._hints = self._hints, None
            hints.close()
