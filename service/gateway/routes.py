"""The routes, a few lines each: the work is done in `schemas`, `admission`, `streams`, `answer` and `sse`."""

import contextlib
from collections.abc import Iterable

import msgspec
from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from service.config import GatewaySettings
from service.errors import Unavailable
from service.gateway import openapi
from service.gateway.admission import Admission, Caller
from service.gateway.answer import gather_answer
from service.gateway.connection import read_body
from service.gateway.models import ServedModel
from service.gateway.schemas import parse_generate
from service.gateway.sse import EventStream
from service.gateway.stream_position import read_after
from service.gateway.streams import Streams
from service.metrics import GatewayMetrics
from service.protocol import QueueStats
from service.queue.base import GatewayQueue


def generate_routes(admission: Admission, metrics: GatewayMetrics, settings: GatewaySettings) -> APIRouter:
    """Return what makes text."""
    router = APIRouter()

    @router.post("/generate", openapi_extra=openapi.GENERATE, response_class=Response)
    async def generate(request: Request) -> Response:
        """Continue a prompt."""
        body = parse_generate(await read_body(request, settings.max_body_bytes))
        caller = Caller(
            request_id=request.state.request_id,
            tenant=request.state.tenant,
            idempotency_key=request.headers.get("idempotency-key"),
        )
        generation = await admission.admit(body, caller)
        if body.background:
            queued = {"id": generation.id, "status": "queued", "stream": f"/streams/{generation.id}"}
            return _json(queued, status=202)
        if body.stream:
            return EventStream(generation, metrics, settings.ping_s)
        return _json(await gather_answer(generation, request.receive))

    return router


def stream_routes(streams: Streams, metrics: GatewayMetrics, settings: GatewaySettings) -> APIRouter:
    """Return what is done with an answer that was asked for before, here or at another gateway."""
    router = APIRouter()

    @router.get("/streams/{answer_id}", openapi_extra=openapi.RESUME, response_class=Response)
    async def resume(request: Request) -> Response:
        """Read an answer along, or go on with it after the last event that was read."""
        answer_id = request.path_params["answer_id"]
        after = read_after(answer_id, request.headers.get("last-event-id"), request.query_params.get("starting_after"))
        generation = await streams.join(answer_id, request.state.tenant, after)
        return EventStream(generation, metrics, settings.ping_s)

    @router.delete("/streams/{answer_id}", openapi_extra=openapi.CANCEL, status_code=204)
    async def cancel(request: Request) -> Response:
        """End an answer, whoever reads it."""
        await streams.cancel(request.path_params["answer_id"], request.state.tenant)
        return Response(status_code=204)

    return router


def status_routes(
    queue: GatewayQueue, models: Iterable[ServedModel], admission: Admission, metrics: GatewayMetrics, started: float
) -> APIRouter:
    """Return what tells how the server is; `started` is its Unix time of birth."""
    router = APIRouter()

    @router.get("/v1/models")
    async def list_models() -> Response:
        """List the served models, as OpenAI's clients expect it."""
        return _json({"object": "list", "data": [_describe(model, int(started)) for model in models]})

    @router.get("/livez")
    async def livez() -> Response:
        """Tell that the process answers."""
        return _json({"status": "alive"})

    @router.get("/readyz")
    @router.get("/health")
    async def readyz() -> Response:
        """Tell whether every model has a worker; being busy is no reason to say no."""
        await admission.require_ready()
        return _json({"status": "ready"})

    @router.get("/queue")
    async def show_queue() -> Response:
        """Tell what waits and runs, and how long what comes now may wait."""
        return _json(_describe_queue(await queue.stats()))

    @router.get("/metrics")
    async def show_metrics() -> Response:
        """Show the figures to Prometheus; of the queue the last ones, while it cannot be reached."""
        stats: QueueStats | None = None
        with contextlib.suppress(Unavailable):
            stats = await queue.stats()
        metrics.observe_queue(stats)
        return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)

    return router


def _describe(model: ServedModel, created: int) -> dict[str, object]:
    return {
        "id": model.name,
        "object": "model",
        "created": created,
        "owned_by": "minigpt",
        "revision": model.revision,
        "max_model_len": model.context_length,
    }


def _describe_queue(stats: QueueStats) -> dict[str, object]:
    rate = stats.drain_tokens_per_s
    return {
        "waiting": stats.waiting,
        "running": stats.running,
        "waiting_tokens": stats.waiting_tokens,
        "workers": stats.workers,
        "drain_tokens_per_s": rate,
        "estimated_wait_s": round(stats.waiting_tokens / rate, 3) if rate > 0 else None,
    }


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
