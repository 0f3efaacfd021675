"""Whatever is sent, the answer is one clear line in the envelope, never a 5xx and never the body."""

import json
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.config import QueueSettings
from service.gateway.schemas import GenerateBody
from tests.conftest import WITH_FIXTURES

MARK = "sesame-7261"


def refuse(gateway, body: bytes) -> dict:
    answer = gateway.client.post("/generate", content=body)
    told = answer.json()["error"]
    assert told.keys() == {"message", "type", "param", "code"}
    assert "\n" not in told["message"]
    return {"status": answer.status_code, **told}


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (b"", None, "not JSON"),
        (b"{", None, "not JSON"),
        (b"[]", None, "JSON object"),
        (b'"prompt"', None, "JSON object"),
        (b"\xff\xfe", None, "UTF-8"),
        (b'{"prompt": "a", "temperature": NaN}', None, "NaN"),
        (b'{"prompt": "a", "temperature": -Infinity}', None, "Infinity"),
        (b'{"prompt": "a", "temperature": 1e999}', "temperature", "100"),
        (b'{"prompt": "a", "prompt": "b"}', None, "twice"),
        (b'{"prompt": "a", "logit_bias": {"1": 1, "1": 2}}', None, "twice"),
        (b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", None, "deep"),
        (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", None, "digits"),
        (b'{"prompt": "\\ud800"}', "prompt", "surrogate"),
        (b'{"prompts": ["a", "\\udfff"]}', "prompts", "surrogate"),
        (b'{"prompt": "a", "stop": "\\ud800"}', "stop", "surrogate"),
        (b'{"prompt": "a", "max_token": 5}', "max_token", "did you mean max_tokens?"),
        (b'{"prompt": "a", "secret words": 5}', None, "a field that this server does not know"),
        (b"{}", "prompt", "exactly one"),
        (b'{"prompt": null}', "prompt", "exactly one"),
        (b'{"prompt": "a", "token_ids": [1]}', "prompt", "exactly one"),
        (b'{"prompts": []}', "prompts", "at least 1"),
        (b'{"prompt": 5}', "prompt", "string"),
        (b'{"prompt": ["a"]}', "prompt", "string"),
        (b'{"prompts": ["a", 5]}', "prompts", "prompts[1]"),
        (b'{"token_ids": [1, true]}', "token_ids", "token_ids[1]"),
        (b'{"token_ids": [1, 2.0]}', "token_ids", "integer"),
        (b'{"token_ids": [-1]}', "token_ids", "0 to 256"),
        (b'{"token_ids": [257]}', "token_ids", "0 to 256"),
        (b'{"prompt": "a", "max_tokens": -1}', "max_tokens", "greater than or equal to 0"),
        (b'{"prompt": "a", "max_tokens": 0}', "max_tokens", "needs echo"),
        (b'{"prompt": "a", "max_tokens": "16"}', "max_tokens", "integer"),
        (b'{"prompt": "a", "max_tokens": 1.0}', "max_tokens", "integer"),
        (b'{"prompt": "a", "max_tokens": true}', "max_tokens", "integer"),
        (b'{"prompt": "a", "max_tokens": 9223372036854775808}', "max_tokens", "less"),
        (b'{"prompt": "a", "temperature": true}', "temperature", "number"),
        (b'{"prompt": "a", "temperature": "1"}', "temperature", "number"),
        (b'{"prompt": "a", "temperature": -0.1}', "temperature", "greater"),
        (b'{"prompt": "a", "temperature": 100.5}', "temperature", "less"),
        (b'{"prompt": "a", "top_p": 0}', "top_p", "greater"),
        (b'{"prompt": "a", "top_p": 1.1}', "top_p", "less"),
        (b'{"prompt": "a", "top_k": -1}', "top_k", "greater"),
        (b'{"prompt": "a", "min_p": 2}', "min_p", "less"),
        (b'{"prompt": "a", "repetition_penalty": 0}', "repetition_penalty", "greater"),
        (b'{"prompt": "a", "presence_penalty": 3}', "presence_penalty", "less"),
        (b'{"prompt": "a", "frequency_penalty": -3}', "frequency_penalty", "greater"),
        (b'{"prompt": "a", "seed": -1}', "seed", "greater"),
        (b'{"prompt": "a", "seed": 9223372036854775808}', "seed", "less"),
        (b'{"prompt": "a", "n": 0}', "n", "greater"),
        (b'{"prompt": "a", "n": 17}', "n", "less"),
        (b'{"prompt": "a", "stream": 1}', "stream", "boolean"),
        (b'{"prompt": "a", "echo": "yes"}', "echo", "boolean"),
        (b'{"prompt": "a", "deadline_s": 0}', "deadline_s", "greater"),
        (b'{"prompt": "a", "stop": ""}', "stop", "at least 1"),
        (b'{"prompt": "a", "stop": 5}', "stop", "list"),
        (b'{"prompt": "a", "stop": ["' + b"x" * 65 + b'"]}', "stop", "at most 64"),
        (b'{"prompt": "a", "stop": ' + json.dumps(["x"] * 9).encode() + b"}", "stop", "at most 8"),
        (b'{"prompt": "a", "logit_bias": {"257": 1}}', "logit_bias", "0 to 256"),
        (b'{"prompt": "a", "logit_bias": {"-1": 1}}', "logit_bias", "token id"),
        (b'{"prompt": "a", "logit_bias": {"1": 101}}', "logit_bias", "less"),
        (b'{"prompt": "a", "logit_bias": {"1": null}}', "logit_bias", "number"),
        (b'{"prompt": "a", "logit_bias": [1]}', "logit_bias", "dictionary"),
        (b'{"prompt": "a", "logprobs": 21}', "logprobs", "less than or equal to 20"),
        (b'{"prompt": "a", "logprobs": -1}', "logprobs", "greater than or equal to 0"),
        (b'{"prompt": "a", "logprobs": true}', "logprobs", "integer"),
        (b'{"prompt": "a", "priority": 1}', "priority", "'high', 'normal' or 'bulk'"),
        (b'{"prompt": "a", "priority": "urgent"}', "priority", "'high', 'normal' or 'bulk'"),
        (b'{"prompt": "a", "background": 1}', "background", "boolean"),
        (b'{"prompt": "a", "background": true, "stream": true}', "stream", "not both"),
        (b'{"prompt": "a", "regex": ""}', "regex", "at least 1"),
        (b'{"prompt": "a", "regex": "%b"}' % (b"a" * 16_385), "regex", "at most 16384"),
        (b'{"prompt": "a", "regex": "ab(c"}', "regex", "unclosed group, at character 3"),
        (b'{"prompt": "a", "regex": "(?=a)"}', "regex", "look-around"),
        (b'{"prompt": "a", "regex": "[^\\\\s\\\\S]"}', "regex", "vocabulary can spell"),
        (b'{"prompt": "a", "regex": "a", "json_schema": {}}', "regex", "not both"),
        (b'{"prompt": "a", "json_schema": true}', "json_schema", "must be an object"),
        (b'{"prompt": "a", "json_schema": "{}"}', "json_schema", "must be an object"),
        (b'{"prompt": "a", "json_schema": {"x": "%b"}}' % (b"a" * 16_385), "json_schema", "at most 16384"),
        (b'{"prompt": "a", "json_schema": {"items": {"type": "tree"}}}', "json_schema", "invalid type, at $.items"),
        (b'{"prompt": "a", "json_schema": {"not": {}}}', "json_schema", "unimplemented keys: not"),
        (b'{"prompt": "a", "json_schema": {"const": "\\ud800"}}', "json_schema", "at $"),
        (b'{"prompt": "a", "json_schema": {"const": 1e999}}', "json_schema", "at $"),
        (
            b'{"prompt": "a", "json_schema": ' + b'{"items": ' * 200 + b"{}" + b"}" * 201,
            "json_schema",
            "recursion limit",
        ),
    ],
)
def test_a_bad_body_is_a_400_that_names_the_field_and_the_reason(gateway, body, param, words):
    told = refuse(gateway, body)
    assert (told["status"], told["type"], told["code"]) == (400, "invalid_request_error", "invalid_request")
    assert told["param"] == param
    assert words in told["message"]


def test_what_does_not_fit_the_context_is_a_422_before_it_is_queued(gateway):
    told = refuse(gateway, b'{"prompt": "%b", "max_tokens": 57}' % (b"x" * 200))
    assert (told["status"], told["code"]) == (422, "context_length_exceeded")
    assert "200 prompt tokens and 57 new ones" in told["message"]
    assert refuse(gateway, b'{"prompt": "%b"}' % (b"x" * 256))["status"] == 422
    assert gateway.generate(prompt="x" * 200, max_tokens=56).status_code == 200


def test_an_unknown_model_is_a_404(gateway):
    told = refuse(gateway, b'{"prompt": "a", "model": "gpt-9"}')
    assert (told["status"], told["param"]) == (404, "model")
    assert "tiny" in told["message"]


def test_a_full_queue_is_a_429_that_says_when_to_come_back(start_gateway):
    with start_gateway(queue_settings=QueueSettings(max_queue_depth=2)) as gateway:
        answer = gateway.generate(prompt="a", n=3, max_tokens=1)
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert int(answer.headers["retry-after-ms"]) >= 1000
        assert answer.json()["error"]["code"] == "queue_full"


def test_without_a_worker_it_is_a_503_that_says_when_to_come_back(start_gateway):
    with start_gateway(with_worker=False) as gateway:
        answer = gateway.generate(prompt="a", max_tokens=1)
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert answer.headers["retry-after-ms"] == "1000"


def test_where_workers_start_for_what_waits_it_is_taken_without_any(start_gateway):
    with start_gateway(with_worker=False, wait_for_workers=True) as gateway:
        assert gateway.generate(prompt="a", max_tokens=1, background=True).status_code == 202
        assert "minigpt_requests_waiting 1.0\n" in gateway.client.get("/metrics").text


def test_nothing_of_a_request_is_quoted_or_logged(gateway, caplog):
    caplog.set_level(logging.DEBUG)
    bodies = [
        {"prompt": MARK, "temperature": MARK},
        {"prompt": [MARK]},
        {"prompt": MARK, f"{MARK}?": 1},
        {"prompt": MARK, "stop": [MARK, 1]},
        {"prompt": MARK, "model": MARK},
        {"prompt": MARK, "logit_bias": {MARK: 1}},
        {"prompt": MARK, "regex": f"({MARK}"},
        {"prompt": MARK, "regex": f"[^\\s\\S]{MARK}"},
        {"prompt": MARK, "json_schema": {"type": MARK}},
        {"prompt": MARK, "json_schema": {"$ref": f"#/{MARK}"}},
        {"prompt": MARK, "json_schema": {"$ref": f"http://{MARK}"}},
        {"prompt": MARK, "json_schema": {"pattern": f"({MARK}"}},
        {"prompt": MARK, "json_schema": {"format": MARK, "type": "string"}},
        {"prompt": MARK * 50},
        {"prompt": f"fail {MARK}", "max_tokens": 5},
    ]
    answers = [gateway.generate(**body) for body in bodies]
    answers.append(gateway.client.post("/generate", content=f'{{"prompt": "{MARK}" {MARK}'.encode()))
    assert all(answer.status_code >= 400 for answer in answers)
    assert not any(MARK in answer.text for answer in answers)
    assert gateway.generate(prompt=MARK, max_tokens=1).is_success
    assert MARK not in gateway.client.get("/metrics").text
    messages = [record.getMessage() for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    assert not any(MARK in message for message in messages)


def test_a_mistake_of_ours_is_a_500_and_its_words_stay_out_of_the_log(start_gateway, caplog):
    with start_gateway() as gateway:

        async def stumble(*_: object) -> None:
            raise KeyError(MARK)

        gateway.app.state.admission.admit = stumble
        answer = gateway.generate(prompt=MARK)
        assert answer.status_code == 500
        assert answer.json()["error"]["type"] == "server_error"
        assert answer.headers["x-request-id"] in caplog.text
        assert "KeyError" in caplog.text
        assert MARK not in caplog.text
        assert MARK not in answer.text


names = st.sampled_from(sorted(GenerateBody.model_fields))
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(width=64)
    | st.text(max_size=8)
    | st.sampled_from(["tiny", 2**63]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3) | st.just("7"), inner, max_size=3),
    max_leaves=6,
)
bodies = st.dictionaries(names, values, max_size=4) | st.dictionaries(names | st.text(max_size=4), values, max_size=4)


@settings(WITH_FIXTURES, max_examples=300)
@given(body=bodies, prompt=st.text(max_size=20) | st.none(), ascii_only=st.booleans())
def test_no_json_body_makes_a_5xx(gateway, body, prompt, ascii_only):
    if prompt is not None:
        body = {**body, "prompt": prompt, "max_tokens": 1}
    content = json.dumps(body, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    answer = gateway.client.post("/generate", content=content)
    assert answer.status_code in {200, 400, 404, 413, 422, 429, 503}
    assert answer.headers["x-request-id"]


@settings(WITH_FIXTURES, max_examples=100)
@given(content=st.binary(max_size=40))
def test_no_bytes_make_a_5xx(gateway, content):
    assert gateway.client.post("/generate", content=content).status_code == 400
