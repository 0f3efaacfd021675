"""Errors as HTTP: the envelope that OpenAI clients read, and the headers that tell them whether to try again."""

import math

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.errors import BodyTooLarge, ServiceError

_MAX_DISCARDED_BYTES = 16 * 2**20
"""Of a body over the cap this much is still read: a client that is cut while it sends often misses the answer."""


def envelope(error: ServiceError) -> bytes:
    """Return `{"error": {"message", "type", "param", "code"}}` as JSON."""
    detail = {"message": str(error), "type": error.type, "param": error.param, "code": error.code}
    return msgspec.json.encode({"error": detail})


def error_headers(error: ServiceError) -> dict[str, str]:
    """Return what tells a client library whether and when to send the request again."""
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
        headers["retry-after-ms"] = str(math.ceil(error.retry_after_s * 1000))
    if error.should_retry is not None:
        headers["x-should-retry"] = "true" if error.should_retry else "false"
    return headers


class ErrorResponse(Response):
    """A refused or failed request.

    Args:
        error: What went wrong.
        headers: Further headers.
    """

    media_type = "application/json"

    def __init__(self, error: ServiceError, headers: dict[str, str] | None = None) -> None:
        self.error = error
        super().__init__(envelope(error), error.status, {**error_headers(error), **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; after one about the body, read on for a while before the connection is closed."""
        if not isinstance(self.error, BodyTooLarge):
            await super().__call__(scope, receive, send)
            return
        headers = [*self.raw_headers, (b"connection", b"close")]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        await _discard_body(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _discard_body(receive: Receive) -> None:
    discarded, more = 0, True
    while more and discarded < _MAX_DISCARDED_BYTES:
        message = await receive()
        discarded += len(message.get("body", b""))
        more = message.get("more_body", False)
