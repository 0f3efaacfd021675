"""The routes, a few lines each: the work is done in `schemas`, `admission`, `answer` and `sse`."""

import contextlib
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from service.config import GatewaySettings
from service.errors import Unavailable
from service.gateway.admission import Admission, ServedModel
from service.gateway.answer import gather_answer
from service.gateway.connection import read_body
from service.gateway.schemas import GenerateBody, parse_generate
from service.gateway.sse import EventStream
from service.metrics import GatewayMetrics
from service.queue.base import GatewayQueue

_GENERATE_DOCS: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": GenerateBody.model_json_schema()}},
    },
    "responses": {
        "200": {
            "description": "The answer; with `stream` as server-sent events that end with `data: [DONE]`.",
            "content": {"application/json": {}, "text/event-stream": {}},
        },
        "400": {"description": "Malformed, or a parameter that this server refuses."},
        "404": {"description": "No such model."},
        "413": {"description": "The body is over the cap."},
        "422": {"description": "Prompt and max_tokens do not fit the context."},
        "429": {"description": "Too much is waiting already; Retry-After tells when to come back."},
        "500": {"description": "The engine failed with this request."},
        "503": {"description": "No worker with this model, or shutting down; Retry-After tells when to come back."},
        "504": {"description": "The request's own deadline passed."},
    },
}


def generate_routes(admission: Admission, metrics: GatewayMetrics, settings: GatewaySettings) -> APIRouter:
    """Return what makes text."""
    router = APIRouter()

    @router.post("/generate", openapi_extra=_GENERATE_DOCS, response_class=Response)
    async def generate(request: Request) -> Response:
        """Continue a prompt."""
        body = parse_generate(await read_body(request, settings.max_body_bytes))
        generation = await admission.admit(body, request.state.request_id)
        if body.stream:
            return EventStream(generation, metrics, settings.ping_s)
        return _json(await gather_answer(generation, request.receive))

    return router


def status_routes(queue: GatewayQueue, admission: Admission, metrics: GatewayMetrics, started: float) -> APIRouter:
    """Return what tells how the server is; `started` is its Unix time of birth."""
    router = APIRouter()

    @router.get("/v1/models")
    async def list_models() -> Response:
        """List the served models, as OpenAI's clients expect it."""
        data = [_describe(model, int(started)) for model in admission.models.values()]
        return _json({"object": "list", "data": data})

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

    @router.get("/metrics")
    async def show_metrics() -> Response:
        """Show the figures to Prometheus; without the queue's while it cannot be reached."""
        with contextlib.suppress(Unavailable):
            metrics.observe_queue(await queue.stats())
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


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
