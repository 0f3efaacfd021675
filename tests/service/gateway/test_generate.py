"""What `POST /generate` answers: the same words in one JSON answer and as a stream."""

import json
import re

import pytest

REPLY = "né 🦜 and on it goes.\nAct II, in which nothing happens at all. "


def read_stream(text: str) -> tuple[list[dict], list[str]]:
    """Return frames and their ids; every event must be a frame, and the last one [DONE]."""
    assert text.endswith("\n\n")
    *events, done = text.removesuffix("\n\n").split("\n\n")
    assert done == "data: [DONE]"
    matches = [re.fullmatch(r"(?:id: (\S+)\n)?data: (\{.*\})", event) for event in events]
    return [json.loads(match[2]) for match in matches], [match[1] for match in matches]


def count_positions(frames: list[dict], num_choices: int) -> list[str]:
    """What each frame's id must tell: the tokens of every choice so far, and which have ended."""
    counts, ends, positions = [0] * num_choices, [""] * num_choices, []
    for frame in frames:
        counts[frame["index"]] += len(frame["token_ids"])
        ends[frame["index"]] = "e" if frame["finish_reason"] else ""
        positions.append(".".join(f"{count}{end}" for count, end in zip(counts, ends, strict=True)))
    return positions


def test_answer_has_text_tokens_reasons_usage_seed_and_timings(gateway):
    answer = gateway.generate(prompt="Once", max_tokens=9, seed=7)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert body.pop("timings").keys() == {"queue_ms", "prefill_ms", "decode_ms", "tokens_per_s"}
    assert body == {
        "id": answer.headers["x-request-id"],
        "model": "tiny",
        "revision": "sha256:0",
        "seed": 7,
        "choices": [
            {
                "index": 0,
                "text": REPLY.encode()[:9].decode("utf-8", "replace"),
                "token_ids": list(REPLY.encode()[:9]),
                "finish_reason": "length",
                "stop_reason": None,
                "logprobs": None,
            }
        ],
        "usage": {"prompt_tokens": 4, "completion_tokens": 9, "total_tokens": 13, "cached_tokens": 0},
    }


def test_timings_are_the_engines(gateway):
    timings = gateway.generate(prompt="Once", max_tokens=20).json()["timings"]
    assert timings["prefill_ms"] == 250
    assert timings["decode_ms"] == 500
    assert timings["tokens_per_s"] == 40
    assert timings["queue_ms"] >= 0


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "Once", "max_tokens": 50},
        {"prompt": "Once", "max_tokens": 1},
        {"prompt": "Once", "max_tokens": 50, "stop": "it goes"},
        {"prompt": "Once", "max_tokens": 50, "stop": ["never met", "goes.\nAct I", "Act II"], "echo": True},
        {"prompt": "Once", "max_tokens": 5, "echo": True},
        {"prompts": ["a", "née ", ""], "max_tokens": 30, "n": 3, "stop": ["II"], "echo": True},
        {"token_ids": [79, 110], "max_tokens": 8, "echo": True},
        {"prompt": "Once", "max_tokens": 50, "stop": "goes.\nAct I", "logprobs": 0},
        {"prompts": ["a", "née "], "max_tokens": 20, "n": 2, "logprobs": 2, "echo": True},
    ],
)
def test_stream_has_the_same_text_tokens_and_ends(gateway, body):
    whole = gateway.generate(**body, seed=3)
    stream = gateway.generate(**body, seed=3, stream=True)
    assert stream.headers["content-type"] == "text/event-stream"
    frames, ids = read_stream(stream.text)
    for choice in whole.json()["choices"]:
        own = [frame for frame in frames if frame["index"] == choice["index"]]
        assert "".join(frame["text"] for frame in own) == choice["text"]
        assert [token_id for frame in own for token_id in frame["token_ids"]] == choice["token_ids"]
        assert [frame["finish_reason"] for frame in own] == [None] * (len(own) - 1) + [choice["finish_reason"]]
        assert own[-1]["stop_reason"] == choice["stop_reason"]
        for key in choice["logprobs"] or ():
            assert [entry for frame in own for entry in frame["logprobs"][key]] == choice["logprobs"][key]
        assert choice["logprobs"] or not any(frame["logprobs"] for frame in own)
    assert {frame["id"] for frame in frames} == {stream.headers["x-request-id"]}
    assert ids == [
        f"{frames[0]['id']}-{position}" for position in count_positions(frames, len(whole.json()["choices"]))
    ]
    assert frames[-1]["usage"] == whole.json()["usage"]
    assert frames[-1]["seed"] == 3
    assert "timings" in frames[-1]
    assert all("usage" not in frame for frame in frames[:-1])


def test_log_probabilities_stand_side_by_side_one_for_each_token(gateway):
    choice = gateway.generate(prompt="Once", max_tokens=3, logprobs=2).json()["choices"][0]
    ids = choice["token_ids"]
    assert choice["logprobs"] == {
        "token_ids": ids,
        "token_logprobs": [-id_ / 8 for id_ in ids],
        "top_logprobs": [[[id_, -id_ / 8], [id_ + 1, -(id_ + 1) / 8]] for id_ in ids],
    }


@pytest.mark.parametrize("prompt", ["O", "Once"])
def test_with_echo_the_prompts_come_first_and_its_first_token_has_none(gateway, prompt):
    body = {"prompt": prompt, "max_tokens": 2, "echo": True, "logprobs": 0}
    choice = gateway.generate(**body).json()["choices"][0]
    told = choice["logprobs"]
    assert told["token_ids"] == [*prompt.encode(), *choice["token_ids"]]
    assert told["token_logprobs"] == [None, *(-id_ / 8 for id_ in told["token_ids"][1:])]
    assert told["top_logprobs"] == [None] + [[]] * (len(prompt) + 1)
    first, *_ = read_stream(gateway.generate(**body, stream=True).text)[0]
    assert first["text"].startswith(prompt)
    assert first["logprobs"]["token_ids"][: len(prompt)] == list(prompt.encode())


def test_text_ends_before_the_stop_string_and_the_tokens_stay(gateway):
    choice = gateway.generate(prompt="Once", max_tokens=60, stop=["Act", "goes."]).json()["choices"][0]
    assert choice["text"] == "né 🦜 and on it "
    assert choice["finish_reason"] == "stop"
    assert choice["stop_reason"] == "goes."
    assert bytes(choice["token_ids"]).decode() == "né 🦜 and on it goes."


def test_no_frame_holds_half_a_character_or_the_start_of_a_stop_string(gateway):
    frames, _ = read_stream(gateway.generate(prompt="Once", max_tokens=30, stop=["goes.\nX"], stream=True).text)
    texts = [frame["text"] for frame in frames]
    assert "🦜" in texts
    assert "goes.\nA" in texts
    assert not any("\ufffd" in text for text in texts)


def test_choices_are_ordered_by_prompt_and_differ_by_choice(gateway):
    answer = gateway.generate(prompts=["a", "bc"], n=2, max_tokens=12, seed=1).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    texts = [bytes(choice["token_ids"]) for choice in answer["choices"]]
    assert texts == [REPLY.encode()[choice : choice + 12] for choice in (0, 1, 0, 1)]
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 48, "total_tokens": 51, "cached_tokens": 0}


def test_requests_are_named_after_the_answer_and_carry_its_parameters(gateway):
    answer = gateway.generate(
        prompt="Once upon",
        n=2,
        max_tokens=2,
        seed=5,
        temperature=0,
        top_k=0,
        top_p=0.5,
        logit_bias={"65": -100},
        deadline_s=60,
    ).json()
    requests = gateway.engine.wait_for_claims("Once upon", 2)
    for choice in range(2):
        request = requests[f"{answer['id']}-{choice}"]
        assert request.params.choice == choice
        assert (request.params.seed, request.params.temperature, request.params.top_k) == (5, 0, None)
        assert (request.params.top_p, request.params.min_p) == (0.5, 0)
        assert request.params.logit_bias == {65: -100}
        assert request.deadline_s == 60
        assert (request.revision, request.tenant, request.priority) == ("sha256:0", "", "normal")
        assert (request.num_choices, request.echo) == (2, False)


def test_a_temperature_that_would_overflow_is_none(gateway):
    gateway.generate(prompt="cold", max_tokens=1, temperature=5e-324)
    (request,) = gateway.engine.wait_for_claims("cold").values()
    assert request.params.temperature == 0


def test_a_seed_is_drawn_and_returned_so_that_every_answer_can_be_repeated(gateway):
    seeds = {gateway.generate(prompt="Once", max_tokens=1).json()["seed"] for _ in range(3)}
    assert len(seeds) == 3
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("body", [{"prompt": ""}, {"token_ids": []}, {"prompts": [""]}])
def test_an_empty_prompt_starts_a_new_text(gateway, body):
    answer = gateway.generate(**body, max_tokens=3, echo=True).json()
    assert answer["usage"]["prompt_tokens"] == 1
    assert answer["choices"][0]["text"] == "né"


@pytest.mark.parametrize(("prompt", "expected"), [("x" * 10, 128), ("x" * 200, 56)])
def test_without_max_tokens_it_is_128_or_what_the_context_holds(gateway, prompt, expected):
    assert gateway.generate(prompt=prompt).json()["usage"]["completion_tokens"] == expected


def test_nul_is_a_character_like_others(gateway):
    answer = gateway.generate(prompt="a\0b", max_tokens=1, echo=True)
    assert answer.json()["choices"][0]["text"].startswith("a\0b")


def test_null_is_the_default_everywhere(gateway):
    fields = gateway.client.get("/openapi.json").json()["paths"]["/generate"]["post"]["requestBody"]["content"]
    nothing = dict.fromkeys(fields["application/json"]["schema"]["properties"])
    assert gateway.generate(**{**nothing, "prompt": "Once"}).status_code == 200


def test_a_body_needs_no_content_type(gateway):
    headers = {"content-type": "application/x-www-form-urlencoded"}
    answer = gateway.client.post("/generate", content=b'{"prompt": "Once", "max_tokens": 2}', headers=headers)
    assert answer.status_code == 200


def test_a_failure_of_the_engine_is_a_500_that_is_not_to_be_repeated(gateway):
    answer = gateway.generate(prompt="fail", max_tokens=9)
    assert answer.status_code == 500
    assert answer.headers["x-should-retry"] == "false"
    error = {"message": "the engine failed: NaN in the logits", "type": "server_error", "param": None}
    assert answer.json() == {"error": {**error, "code": "engine_failure"}}


def test_a_failure_in_mid_stream_is_a_frame_and_ends_the_other_choices(gateway):
    answer = gateway.generate(prompts=["fail", "endless"], max_tokens=9, stream=True)
    frames, ids = read_stream(answer.text)
    assert frames[-1]["error"]["code"] == "engine_failure"
    assert ids[-1] is None
    gateway.engine.wait_for_cancels([f"{answer.headers['x-request-id']}-1"])


@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_that_passes_is_a_504(gateway, stream):
    answer = gateway.generate(prompt="mute", max_tokens=9, deadline_s=0.05, stream=stream)
    error = read_stream(answer.text)[0][-1]["error"] if stream else answer.json()["error"]
    assert error["code"] == "deadline_passed"
    assert error["type"] == "timeout_error"
    assert answer.status_code == (200 if stream else 504)
