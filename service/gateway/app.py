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
from service.gateway.admission import Admission
from service.gateway.auth import Authentication
from service.gateway.key_ring import KeyRing
from service.gateway.lifecycle import Lifecycle
from service.gateway.middleware import RequestScope
from service.gateway.models import ServedModel
from service.gateway.responses import ErrorResponse
from service.gateway.routes import generate_routes, status_routes, stream_routes
from service.gateway.streams import Streams
from service.metrics import GatewayMetrics
from service.queue.base import GatewayQueue

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_app(
    queue: GatewayQueue,
    models: Sequence[ServedModel],
    settings: GatewaySettings,
    *,
    keys: KeyRing | None = None,
    registry: CollectorRegistry | None = None,
    lifespan: Lifespan | None = None,
    clock: Callable[[], float] = time.time,
    rng: random.Random | None = None,
) -> FastAPI:
    """Make the gateway. Its server moves `app.state.lifecycle`; while draining, `/readyz` is red.

    Args:
        queue: Where requests go.
        models: What is served, at least one.
        settings: Limits.
        keys: Who may ask; `None`: anyone.
        registry: Where the metrics are registered; `None`: one of its own.
        lifespan: What runs beside the requests, e.g. the queue's reaper.
        clock: Seconds, Unix time: when the models count as made.
        rng: Draws seeds; `None`: the operating system's.
    """
    served = {model.name: model for model in models}
    metrics = GatewayMetrics(registry or CollectorRegistry(), served)
    streams = Streams(queue, served)
    lifecycle = Lifecycle()
    admission = Admission(
        queue,
        served,
        streams,
        metrics,
        lifecycle,
        rng or random.SystemRandom(),
        wait_for_workers=settings.wait_for_workers,
    )
    app = FastAPI(title="minigpt", lifespan=lifespan, redoc_url=None, redirect_slashes=False)
    app.state.admission, app.state.lifecycle = admission, lifecycle
    routers = (
        generate_routes(admission, metrics, settings),
        stream_routes(streams, metrics, settings),
        status_routes(queue, models, admission, metrics, clock()),
    )
    for router in routers:
        app.include_router(router)
    if keys is not None:
        app.add_middleware(Authentication, keys=keys, metrics=metrics)
    app.add_middleware(RequestScope, metrics=metrics, routes=[route for router in routers for route in _routes(router)])

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


def _routes(router: APIRouter) -> list[Route]:
    return [route for route in router.routes if isinstance(route, Route)]
