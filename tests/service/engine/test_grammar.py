"""A text under a grammar matches it, is fixed by its seed, and harms nobody when it cannot go on."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.config import EngineSettings
from service.engine.engine import Engine
from service.engine.loading import make_engine
from service.protocol import Claim, Grammar
from tests.conftest import WITH_FIXTURES
from tests.service.engine.stepping import finish, run
from training.models.gpt import GPT
from training.tokenizers.bpe import BpeTokenizer
from training.tokenizers.char import CharTokenizer

BYTES = BpeTokenizer([(b" ", b"a"), (b'"', b":"), (b"1", b"2"), (b"\xc3", b"\xa9")])
PROMPT = [1, 5, 3]
REGEXES = ["(cat|dog)s?", "[a-f]{4,9}", "(ab)+é?", "([a-z]+ )*[a-z]+\\.", "a?", "(?s:.){3}", "x{5}(y|z{2})?"]
SHAPE = {"n_layer": 1, "vocab_size": BYTES.vocab_size, "context_length": 256}

MakeEngine = Callable[..., Engine]
MakeClaim = Callable[..., Claim]


def regex(source: str) -> Grammar:
    return Grammar(kind="regex", source=source)


def schema(source: dict[str, Any]) -> Grammar:
    return Grammar(kind="json_schema", source=json.dumps(source))


ways = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**63 - 1),
        "temperature": st.sampled_from([0.0, 1e-4, 1.0, 50.0]),
        "top_k": st.sampled_from([None, 1, 3]),
        "top_p": st.sampled_from([0.1, 1.0]),
        "min_p": st.sampled_from([0.0, 0.3]),
        "repetition_penalty": st.sampled_from([0.01, 1.0, 100.0]),
        "frequency_penalty": st.sampled_from([-2.0, 0.0, 2.0]),
        "logit_bias": st.sampled_from([{}, {7: 100.0}, {0: -100.0, 30: 100.0}]),
    }
)


@settings(WITH_FIXTURES, max_examples=40)
@given(model_seed=st.integers(0, 5), source=st.sampled_from(REGEXES), way=ways)
def test_a_text_that_stops_matches_whatever_the_model_and_the_sampling(
    make_gpt: Callable[..., GPT],
    tokenizer: CharTokenizer,
    engine_of: MakeEngine,
    make_claim: MakeClaim,
    model_seed: int,
    source: str,
    way: dict[str, Any],
) -> None:
    engine = engine_of(make_gpt(model_seed, n_layer=1))
    made = run(engine, make_claim("a", PROMPT, max_tokens=40, grammar=regex(source), **way))["a"]
    assert made.end.finish_reason in ("stop", "length")
    assert bool(re.fullmatch(source, tokenizer.decode(made.token_ids))) or made.end.finish_reason == "length"


@settings(WITH_FIXTURES, max_examples=20)
@given(model_seed=st.integers(0, 5), seed=st.integers(0, 2**63 - 1))
def test_json_fulfils_its_schema(
    make_gpt: Callable[..., GPT], make_claim: MakeClaim, model_seed: int, seed: int
) -> None:
    wanted = {
        "type": "object",
        "properties": {"a": {"enum": ["x", 12]}, "b": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    model = make_gpt(model_seed, **SHAPE)
    engine = make_engine(model, BYTES, EngineSettings(max_num_seqs=2, device="cpu", dtype="fp32"), num_pages=16)
    made = run(engine, make_claim("a", PROMPT, max_tokens=200, temperature=1.0, seed=seed, grammar=schema(wanted)))["a"]
    assert made.end.finish_reason == "stop"
    written = json.loads(BYTES.decode(made.token_ids))
    assert list(written) == ["a", "b"]
    assert written["a"] in ("x", 12)
    assert len(written["b"]) <= 3
    assert all(isinstance(value, bool) for value in written["b"])


def test_where_nothing_may_follow_the_text_stops_without_a_token_for_it(
    make_gpt: Callable[..., GPT], tokenizer: CharTokenizer, engine_of: MakeEngine, make_claim: MakeClaim
) -> None:
    engine = engine_of(make_gpt())
    made = run(engine, make_claim("a", PROMPT, grammar=regex("cat|dog")))["a"]
    assert tokenizer.decode(made.token_ids) in ("cat", "dog")
    assert len(made.token_ids) == 3
    assert (made.end.finish_reason, made.end.stop_reason) == ("stop", None)


def test_a_stop_string_ends_a_text_under_a_grammar(
    make_gpt: Callable[..., GPT], tokenizer: CharTokenizer, engine_of: MakeEngine, make_claim: MakeClaim
) -> None:
    engine = engine_of(make_gpt())
    made = run(engine, make_claim("a", PROMPT, grammar=regex("ab{20}"), stop=("bb",)))["a"]
    text = tokenizer.decode(made.token_ids)
    assert (text, made.end.finish_reason, made.end.stop_reason) == ("abb", "stop", "bb")


def test_the_seed_fixes_the_text_alone_in_company_and_after_another_worker(
    make_gpt: Callable[..., GPT], engine_of: MakeEngine, make_claim: MakeClaim
) -> None:
    model = make_gpt()
    params = {"grammar": regex("([a-f ]{2,5}[.,] ?){3,6}"), "temperature": 1.5, "max_tokens": 30}
    alone = {}
    for seed in range(4):
        alone |= finish(engine_of(model), make_claim(str(seed), PROMPT, seed=seed, **params))
    engine = engine_of(model)
    for index in range(3):
        engine.add(make_claim(f"free {index}", [index + 2] * 9, temperature=1.0, seed=index))
    for seed in range(4):
        engine.add(make_claim(str(seed), PROMPT, seed=seed, **params))
    together = finish(engine)
    assert {id_: together[id_] for id_ in alone} == alone
    for seed in range(4):
        whole = alone[str(seed)]
        for num_logged in (1, len(whole) // 2, len(whole) - 1):
            claim = make_claim("a", PROMPT, whole[:num_logged], seed=seed, **params)
            assert whole[:num_logged] + finish(engine_of(model), claim)["a"] == whole


@pytest.mark.parametrize(
    ("grammar", "logged", "error"),
    [
        (regex("("), "", "regex: unclosed group, at character 1"),
        (regex("[0-9]"), "", "regex: the grammar allows nothing that this model's vocabulary can spell"),
        (schema({"type": "tree"}), "", "json_schema: invalid type, at $"),
        (regex("a+"), "ab", "after 2 tokens, the grammar allows nothing that this model's vocabulary can spell"),
    ],
)
def test_what_cannot_go_on_ends_alone_with_an_error(
    make_gpt: Callable[..., GPT],
    tokenizer: CharTokenizer,
    engine_of: MakeEngine,
    make_claim: MakeClaim,
    grammar: Grammar,
    logged: str,
    error: str,
) -> None:
    engine = engine_of(make_gpt())
    engine.add(make_claim("bad", PROMPT, tokenizer.encode(logged), grammar=grammar))
    engine.add(make_claim("fine", PROMPT, grammar=regex("ab+")))
    made = run(engine)
    assert (made["bad"].end.finish_reason, made["bad"].end.error) == ("error", error)
    assert made["fine"].end.finish_reason in ("stop", "length")
    assert engine.last_step.kv_cache_usage == 0


def test_logits_not_finite_are_told_from_a_grammar_that_cannot_go_on(
    make_gpt: Callable[..., GPT], engine_of: MakeEngine, make_claim: MakeClaim
) -> None:
    model = make_gpt()
    with torch.no_grad():
        model.lm_head.weight[13] = float("nan")  # of a token that the grammar does not allow
    engine = engine_of(model)
    engine.add(make_claim("a", PROMPT, grammar=regex("ab")))
    assert run(engine)["a"].end.error == "the model's logits are not finite"
