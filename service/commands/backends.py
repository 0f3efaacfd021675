"""Which backend of the queue, and which store of API keys, an address means. redis is imported only when needed."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from service.config import QueueSettings
from service.errors import SettingError, Unavailable
from service.gateway.key_ring import KeyRing
from service.keys import FileKeys, KeyStore
from service.queue.base import WorkerQueue
from service.queue.local.wire import SCHEME, socket_path
from service.queue.local.worker import SocketWorkerQueue

if TYPE_CHECKING:
    from service.queue.redis.gateway import RedisQueue

IN_REDIS = "redis"
"""What stands for a file of keys where the keys are in the queue's Redis."""

logger = logging.getLogger(__name__)


def open_gateway_queue(url: str, settings: QueueSettings) -> "RedisQueue":
    """Return the queue at `url` for a gateway.

    Raises:
        SettingError: no address of a Redis.
    """
    from service.queue.redis.gateway import RedisQueue

    return RedisQueue(url, settings)


def open_worker_queue(url: str, lease_s: float, name: str) -> WorkerQueue:
    """Return the queue at `url` for a worker of this `name`; "": it has none.

    Raises:
        SettingError: no address of a queue.
        Unavailable: it is another process's, and that is gone.
    """
    if url.startswith(SCHEME):
        return SocketWorkerQueue(socket_path(url), lease_s)
    from service.queue.process_identity import ProcessIdentity
    from service.queue.redis.worker import RedisWorkerQueue

    return RedisWorkerQueue(url, lease_s, ProcessIdentity.of_this_process(name))


def open_key_store(where: str, queue_url: str | None) -> KeyStore:
    """Return the store of API keys that `--keys` names: a file, or `redis`: that of the queue at `queue_url`.

    Raises:
        SettingError: in a Redis, but no address of one.
    """
    if where != IN_REDIS:
        return FileKeys(Path(where))
    if queue_url is None:
        raise SettingError("--keys redis: needs the --queue whose Redis has them; './redis' is a file")
    from service.queue.redis.keys import RedisKeys

    return RedisKeys(queue_url)


def open_key_ring(where: str | None, queue_url: str | None = None) -> KeyRing | None:
    """Return the keys that `--keys` names, read once; of a Redis that cannot be reached they are read later.

    Raises:
        SettingError: no keys are there.
    """
    if where is None:
        return None
    keys = KeyRing(open_key_store(where, queue_url))
    try:
        keys.read()
    except Unavailable as error:
        logger.warning("%s; until the API keys are read, requests are answered with 503", error)
    return keys
