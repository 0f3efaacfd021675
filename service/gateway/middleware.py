"""What holds for every request: an id, its arrival counted, an answer in the envelope even for our own mistakes."""

import logging
import traceback
import uuid
from collections.abc import Sequence

from starlette.requests import ClientDisconnect
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import ServiceError
from service.gateway.responses import ErrorResponse
from service.metrics import GatewayMetrics

_log = logging.getLogger(__name__)


class RequestScope:
    """Plain ASGI middleware; it leaves `receive` alone, so that a handler sees its client go.

    The id is always ours, also where the client sends an `x-request-id`: requests of the queue are named after it, and
    no client may name another's.

    Args:
        app: What it wraps.
        metrics: Counts arrivals and failures.
        routes: What is served; every other path counts as one, for a client can invent as many as it likes.
    """

    def __init__(self, app: ASGIApp, metrics: GatewayMetrics, routes: Sequence[Route]) -> None:
        self._app = app
        self._metrics = metrics
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False
        request_id = uuid.uuid4().hex
        scope["state"] = {**scope.get("state", {}), "request_id": request_id, "tenant": ""}
        self._metrics.receive(self._name_route(scope["path"]), scope["method"])

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            _log.debug("the client went away", extra={"request_id": request_id})
        except Exception as mistake:
            _log_mistake(request_id, mistake)
            error = ServiceError("internal error; the server's log has it under this x-request-id")
            self._metrics.fail(error)
            if not started:
                await ErrorResponse(error)(scope, receive, send_with_id)

    def _name_route(self, path: str) -> str:
        return next((route.path for route in self._routes if route.path_regex.match(path)), "other")


def _log_mistake(request_id: str, mistake: Exception) -> None:
    """Log where it happened, but not its message, which may quote the prompt."""
    where = "".join(traceback.format_tb(mistake.__traceback__))
    _log.error("request %s: %s at\n%s", request_id, type(mistake).__name__, where)
