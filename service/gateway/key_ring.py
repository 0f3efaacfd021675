"""What a gateway knows of the API keys, and how much of its rate each has used up here: every gateway counts alone."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hmac import compare_digest

from service.errors import RateLimited, Unauthorized, Unavailable
from service.keys import ApiKey, KeyStore, digest_of, id_of
from training.errors import MinigptError

READ_AGAIN_S = 1.0
"""Seconds after which a change of the store holds here."""

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Allowance:
    """Requests that a key may still make: at most those of a minute, which a minute brings back."""

    left: float
    as_of: float


class KeyRing:
    """The keys of a store, in memory: to look one up never waits.

    Args:
        store: Where the keys are kept.
        clock: Seconds, monotonic.
    """

    def __init__(self, store: KeyStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._keys: dict[str, ApiKey] | None = None
        self._allowances: dict[str, _Allowance] = {}

    def read(self) -> None:
        """Read the store.

        Raises:
            SettingError: what is there are no keys.
            Unavailable: it cannot be reached now.
        """
        self._learn(self._store.read())

    async def keep_fresh(self) -> None:
        """For ever: read the store again. While it cannot be read the former keys hold, which the log says once."""
        last_error = ""
        while True:
            await asyncio.sleep(READ_AGAIN_S)
            try:
                self._learn(await asyncio.to_thread(self._store.read))
                last_error = ""
            except MinigptError as error:
                if str(error) != last_error:
                    logger.warning("%s; the API keys of before hold", error)
                last_error = str(error)

    def admit(self, shown: bytes | None) -> ApiKey:
        """Return the key that a client shows, and count the request.

        Raises:
            Unauthorized: none, or none that is known.
            RateLimited: it has used up its rate.
            Unavailable: the keys could not be read yet.
        """
        if self._keys is None:
            raise Unavailable("the API keys cannot be read yet", retry_after_s=READ_AGAIN_S)
        if shown is None:
            raise Unauthorized("no API key: send the header 'Authorization: Bearer <key>'")
        digest = digest_of(shown)
        key = self._keys.get(id_of(digest))
        if key is None or not compare_digest(key.digest, digest):
            raise Unauthorized("no such API key here; it may have been revoked")
        if key.rate is not None:
            self._count(key.id, key.rate)
        return key

    def _learn(self, keys: Sequence[ApiKey]) -> None:
        self._keys = {key.id: key for key in keys}
        self._allowances = {id_: allowance for id_, allowance in self._allowances.items() if id_ in self._keys}

    def _count(self, key_id: str, rate: int) -> None:
        now = self._clock()
        allowance = self._allowances.setdefault(key_id, _Allowance(left=rate, as_of=now))
        allowance.left = min(rate, allowance.left + (now - allowance.as_of) * rate / 60)
        allowance.as_of = now
        if allowance.left < 1:
            wait_s = (1 - allowance.left) * 60 / rate
            raise RateLimited(f"more than the {rate} requests a minute of this API key", retry_after_s=wait_s)
        allowance.left -= 1
