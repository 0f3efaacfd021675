"""Who asks: each request shows an API key, which is looked up before anything else of it is read."""

from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import ServiceError, Unauthorized
from service.gateway.key_ring import KeyRing
from service.gateway.responses import ErrorResponse
from service.metrics import GatewayMetrics

OPEN_PATHS = frozenset({"/livez", "/readyz", "/health", "/metrics", "/docs", "/openapi.json"})
"""What answers without a key: it tells nothing of anyone's requests."""
_CHALLENGE = {"www-authenticate": "Bearer"}


class Authentication:
    """Plain ASGI middleware: whoever asks shows a key, whose tenant is then `request.state.tenant`.

    Args:
        app: What it wraps.
        keys: Who may ask.
        metrics: Counts refusals.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing, metrics: GatewayMetrics) -> None:
        self._app = app
        self._keys = keys
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it with its body unread."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            try:
                scope["state"]["tenant"] = self._keys.admit(_shown_key(scope["headers"])).tenant
            except ServiceError as error:
                self._metrics.fail(error)
                headers = _CHALLENGE if isinstance(error, Unauthorized) else None
                await ErrorResponse(error, headers)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _shown_key(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """Return what stands in `Authorization: Bearer …`, or else in `x-api-key`."""
    by_name = dict(headers)
    scheme, _, credentials = by_name.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer" and credentials.strip():
        return credentials.strip()
    return by_name.get(b"x-api-key")
