"""What `/openapi.json` tells beyond what FastAPI finds by itself."""

from typing import Any

from service.gateway.idempotency import MAX_KEY_CHARS
from service.gateway.schemas import GenerateBody

_REFUSALS = {
    "400": "Malformed, or a parameter that this server refuses.",
    "401": "No key, or none that this server knows.",
    "404": "No such model, or no such stream.",
    "413": "The body is over the cap.",
    "422": "Prompt and max_tokens do not fit the context.",
    "429": "Too much is waiting already, or the key's rate is used up; Retry-After tells when to come back.",
    "500": "The engine failed with this request, or too many workers died with it.",
    "503": "No worker with this model, no queue, or shutting down; Retry-After tells when to come back.",
    "504": "The request's own deadline passed.",
}
_ANSWER_ID = {"name": "answer_id", "in": "path", "required": True, "schema": {"type": "string"}}
_POSITIONS = {"type": "string", "pattern": "^[0-9]{1,10}e?([.][0-9]{1,10}e?)*$"}


def _refusals(*statuses: str) -> dict[str, Any]:
    return {status: {"description": _REFUSALS[status]} for status in statuses}


GENERATE: dict[str, Any] = {
    "parameters": [
        {
            "name": "Idempotency-Key",
            "in": "header",
            "required": False,
            "description": "The same request with the same key is computed once: the second joins the first. A client "
            "that goes away cancels nothing then.",
            "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY_CHARS},
        }
    ],
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": GenerateBody.model_json_schema()}},
    },
    "responses": {
        "200": {
            "description": "The answer; with `stream` as server-sent events that end with `data: [DONE]`.",
            "content": {"application/json": {}, "text/event-stream": {}},
        },
        "202": {
            "description": "With `background`: the id, and where the stream is.",
            "content": {"application/json": {}},
        },
        **_refusals(*_REFUSALS),
    },
}
RESUME: dict[str, Any] = {
    "parameters": [
        _ANSWER_ID,
        {
            "name": "Last-Event-ID",
            "in": "header",
            "required": False,
            "description": "The id of the last event that was read; goes before `starting_after`.",
            "schema": {"type": "string"},
        },
        {
            "name": "starting_after",
            "in": "query",
            "required": False,
            "description": "Tokens of each choice that were read, with dots between, an `e` behind one whose end was "
            "read: what follows the id of the stream in the id of an event.",
            "schema": _POSITIONS,
        },
    ],
    "responses": {
        "200": {"description": "What follows, as server-sent events.", "content": {"text/event-stream": {}}},
        **_refusals("400", "401", "404", "429", "503"),
    },
}
CANCEL: dict[str, Any] = {
    "parameters": [_ANSWER_ID],
    "responses": {"204": {"description": "It ends."}, **_refusals("401", "404", "429", "503")},
}
