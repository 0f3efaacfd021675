"""What the HTTP interface promises on paper: its description and its status codes."""

import asyncio
import json

import httpx
import pytest
from fastapi import FastAPI

import service.errors
from service.config import GatewaySettings, QueueSettings
from service.errors import ServiceError
from service.gateway.app import create_app
from service.gateway.models import ServedModel
from service.gateway.responses import ErrorResponse
from service.queue.local.gateway import LocalQueue
from training.tokenizers.char import CharTokenizer

FIELDS = {
    *("prompt", "prompts", "token_ids", "max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty"),
    *("presence_penalty", "frequency_penalty", "logit_bias", "stop", "seed", "n", "logprobs", "echo", "stream"),
    *("priority", "background", "deadline_s", "model", "regex", "json_schema"),
}
ERRORS = {
    "BadRequest": (400, "invalid_request_error", "invalid_request", None),
    "Unauthorized": (401, "invalid_request_error", "invalid_api_key", None),
    "NotFound": (404, "invalid_request_error", "not_found", None),
    "MethodNotAllowed": (405, "invalid_request_error", "method_not_allowed", None),
    "BodyTooLarge": (413, "invalid_request_error", "body_too_large", None),
    "DoesNotFit": (422, "invalid_request_error", "context_length_exceeded", None),
    "QueueFull": (429, "rate_limit_error", "queue_full", None),
    "RateLimited": (429, "rate_limit_error", "rate_limited", None),
    "EngineFailure": (500, "server_error", "engine_failure", "false"),
    "Quarantined": (500, "server_error", "quarantined", "false"),
    "Diverged": (500, "server_error", "stream_diverged", "false"),
    "Unavailable": (503, "server_error", "unavailable", None),
    "DeadlinePassed": (504, "timeout_error", "deadline_passed", "false"),
}


def make_model(name: str) -> ServedModel:
    tokenizer = CharTokenizer("abc ")
    return ServedModel(
        name=name, revision=f"sha256:{name}", tokenizer=tokenizer, context_length=32, vocab_size=tokenizer.vocab_size
    )


def make_app(*names: str) -> FastAPI:
    models = [make_model(name) for name in names]
    return create_app(LocalQueue(QueueSettings()), models, GatewaySettings())


def ask(app: FastAPI, method: str, path: str, **body: object) -> httpx.Response:
    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.request(method, path, json=body or None)

    return asyncio.run(ask())


def test_the_description_has_every_route_and_the_body_of_generate():
    described = ask(make_app("tiny"), "GET", "/openapi.json").json()
    status = {"/v1/models", "/livez", "/readyz", "/health", "/metrics", "/queue"}
    assert described["paths"].keys() == {"/generate", "/streams/{answer_id}"} | status
    operation = described["paths"]["/generate"]["post"]
    assert operation["requestBody"]["required"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert schema["properties"].keys() == FIELDS
    assert schema["additionalProperties"] is False
    refusals = {str(status) for status, *_ in ERRORS.values()} - {"405"}
    assert operation["responses"].keys() == {"200", "202"} | refusals
    assert [parameter["name"] for parameter in operation["parameters"]] == ["Idempotency-Key"]
    assert "$ref" not in json.dumps(described)


def test_the_description_tells_how_a_stream_is_resumed_and_cancelled():
    described = ask(make_app("tiny"), "GET", "/openapi.json").json()["paths"]["/streams/{answer_id}"]
    parameters = {(parameter["in"], parameter["name"]) for parameter in described["get"]["parameters"]}
    assert parameters == {("path", "answer_id"), ("header", "Last-Event-ID"), ("query", "starting_after")}
    assert described["get"]["responses"].keys() == {"200", "400", "401", "404", "429", "503"}
    assert described["delete"]["responses"].keys() == {"204", "401", "404", "429", "503"}


def test_the_description_lets_stop_be_a_string_or_a_list():
    described = ask(make_app("tiny"), "GET", "/openapi.json").json()
    schema = described["paths"]["/generate"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {option["type"] for option in schema["properties"]["stop"]["anyOf"]} == {"string", "array", "null"}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_is_told_with_its_status_type_code_and_headers(name):
    status, kind, code, should_retry = ERRORS[name]
    answer = ErrorResponse(getattr(service.errors, name)("why", param="field", retry_after_s=1.2))
    detail = {"message": "why", "type": kind, "param": "field", "code": code}
    assert (answer.status_code, json.loads(answer.body)) == (status, {"error": detail})
    assert answer.headers["retry-after"] == "2"
    assert answer.headers["retry-after-ms"] == "1200"
    assert answer.headers.get("x-should-retry") == should_retry


def test_every_error_of_the_service_is_in_the_table():
    assert {kind.__name__ for kind in ServiceError.__subclasses__()} == ERRORS.keys()


def test_of_several_models_one_must_be_named():
    app = make_app("tiny", "small")
    answer = ask(app, "POST", "/generate", prompt="abc")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")
    assert "tiny, small" in answer.json()["error"]["message"]
    assert ask(app, "POST", "/generate", prompt="abc", model="small").status_code == 503  # taken, but nobody serves it
    assert [model["id"] for model in ask(app, "GET", "/v1/models").json()["data"]] == ["tiny", "small"]
