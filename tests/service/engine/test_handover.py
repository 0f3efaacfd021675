"""Wherever a worker died, another one goes on exactly as the first would have: tokens, log-probabilities and end."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.config import EngineSettings
from service.engine.engine import Engine
from service.engine.kernels.library import best_level
from service.engine.loading import make_engine
from service.protocol import Claim, Grammar, TokenLogprobs
from tests.conftest import WITH_FIXTURES
from training.models.gpt import GPT
from training.tokenizers.char import CharTokenizer

MakeGPT = Callable[..., GPT]
MakeClaim = Callable[..., Claim]

pytestmark = pytest.mark.skipif(best_level() is None, reason="no native kernels: installed without a C++ compiler")

PROMPT = [1, 2, 3, 4, 9] * 4
LENGTH = 60
CIRCLE = Grammar(kind="regex", source="(abcdef)+")  # guesses come true
WAYS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.9, "top_p": 0.9, "top_k": 12, "min_p": 0.02},
    {"temperature": 0.5, "repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.4},
    {"temperature": 0.7, "logprobs": 3, "prompt_logprobs": True},
    {"temperature": 1.2, "logit_bias": {5: 2.0, 6: 2.0}, "choice": 3},
    {"temperature": 1.0, "grammar": Grammar(kind="regex", source="(ab?c|de| f){3,30}\\.")},
    {"temperature": 1.0, "grammar": CIRCLE},
]


class Answer(NamedTuple):
    token_ids: list[int]
    logprobs: list[TokenLogprobs]
    end: tuple[str, str | None]
    num_steps: int


@pytest.fixture(scope="module")
def make_small_engine(make_gpt: MakeGPT, tokenizer: CharTokenizer) -> Callable[[], Engine]:
    model = make_gpt(context_length=128)

    def make() -> Engine:
        # Every step takes the same time: so a guess that is ever right is worth it.
        return make_engine(
            model, tokenizer, EngineSettings(kv_cache_mb=8, max_step_tokens=96), clock=itertools.count().__next__
        )

    return make


def answer(engine: Engine, claim: Claim, company: list[Claim]) -> Answer:
    token_ids, logprobs, end, num_steps = [], [], None, 0
    for each in [*company, claim]:
        engine.add(each)
    while end is None:
        num_steps += 1
        for output in engine.step():
            if output.id == claim.request.id:
                token_ids += output.token_ids
                logprobs += output.logprobs
                end = output.end
    return Answer(token_ids, logprobs, (end.finish_reason, end.stop_reason), num_steps)


@settings(WITH_FIXTURES, max_examples=60)
@given(
    way=st.sampled_from(WAYS),
    seed=st.integers(0, 2**63 - 1),
    cuts=st.lists(st.floats(0.0, 1.0, exclude_max=True), min_size=1, max_size=3).map(sorted),
    stop_at=st.integers(4, LENGTH - 4) | st.none(),
    num_strangers=st.integers(0, 3),
)
def test_another_worker_goes_on_as_the_first_would_have_wherever_it_died(
    make_small_engine: Callable[[], Engine],
    tokenizer: CharTokenizer,
    make_claim: MakeClaim,
    way: dict[str, Any],
    seed: int,
    cuts: list[float],
    stop_at: int | None,
    num_strangers: int,
) -> None:
    params = {"max_tokens": LENGTH, "seed": seed, "logit_bias": {tokenizer.end_of_text_id: -100.0}} | way
    whole = answer(make_small_engine(), make_claim("a", PROMPT, **params), [])
    if stop_at is not None and stop_at + 4 <= len(whole.token_ids):  # a cut may fall into it
        params["stop"] = (tokenizer.decode(whole.token_ids[stop_at : stop_at + 4]),)
        whole = answer(make_small_engine(), make_claim("a", PROMPT, **params), [])
    strangers = [make_claim(f"stranger {i}", [i + 2] * 9, temperature=1.0, seed=i) for i in range(num_strangers)]
    for cut in cuts:
        logged = whole.token_ids[: int(cut * len(whole.token_ids))]
        rest = answer(make_small_engine(), make_claim("a", PROMPT, logged, **params), strangers)
        assert logged + rest.token_ids == whole.token_ids
        assert rest.logprobs == whole.logprobs[len(whole.logprobs) - len(rest.logprobs) :]
        assert rest.end == whole.end


def test_guesses_are_made_and_come_true_after_a_handover(
    make_small_engine: Callable[[], Engine], tokenizer: CharTokenizer, make_claim: MakeClaim
) -> None:
    logged = tokenizer.encode("abcdef" * 3 + "ab")
    rest = answer(make_small_engine(), make_claim("a", PROMPT, logged, max_tokens=LENGTH, grammar=CIRCLE), [])
    assert tokenizer.decode(logged + rest.token_ids) == "abcdef" * (LENGTH // 6)
    assert rest.num_steps < len(rest.token_ids)
