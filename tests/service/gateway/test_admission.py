"""What a body asks for is what the worker gets."""

import json

import pytest

from service.protocol import Grammar, SamplingParams

SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {}}, "required": ["b"]}


def params_of(gateway, prompt: str, **body: object) -> SamplingParams:
    assert gateway.generate(prompt=prompt, **({"max_tokens": 1} | body)).is_success
    [request] = gateway.engine.wait_for_claims(prompt).values()
    return request.params


@pytest.mark.parametrize(
    ("body", "logprobs", "of_prompt"),
    [
        ({}, None, False),
        ({"echo": True}, None, False),
        ({"logprobs": 0}, 0, False),
        ({"logprobs": 20, "echo": True}, 20, True),
        ({"logprobs": 1, "echo": True, "max_tokens": 0}, 1, True),
    ],
)
def test_logprobs_of_the_prompt_are_wanted_where_it_is_echoed(gateway, body, logprobs, of_prompt):
    params = params_of(gateway, "scores", **body)
    assert (params.logprobs, params.prompt_logprobs) == (logprobs, of_prompt)


def test_nothing_may_be_generated_where_the_prompt_is_echoed(gateway):
    answer = gateway.generate(prompt="all of it", max_tokens=0, echo=True).json()
    assert answer["choices"][0]["text"] == "all of it"
    assert (answer["choices"][0]["token_ids"], answer["choices"][0]["finish_reason"]) == ([], "length")
    assert answer["usage"]["completion_tokens"] == 0


def test_a_regex_goes_to_the_worker_as_it_is(gateway):
    expected = Grammar(kind="regex", source="(yes|né)\n/")
    assert params_of(gateway, "under a regex", regex="(yes|né)\n/").grammar == expected


def test_a_schema_goes_to_the_worker_with_its_properties_in_order(gateway):
    grammar = params_of(gateway, "under a schema", json_schema=SCHEMA).grammar
    assert grammar.kind == "json_schema"
    assert json.dumps(json.loads(grammar.source)) == json.dumps(SCHEMA)
