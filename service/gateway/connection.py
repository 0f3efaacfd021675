"""What the client's side of a connection does while it is served: it sends a body, and it may go away."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from service.errors import BodyTooLarge


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Return the body.

    Raises:
        BodyTooLarge: it is, or says it is, larger than `max_bytes`.
        ClientDisconnect: the client went away first.
    """
    refusal = BodyTooLarge(f"body: larger than the {max_bytes} bytes that this server takes")
    if int(request.headers.get("content-length", 0)) > max_bytes:
        raise refusal
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise refusal
    return bytes(body)


async def run_while_connected(work: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Run `work` to its end; the body must have been read.

    Raises:
        ClientDisconnect: the client went away first; `work` was cancelled.
    """
    working = asyncio.create_task(work)
    gone = asyncio.create_task(_wait_until_gone(receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        working.cancel()
        await asyncio.wait({working, gone})
    if working.cancelled():
        raise ClientDisconnect
    working.result()


async def _wait_until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
