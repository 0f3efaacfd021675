"""Models of two families behind one `minigpt serve`: the same API, the same promises."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.checkpoints import save_untrained
from training.models.base import UNBOUNDED_CONTEXT


@pytest.fixture(scope="module")
def families(serving, checkpoint, make_model_of, tokenizer, tmp_path_factory):
    """A server of an LSTM and a GPT."""
    folder = save_untrained(tmp_path_factory.mktemp("families") / "lstm", make_model_of("lstm"), tokenizer)
    with serving(f"--model=lstm={folder}", f"--model=gpt={checkpoint}") as server:
        yield server


@pytest.fixture(scope="module")
def body(tokenizer):
    """A request that takes a while: its text cannot end early."""
    never = {str(tokenizer.end_of_text_id): -100}
    return {"prompt": "once upon", "max_tokens": 60, "seed": 11, "temperature": 1.0, "logit_bias": never}


def worker_of(server, model):
    [worker] = [
        process
        for process in server.workers()
        if any(word.startswith(f"--model={model}=") for word in process.cmdline())
    ]
    return worker


def test_each_answers_under_its_name_and_streams_the_same(families, body):
    answers = {}
    for model in ("lstm", "gpt"):
        choice = families.generate(**body, model=model)["choices"][0]
        frames = list(families.stream(**body, model=model))
        assert "".join(frame["text"] for frame in frames) == choice["text"]
        assert [id_ for frame in frames for id_ in frame["token_ids"]] == choice["token_ids"]
        assert (len(choice["token_ids"]), choice["finish_reason"]) == (60, "length")
        answers[model] = choice["text"]
    assert answers["lstm"] != answers["gpt"]


@pytest.mark.parametrize("model", ["lstm", "gpt"])
def test_the_same_seed_has_the_same_text_beside_strangers(families, body, model):
    bodies = [{**body, "model": model, "prompt": "once upon"[: 2 + seed], "seed": seed} for seed in range(6)]
    alone = [families.generate(**each)["choices"][0]["text"] for each in bodies]
    with ThreadPoolExecutor(6) as threads:
        together = list(threads.map(lambda each: families.generate(**each)["choices"][0]["text"], bodies))
    assert together == alone


def test_choices_log_probabilities_and_grammars_are_those_of_the_api(families, tokenizer):
    made = families.generate(model="lstm", prompt="once upon", n=3, seed=1, max_tokens=9, temperature=1.5, logprobs=2)
    assert len({choice["text"] for choice in made["choices"]}) == 3
    logprobs = made["choices"][1]["logprobs"]
    whole = [*tokenizer.encode("once upon"), *made["choices"][1]["token_ids"]]
    scored = families.generate(model="lstm", token_ids=whole, max_tokens=0, echo=True, logprobs=2)["choices"][0]
    assert scored["logprobs"]["token_logprobs"][9:] == pytest.approx(logprobs["token_logprobs"], abs=1e-4)
    matched = families.generate(model="lstm", prompt="once", regex="([a-f]{3} ){2,4}\\.", seed=5, max_tokens=60)
    assert re.fullmatch("([a-f]{3} ){2,4}\\.", matched["choices"][0]["text"])


def test_the_metrics_carry_both(families, body):
    for model in ("lstm", "gpt"):
        families.generate(**body, model=model)
    text = families.client.get("/metrics").text
    for name in ("minigpt_step_seconds_count", "minigpt_kv_cache_usage_ratio", "minigpt_engine_info"):
        assert set(re.findall(rf'^{name}{{.*model="(\w+)"', text, re.MULTILINE)) == {"lstm", "gpt"}


def test_a_model_without_bounds_says_so_and_still_has_one(families):
    lengths = {model["id"]: model["max_model_len"] for model in families.client.get("/v1/models").json()["data"]}
    assert lengths == {"lstm": UNBOUNDED_CONTEXT, "gpt": 2048}
    refused = families.client.post("/generate", json={"model": "lstm", "prompt": "a", "max_tokens": UNBOUNDED_CONTEXT})
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "context_length_exceeded")
    made = families.generate(model="lstm", prompt="once upon " * 30, seed=1)
    assert made["usage"]["prompt_tokens"] == 300


def test_a_worker_killed_in_mid_stream_changes_no_token(families, body):
    long = {**body, "model": "lstm", "max_tokens": 600}
    undisturbed = families.generate(**long)["choices"][0]
    reading = families.stream(**long)
    seen = [next(reading)]
    worker_of(families, "lstm").kill()
    seen += reading
    assert "ended by signal 9" in families.log.read_text()
    assert [id_ for frame in seen for id_ in frame["token_ids"]] == undisturbed["token_ids"]
    assert "".join(frame["text"] for frame in seen) == undisturbed["text"]
