"""The application: routes, errors and middleware put together."""

import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus

from fastapi import APIRouter, FastAPI
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.config import GatewaySettings
from service.errors import MethodNotAllowed, NotFound, ServiceError
from service.gateway.admission import Admission, ServedModel
from service.gateway.middleware import RequestScope
from service.gateway.responses import ErrorResponse
from service.gateway.routes import generate_routes, status_routes
from service.metrics import GatewayMetrics
from service.queue.base import GatewayQueue

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_app(
    queue: GatewayQueue,
    models: Sequence[ServedModel],
    settings: GatewaySettings,
    *,
    registry: CollectorRegistry | None = None,
    lifespan: Lifespan | None = None,
    clock: Callable[[], float] = time.time,
    rng: random.Random | None = None,
) -> FastAPI:
    """Make the gateway. `app.state.admission.draining = True` refuses what is new and turns `/readyz` red.

    Args:
        queue: Where requests go.
        models: What is served, at least one.
        settings: Limits.
        registry: Where the metrics are registered; `None`: one of its own.
        lifespan: What runs beside the requests, e.g. the queue's reaper.
        clock: Seconds, Unix time.
        rng: Draws seeds; `None`: the operating system's.
    """
    metrics = GatewayMetrics(registry or CollectorRegistry(), [model.name for model in models])
    admission = Admission(queue, models, metrics, clock, rng or random.SystemRandom())
    app = FastAPI(title="minigpt", lifespan=lifespan, redoc_url=None, redirect_slashes=False)
    app.state.admission = admission
    routers = generate_routes(admission, metrics, settings), status_routes(queue, admission, metrics, clock())
    for router in routers:
        app.include_router(router)
    app.add_middleware(RequestScope, metrics=metrics, routes=frozenset().union(*map(_paths, routers)))

    @app.exception_handler(ServiceError)
    async def refuse(_: Request, error: ServiceError) -> Response:
        metrics.fail(error)
        return ErrorResponse(error)

    @app.exception_handler(HTTPException)
    async def refuse_route(_: Request, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        refusal: ServiceError = NotFound("no such route; /docs lists them")
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            refusal = MethodNotAllowed(f"this route takes {headers.get('Allow', 'another method')}")
        metrics.fail(refusal)
        return ErrorResponse(refusal, headers)

    return app


def _paths(router: APIRouter) -> set[str]:
    return {route.path for route in router.routes if isinstance(route, Route)}
