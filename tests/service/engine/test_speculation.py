"""Guesses change when tokens come, never which."""

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.config import EngineSettings
from service.engine.engine import Engine
from service.engine.interface import StepOutput
from service.engine.kernels.library import best_level
from service.engine.loading import make_engine
from service.engine.sequence import Sequence
from service.engine.speculation import MATCH, PERIOD, PromptLookup, Speculation
from service.protocol import Claim, Grammar
from training.models.gpt import GPT
from training.tokenizers.char import CharTokenizer

MakeClaim = Callable[..., Claim]
ASKED = [
    {},
    {"temperature": 0.3, "seed": 5},
    {"temperature": 0.5, "repetition_penalty": 1.1, "frequency_penalty": 0.1},
    {"logit_bias": {5: 2.0, 6: 2.0}, "temperature": 0.1},
    {"logprobs": 2, "temperature": 0.2},
    {"stop": ("ab", "bc"), "temperature": 0.9},
    {"grammar": Grammar(kind="regex", source="(ab?c|de){3,30}"), "temperature": 0.4},
]


def steps(engine: Engine, claim: Claim) -> list[list[StepOutput]]:
    engine.add(claim)
    made = []
    while engine.has_work:
        made.append(engine.step())
    return made


def tell(outputs: list[list[StepOutput]]) -> list[tuple[object, ...]]:
    return [
        (output.token_ids, output.logprobs, output.end and (output.end.finish_reason, output.end.stop_reason))
        for step in outputs
        for output in step
    ]


@pytest.mark.skipif(best_level() is None, reason="no native kernels: installed without a C++ compiler")
def test_the_same_answers_in_fewer_steps(
    make_gpt: Callable[..., GPT], tokenizer: CharTokenizer, make_claim: MakeClaim
) -> None:
    model = make_gpt(context_length=256)
    answers = {}
    for speculation in (True, False):
        # Every step takes the same time: so a guess that is ever right is worth it.
        engine = make_engine(
            model, tokenizer, EngineSettings(speculation=speculation, kv_cache_mb=8), clock=itertools.count().__next__
        )
        for seed, params in enumerate(ASKED * 2):  # alone each time, with the pages of those before in the cache
            claim = make_claim(str(seed), [1, 2, 3, 4, seed] * 4, max_tokens=150, **({"seed": seed} | params))
            answers.setdefault(speculation, []).append(steps(engine, claim))
    assert [tell(answer) for answer in answers[True]] == [tell(answer) for answer in answers[False]]
    assert sum(map(len, answers[True])) < sum(map(len, answers[False]))


@pytest.mark.skipif(best_level() is None, reason="no native kernels: installed without a C++ compiler")
@pytest.mark.parametrize("max_step_tokens", [1, 3, 4])
def test_a_draft_keeps_to_the_budget_of_a_step(
    make_gpt: Callable[..., GPT], tokenizer: CharTokenizer, make_claim: MakeClaim, max_step_tokens: int
) -> None:
    small = EngineSettings(max_num_seqs=1, max_step_tokens=max_step_tokens, kv_cache_mb=8)
    engine = make_engine(make_gpt(), tokenizer, small, clock=itertools.count().__next__)
    engine.add(make_claim("a", [1, 2, 3, 4] * 4, max_tokens=40, logit_bias={5: 100.0}))
    sizes = set()
    while engine.has_work:
        engine.step()
        sizes.add(engine.last_step.num_tokens)
    assert max(sizes) == max_step_tokens  # what a runner has room for


@given(text=st.lists(st.integers(0, 2), min_size=1, max_size=60), count=st.integers(1, 5), start=st.integers(1, 60))
def test_a_guess_is_what_followed_the_last_time(text: list[int], count: int, start: int) -> None:
    lookup = PromptLookup()
    for length in range(min(start, len(text)), len(text) + 1):
        known = text[:length]
        earlier = [at for at in range(MATCH, length) if known[at - MATCH : at] == known[-MATCH:]]
        expected = known[earlier[-1] :][:count] if earlier and length >= MATCH else []
        assert lookup.guess(known, count) == expected


@pytest.mark.parametrize(("tokens_of_a_guess", "share"), [(3, 0.9), (1, 0.1)])
def test_guesses_are_made_only_where_they_measure_faster(
    tokenizer: CharTokenizer, make_claim: MakeClaim, tokens_of_a_guess: int, share: float
) -> None:
    speculation, guessed = Speculation(), 0
    sequence = Sequence(make_claim("a", [1, 2, 3] * 9, max_tokens=5000), tokenizer, 0.0)
    for _ in range(10 * PERIOD):
        is_guess = bool(speculation.guess(sequence))
        guessed += is_guess
        # A step with a draft takes twice as long.
        speculation.measure(is_guess, tokens_of_a_guess if is_guess else 1, 2.0 if is_guess else 1.0)
    assert (guessed / (10 * PERIOD) > share) == (tokens_of_a_guess > 2)
