"""The header `Idempotency-Key`: what makes a request that is sent twice be computed once."""

import hashlib
import json
import re

from service.errors import BadRequest
from service.gateway.schemas import GenerateBody
from service.protocol import Idempotency

MAX_KEY_CHARS = 128
_KEY = re.compile(rf"[\x20-\x7e]{{1,{MAX_KEY_CHARS}}}")
_DELIVERY = {"stream", "background"}
"""Fields that say how an answer is sent, and change nothing of what it is."""


def read_idempotency(key: str | None, body: GenerateBody) -> Idempotency | None:
    """Return what stands for `body` under the header `key`; `None` without the header.

    Raises:
        BadRequest: the key is no key.
    """
    if key is None:
        return None
    if not _KEY.fullmatch(key):
        raise BadRequest(
            f"Idempotency-Key: must be 1 to {MAX_KEY_CHARS} printable ASCII characters", param="idempotency_key"
        )
    return Idempotency(key=key, digest=_digest(body))


def _digest(body: GenerateBody) -> str:
    """Hash what is asked for, however it was written: the order of fields and what is null make no difference."""
    fields = body.model_dump(exclude_none=True, exclude=_DELIVERY)
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
