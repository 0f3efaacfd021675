"""The Lua library: its text, and how a verb of it is called."""

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import msgspec
import redis
import redis.asyncio

from service.queue.rules import CLEARED_AFTER, MAX_DEAD, PATIENCE_S, QUARANTINE_ERROR

PREFIX = "mg1:{m0}"
"""Before every key. A new layout of keys or of messages gets a new number: two releases never read each other's."""
PARTS = ("lines", "endings", "gateway", "claims", "emissions", "worker", "verbs")
MISSING = "Function not found"
PASSING = ("MISCONF", "NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY ")
"""Beginnings of refusals that pass: a disk that is full, replicas that are missing, a function that runs too long."""

Argument = str | bytes | int | float


@cache
def library() -> tuple[str, str]:
    """Return the library's version, a hash of its text, and the text.

    A library is loaded under its version, so that two releases can share a server while one follows the other.
    """
    patience = ", ".join(f"{priority} = {seconds}" for priority, seconds in PATIENCE_S.items())
    constants = [
        f"local PATIENCE = {{{patience}}}",
        f"local CLEARED_AFTER = {CLEARED_AFTER}",
        f"local MAX_DEAD = {MAX_DEAD}",
        f"local QUARANTINE_ERROR = {json.dumps(QUARANTINE_ERROR)}",
        f"local EMPTY_REVISIONS = '\\{msgspec.msgpack.encode([])[0]}'",
    ]
    parts = [files(__package__).joinpath(f"{part}.lua").read_text("utf-8") for part in PARTS]
    body = "\n".join([*constants, *parts])
    version = hashlib.sha256(body.encode()).hexdigest()[:12]
    return version, f"#!lua name=minigpt_{version}\nlocal VERSION = '{version}'\n{body}"


def line_of(model: str, revision: str) -> str:
    """Return the short name of where requests of this revision of this model wait."""
    return hashlib.sha256(f"{model}\n{revision}".encode()).hexdigest()[:16]


def call(client: "redis.Redis", verb: str, args: Sequence[Argument] = ()) -> Any:  # noqa: ANN401 - as Redis answers
    """Call a verb; load the library first where the server does not have it: at the first time, or after a flush.

    Raises:
        redis.RedisError: of `CONNECTION_ERRORS` where the same call may be answered later.
    """
    version, text = library()
    try:
        return client.fcall(f"{verb}_{version}", 1, PREFIX, *args)
    except redis.ResponseError as error:
        _require_missing(error)
    client.function_load(text, replace=True)
    return client.fcall(f"{verb}_{version}", 1, PREFIX, *args)


async def call_async(client: "redis.asyncio.Redis", verb: str, args: Sequence[Argument] = ()) -> Any:  # noqa: ANN401
    """Do the same in an event loop."""
    version, text = library()
    try:
        return await client.fcall(f"{verb}_{version}", 1, PREFIX, *args)
    except redis.ResponseError as error:
        _require_missing(error)
    await client.function_load(text, replace=True)
    return await client.fcall(f"{verb}_{version}", 1, PREFIX, *args)


def _require_missing(error: redis.ResponseError) -> None:
    """Raise `error` again unless the library is what the server misses."""
    message = str(error)
    if message.startswith(PASSING):
        raise redis.ConnectionError(message.split(maxsplit=1)[0]) from None
    if MISSING not in message:
        raise error
