"""Hints from workers, handed on to the readers of their requests. A hint may be lost: the token log has everything."""

import asyncio
import random
from collections.abc import Sequence

import msgspec
import redis

from service.queue.redis.connection import ANSWER_WITHIN_S, Connection
from service.queue.redis.library import PREFIX
from service.queue.redis.reader import Hint, Reader

HEARTBEAT_S = 2.0
"""Seconds of silence after which the subscription is tried."""
RETRY_S = (0.05, 0.5)
"""Bounds of the random wait before the next subscription."""


class Subscriptions:
    """The readers of a gateway, and its channel, on which workers publish hints about their requests.

    Args:
        connection: The way to the server.
        gateway: Id of the gateway.
    """

    def __init__(self, connection: Connection, gateway: str) -> None:
        self._connection = connection
        self._channel = f"{PREFIX}:gw:{gateway}"
        self._readers: dict[str, list[Reader]] = {}
        self._decoder = msgspec.msgpack.Decoder(list[Hint])

    def add(self, readers: Sequence[Reader]) -> None:
        """Hand hints about their requests to `readers` from now on."""
        for reader in readers:
            self._readers.setdefault(reader.id, []).append(reader)

    def remove(self, readers: Sequence[Reader]) -> None:
        """Hand them no more hints."""
        for reader in readers:
            self._readers[reader.id].remove(reader)
            if not self._readers[reader.id]:
                del self._readers[reader.id]

    async def keep_listening(self) -> None:
        """Subscribe, for ever; after a loss every reader goes to the log."""
        while True:
            try:
                await self._listen()
            except (redis.RedisError, OSError, TimeoutError, RuntimeError):  # the last: uvloop's of a connection reset
                await asyncio.sleep(random.uniform(*RETRY_S))

    async def _listen(self) -> None:
        async with self._connection.client.pubsub(ignore_subscribe_messages=True) as pubsub:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                await pubsub.subscribe(self._channel)
            for readers in self._readers.values():
                for reader in readers:
                    reader.invalidate()
            is_tried = False
            while True:
                message = await pubsub.get_message(timeout=HEARTBEAT_S)
                if message is None and is_tried:
                    raise TimeoutError
                is_tried = message is None
                if message is None:
                    await pubsub.ping()
                elif message["type"] == "message":
                    self._hand_on(message["data"])

    def _hand_on(self, packed: bytes) -> None:
        for hint in self._decoder.decode(packed):
            for reader in self._readers.get(hint.id, ()):
                reader.on_hint(hint)
