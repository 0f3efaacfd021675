"""Log-probabilities and grammars through gateway, queue and worker: real processes and a real (tiny) model."""

import re

import pytest


def test_generated_tokens_score_the_same_as_tokens_of_a_prompt(server, tokenizer):
    made = server.generate(prompt="once upon", max_tokens=30, seed=3, temperature=1.2, logprobs=4)["choices"][0]
    logprobs = made["logprobs"]
    assert logprobs["token_ids"] == made["token_ids"]
    whole = [*tokenizer.encode("once upon"), *made["token_ids"]]
    scored = server.generate(token_ids=whole, max_tokens=0, echo=True, logprobs=4)["choices"][0]
    assert (scored["token_ids"], scored["finish_reason"]) == ([], "length")
    assert scored["logprobs"]["token_ids"] == whole
    assert scored["logprobs"]["token_logprobs"][0] is scored["logprobs"]["top_logprobs"][0] is None
    assert scored["logprobs"]["token_logprobs"][9:] == pytest.approx(logprobs["token_logprobs"], abs=1e-4)
    for chosen, top in zip(
        scored["logprobs"]["token_logprobs"][1:], scored["logprobs"]["top_logprobs"][1:], strict=True
    ):
        assert len(top) == 4
        assert chosen <= top[0][1] < 0


def test_frames_tell_what_the_answer_tells(server):
    body = {"prompt": "once upon", "max_tokens": 30, "seed": 3, "temperature": 1.2, "logprobs": 2, "echo": True}
    choice = server.generate(**body)["choices"][0]
    frames = list(server.stream(**body))
    for name in ("token_ids", "token_logprobs", "top_logprobs"):
        assert [entry for frame in frames for entry in frame["logprobs"][name]] == choice["logprobs"][name]
    assert len(choice["logprobs"]["token_ids"]) == 9 + len(choice["token_ids"])


@pytest.mark.parametrize("pattern", ["(yes|no)[.]", "([a-f]{3} ){2,4}\\.", "é€{1,9},?"])
def test_a_text_matches_its_regex_and_its_seed_fixes_it(server, pattern):
    body = {"prompt": "once upon", "regex": pattern, "seed": 5, "max_tokens": 60}
    choice = server.generate(**body)["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert re.fullmatch(pattern, choice["text"])
    assert "".join(frame["text"] for frame in server.stream(**body)) == choice["text"]


def test_what_the_vocabulary_cannot_spell_is_a_400(server):
    answer = server.client.post("/generate", json={"prompt": "a", "json_schema": {"type": "object"}})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "json_schema"
    assert "vocabulary can spell" in answer.json()["error"]["message"]
