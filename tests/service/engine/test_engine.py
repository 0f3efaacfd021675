"""full sequence ≡ prefill + decode ≡ chunked prefill ≡ batched with strangers; the seed decides; no page is leaked."""

from collections.abc import Callable
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from service.engine.backends.native_slots import NativeSlotRunner
from service.engine.backends.torch_slots import TorchSlotRunner
from service.engine.engine import Engine
from service.engine.interface import StepOutput
from service.protocol import Claim
from tests.conftest import WITH_FIXTURES
from tests.service.engine.stepping import finish, run
from training.models.families import AnyModel
from training.models.gpt import GPT
from training.sample import sample
from training.tokenizers.char import CharTokenizer

PROMPTS = [[1], [5, 3, 8, 2, 11], list(range(20)), [9] * 37]
STRANGERS = [[4, 4, 4], list(range(30, 2, -1)), [7, 1] * 11]
SAMPLED = {"temperature": 0.9, "top_p": 0.9, "max_tokens": 16, "seed": 99}

MakeEngine = Callable[..., Engine]
MakeClaim = Callable[..., Claim]


def oracle(model: AnyModel, tokenizer: CharTokenizer, prompt: list[int], count: int) -> list[int]:
    banned = tokenizer.special_ids - {tokenizer.end_of_text_id}
    drawn = list(islice(sample(model, prompt, temperature=0, banned=banned), count))
    end = tokenizer.end_of_text_id
    return drawn[: drawn.index(end) + 1] if end in drawn else drawn


def past_of(engine: Engine) -> list[Tensor]:
    """Everything that the engine keeps of its sequences."""
    runner = engine.backend.runner
    if isinstance(runner, TorchSlotRunner | NativeSlotRunner):
        return list(runner._slots.tensors.values())
    storage = getattr(runner, "_kv", runner)
    return [storage.keys, storage.values]


@pytest.mark.parametrize("max_step_tokens", [8, 17, 512])
def test_greedy_text_equals_the_plain_decoder_in_any_chunks_and_company(
    model: AnyModel,
    tokenizer: CharTokenizer,
    engine_of: MakeEngine,
    make_claim: MakeClaim,
    max_step_tokens: int,
) -> None:
    engine = engine_of(model, max_step_tokens=max_step_tokens)
    tokens = finish(engine, *(make_claim(str(index), prompt) for index, prompt in enumerate(PROMPTS + STRANGERS)))
    for index, prompt in enumerate(PROMPTS):
        assert tokens[str(index)] == oracle(model, tokenizer, prompt, 12)


def test_same_seed_gives_the_same_tokens_whatever_else_runs(
    model: AnyModel, engine_of: MakeEngine, make_claim: MakeClaim
) -> None:
    alone = {}
    for index, prompt in enumerate(PROMPTS):
        alone |= finish(engine_of(model), make_claim(str(index), prompt, **SAMPLED))
    engine = engine_of(model)
    for index, prompt in enumerate(STRANGERS):
        engine.add(make_claim(f"stranger {index}", prompt, max_tokens=30, temperature=1.3, seed=index))
    outputs: list[StepOutput] = []
    for index, prompt in enumerate(PROMPTS):
        engine.add(make_claim(str(index), prompt, **SAMPLED))
        outputs += engine.step()
    together = run(engine, made_before=outputs)
    assert {id_: together[id_].token_ids for id_ in alone} == alone


def test_choices_and_seeds_differ(make_gpt: Callable[..., GPT], engine_of: MakeEngine, make_claim: MakeClaim) -> None:
    engine = engine_of(make_gpt())
    for index, changed in enumerate([{}, {"choice": 1}, {"seed": 100}]):
        engine.add(make_claim(str(index), [3, 1, 2], **(SAMPLED | {"temperature": 2.0, "top_p": 1.0} | changed)))
    tokens = finish(engine)
    assert len({tuple(ids) for ids in tokens.values()}) == 3


@pytest.mark.parametrize("num_logged", [1, 5, 15])
def test_another_worker_goes_on_from_the_log_as_the_first_would_have(
    model: AnyModel,
    tokenizer: CharTokenizer,
    engine_of: MakeEngine,
    make_claim: MakeClaim,
    num_logged: int,
) -> None:
    params = SAMPLED | {"logit_bias": {tokenizer.end_of_text_id: -100.0}}  # the text must not end before
    whole = finish(engine_of(model), make_claim("a", PROMPTS[1], **params))["a"]
    rest = finish(engine_of(model), make_claim("a", PROMPTS[1], whole[:num_logged], **params))["a"]
    assert whole[:num_logged] + rest == whole


def test_preemption_changes_no_token(gpt: GPT, engine_of: MakeEngine, make_claim: MakeClaim) -> None:
    claims = [make_claim(str(index), [index + 1] * 9, **(SAMPLED | {"max_tokens": 40})) for index in range(5)]
    tight, preempted = engine_of(gpt, num_pages=20), []
    made = run(tight, *claims, after_step=lambda: preempted.append(tight.last_step.num_preempted))
    assert sum(preempted) > 0
    assert {id_: each.token_ids for id_, each in made.items()} == finish(engine_of(gpt), *claims)
    assert tight.last_step.kv_cache_usage == 0


def test_a_freed_page_leaks_nothing_to_its_next_owner(
    model: AnyModel, tokenizer: CharTokenizer, engine_of: MakeEngine, make_claim: MakeClaim
) -> None:
    engine = engine_of(model, prefix_caching=False)
    finish(engine, make_claim("before", PROMPTS[3]))
    for stored in past_of(engine):
        stored.fill_(float("nan"))  # poison: whatever reads a page or slot that it did not write shows it
    tokens = finish(engine, *(make_claim(str(index), prompt) for index, prompt in enumerate(PROMPTS)))
    assert all(tokens[str(i)] == oracle(model, tokenizer, prompt, 12) for i, prompt in enumerate(PROMPTS))


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 30), st.integers(1, 30)),
        st.tuples(st.just("abort"), st.integers(0, 40), st.just(0)),
        st.tuples(st.just("step"), st.integers(1, 4), st.just(0)),
    ),
    max_size=60,
)


class Watched:
    """An engine whose books are checked after each step."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.ended: set[str] = set()

    def step(self) -> None:
        for output in self.engine.step():
            assert output.id not in self.ended
            if output.end:
                self.ended.add(output.id)
        scheduler, pool = self.engine._scheduler, self.engine.backend.pool
        held = [page for sequence in scheduler.running for page in sequence.page_table]
        assert len(set(held)) == pool.num_pages - pool.num_free
        assert not any(sequence.page_table for sequence in scheduler.waiting)
        assert len(scheduler.running) <= 8
        assert self.engine.last_step.num_tokens <= 16

    def abort(self, id_: str) -> None:
        self.engine.abort(id_)
        self.ended.add(id_)


@settings(WITH_FIXTURES, max_examples=25)
@given(operations=OPERATIONS, num_pages=st.integers(16, 40))
def test_no_page_is_leaked_and_everyone_ends_in_any_order_of_events(
    model: AnyModel,
    engine_of: MakeEngine,
    make_claim: MakeClaim,
    operations: list[tuple[str, int, int]],
    num_pages: int,
) -> None:
    num_slots = num_pages // 8  # of which a sequence takes one, and so fewer than may run
    watched = Watched(engine_of(model, num_pages=num_pages if isinstance(model, GPT) else num_slots))
    added: list[str] = []
    for kind, first, second in operations:
        if kind == "add":
            added.append(f"r{len(added)}")
            watched.engine.add(make_claim(added[-1], [1 + i % 20 for i in range(first)], max_tokens=second))
        elif kind == "step":
            for _ in range(first):
                watched.step()
        elif added:
            watched.abort(added[first % len(added)])
    num_steps = 0
    while watched.engine.has_work:
        watched.step()
        num_steps += 1
        assert num_steps < 3000
    assert watched.ended == set(added)
    assert watched.engine.backend.pool.num_free == watched.engine.backend.pool.num_pages


def test_stop_string_across_tokens_ends_the_sequence(
    make_gpt: Callable[..., GPT],
    tokenizer: CharTokenizer,
    engine_of: MakeEngine,
    make_claim: MakeClaim,
) -> None:
    params = {"logit_bias": {tokenizer.end_of_text_id: -100.0}, "temperature": 1.0}
    engine = engine_of(make_gpt())
    text = tokenizer.decode(finish(engine, make_claim("whole", PROMPTS[1], **params))["whole"])
    stop = text[4:7]
    made = run(engine, make_claim("a", PROMPTS[1], stop=(stop,), **params))["a"]
    assert made.outputs[-1].end is not None
    assert (made.end.finish_reason, made.end.stop_reason) == ("stop", stop)
    assert len(made.outputs) == text.index(stop) + len(stop)


@pytest.mark.parametrize(
    ("token_ids", "params"), [([], {}), ([1] * 60, {}), ([10_000], {}), ([-1], {}), ([1], {"max_tokens": 64})]
)
def test_what_cannot_be_computed_ends_with_an_error(
    make_gpt: Callable[..., GPT],
    engine_of: MakeEngine,
    make_claim: MakeClaim,
    token_ids: list[int],
    params: dict[str, int],
) -> None:
    engine = engine_of(make_gpt())
    made = run(engine, make_claim("bad", token_ids, **params), make_claim("good", [1, 2]))
    assert made["bad"].end.finish_reason == "error"
    assert made["good"].end.finish_reason in ("stop", "length")


def test_logits_that_are_not_finite_end_that_sequence_alone(
    make_gpt: Callable[..., GPT], tokenizer: CharTokenizer, engine_of: MakeEngine, make_claim: MakeClaim
) -> None:
    model = make_gpt()
    with torch.no_grad():
        model.model.embed_tokens.weight[13] = float("nan")
    engine = engine_of(model)
    made = run(engine, make_claim("nan", [13, 2]), make_claim("fine", PROMPTS[1]))
    assert made["nan"].end.finish_reason == "error"
    assert made["fine"].end.finish_reason in ("stop", "length")
    expected = oracle(model, tokenizer, PROMPTS[1], 12)
    assert made["fine"].token_ids == expected[: len(made["fine"].token_ids)]
