"""API keys in the queue's Redis: a hash of a key's id → what is kept of it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec
import redis

from service.errors import SettingError, Unavailable
from service.keys import ApiKey
from service.queue.redis.address import Address

KEY = "mg:keys"
"""Without the number of the queue's layout: the keys outlive it."""
TIMEOUT_S = 1.0


class RedisKeys:
    """A `KeyStore` in Redis.

    Args:
        url: One that `Address` takes.

    Raises:
        SettingError: the URL is none.
    """

    def __init__(self, url: str) -> None:
        self.address = Address(url)
        self._client = self.address.connect(TIMEOUT_S)

    def read(self) -> Sequence[ApiKey]:
        """Return all keys."""
        with self._reachable():
            kept = self._client.hvals(KEY)
        try:
            return sorted((msgspec.json.decode(value, type=ApiKey) for value in kept), key=lambda key: key.created)
        except msgspec.DecodeError as error:
            raise SettingError(f"'{KEY}' in {self.address}: no API keys: {error}") from error

    def add(self, key: ApiKey) -> None:
        """Keep `key` beside the others."""
        with self._reachable():
            self._client.hset(KEY, key.id, msgspec.json.encode(key))

    def revoke(self, key_id: str) -> None:
        """Forget the key of this id."""
        with self._reachable():
            is_gone = self._client.hdel(KEY, key_id)
        if not is_gone:
            raise SettingError(f"{self.address}: no key with the id '{key_id}'; 'minigpt keys list' shows the ids")

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        try:
            yield
        except redis.RedisError as error:
            raise Unavailable(f"the API keys in {self.address} cannot be reached: {error}") from error
