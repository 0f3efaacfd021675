"""What is found is what would have been computed; nobody waits for ever, no page is lost, no tenant reads another's."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from torch import Tensor

from service.engine.backends.native_paged import NativeRunner
from service.engine.engine import Engine
from service.engine.page_pool import PagePool
from service.engine.scheduler import FIXED_COST, PREFILL_SHARE, ScheduledChunk, Scheduler
from service.engine.sequence import Sequence
from service.protocol import Claim, End, Request, SamplingParams
from tests.service.engine.stepping import run
from training.models.gpt import GPT
from training.tokenizers.char import CharTokenizer

MakeEngine = Callable[..., Engine]
MakeClaim = Callable[..., Claim]
SAMPLED = {"temperature": 0.9, "seed": 99}
PROMPT = [(7 * index) % 29 for index in range(40)]


class Recorded:
    """An engine, what it answers, and the logits of each token that it drew."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.logits: dict[str, list[Tensor]] = {}
        self.ends: dict[str, End] = {}
        self._sample = engine.backend.sampler
        engine.backend = engine.backend._replace(sampler=self._record)

    def _record(self, logits: Tensor, sequences: list[Sequence]) -> list[int | None]:
        for sequence, row in zip(sequences, logits, strict=True):
            self.logits.setdefault(sequence.id, []).append(row.clone())
        return self._sample(logits, sequences)

    def finish(self, *claims: Claim) -> dict[str, list[int]]:
        made = run(self.engine, *claims)
        self.ends |= {id_: each.end for id_, each in made.items()}
        return {id_: each.token_ids for id_, each in made.items()}


@pytest.fixture
def endless(tokenizer: CharTokenizer) -> dict[str, object]:
    return SAMPLED | {"logit_bias": {tokenizer.end_of_text_id: -100.0}}


@pytest.mark.parametrize("max_step_tokens", [16, 512])
def test_a_hit_gives_the_tokens_that_computing_gives(
    gpt: GPT, engine_of: MakeEngine, make_claim: MakeClaim, endless: dict[str, object], max_step_tokens: int
) -> None:
    """With the native kernels the logits are the same to the bit."""
    warm = Recorded(engine_of(gpt, max_step_tokens=max_step_tokens))
    answer = warm.finish(make_claim("first", PROMPT[:30], max_tokens=10, **endless))["first"]
    prompts = {"again": PROMPT[:30], "longer": PROMPT, "answered": [*PROMPT[:30], *answer, 5, 6]}
    claims = [make_claim(name, prompt, **endless) for name, prompt in prompts.items()]
    found = warm.finish(*claims)
    cold = Recorded(engine_of(gpt, max_step_tokens=max_step_tokens, prefix_caching=False))
    assert found == cold.finish(*claims)
    exact = isinstance(warm.engine.backend.runner, NativeRunner)
    for name in prompts:
        for ours, computed in zip(warm.logits[name], cold.logits[name], strict=True):
            torch.testing.assert_close(ours, computed, rtol=0, atol=0 if exact else 1e-5)
    size = warm.engine.backend.pool.page_size
    # Of the first answer's 39 computed tokens the last page is not full; and the last token is always computed.
    assert {name: end.cached_tokens for name, end in warm.ends.items()} == {
        "first": 0,
        "again": 29 // size * size,
        "longer": 30 // size * size,
        "answered": 39 // size * size,
    }
    assert all(end.cached_tokens == 0 for end in cold.ends.values())


def test_choices_at_once_share_their_prompt_and_answer_as_if_alone(
    gpt: GPT, engine_of: MakeEngine, make_claim: MakeClaim, endless: dict[str, object]
) -> None:
    claims = [make_claim(str(choice), PROMPT, choice=choice, **endless) for choice in range(4)]
    together = Recorded(engine_of(gpt, max_step_tokens=512))
    tokens = together.finish(*claims)
    for claim in claims:
        alone = Recorded(engine_of(gpt)).finish(claim)
        assert tokens[claim.request.id] == alone[claim.request.id]
    assert len({tuple(ids) for ids in tokens.values()}) > 1
    size = together.engine.backend.pool.page_size
    cached = 39 // size * size
    assert [together.ends[claim.request.id].cached_tokens for claim in claims] == [0, cached, cached, cached]


def test_a_step_tells_what_was_looked_up_and_found(
    make_gpt: Callable[..., GPT], engine_of: MakeEngine, make_claim: MakeClaim
) -> None:
    engine = engine_of(make_gpt(), max_step_tokens=512)
    for name in ("a", "b"):
        engine.add(make_claim(name, PROMPT))
    engine.step()
    size = engine.backend.pool.page_size
    assert (engine.last_step.num_queried_tokens, engine.last_step.num_found_tokens) == (80, 39 // size * size)
    engine.step()
    assert (engine.last_step.num_queried_tokens, engine.last_step.num_found_tokens) == (0, 0)


def test_tenants_share_nothing(make_gpt: Callable[..., GPT], engine_of: MakeEngine, make_claim: MakeClaim) -> None:
    recorded = Recorded(engine_of(make_gpt()))
    recorded.finish(*(make_claim(tenant, PROMPT, tenant=tenant) for tenant in ("", "a", "b")))
    assert [end.cached_tokens for end in recorded.ends.values()] == [0, 0, 0]


def test_logits_that_are_not_finite_leave_nothing_in_the_cache(
    make_gpt: Callable[..., GPT], engine_of: MakeEngine, make_claim: MakeClaim
) -> None:
    model = make_gpt()
    with torch.no_grad():
        model.model.embed_tokens.weight[30] = float("nan")
    recorded = Recorded(engine_of(model))
    recorded.finish(make_claim("bad", [*PROMPT, 30]))
    recorded.finish(make_claim("good", PROMPT))
    assert recorded.ends["bad"].finish_reason == "error"
    assert recorded.ends["good"].finish_reason != "error"
    assert recorded.ends["good"].cached_tokens == 0
    assert recorded.engine.backend.pool.usage == 0


# A small pool, whose storage holds for each slot the whole past of the token that was written there.

PAGE_SIZE, NUM_PAGES, MAX_CONTEXT, MAX_NUM_SEQS, MAX_STEP_TOKENS = 4, 12, 40, 5, 24
TOKENIZER = CharTokenizer("ab")
Past = tuple[str, tuple[int, ...]]


class Schedules(RuleBasedStateMachine):
    """Any order of submit, step, abort, failure: the books are right, and each sequence reads its own past alone."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(NUM_PAGES, PAGE_SIZE)
        self.scheduler = Scheduler(self.pool, MAX_NUM_SEQS, MAX_STEP_TOKENS)
        self.storage: dict[tuple[int, int], Past] = {}
        self.arrivals: list[Sequence] = []
        """Those who have not ended, in the order in which they came."""
        self.num_added = 0

    @rule(
        tenant=st.sampled_from(["", "a"]),
        start=st.integers(0, 2),
        num_tokens=st.integers(1, 36),
        odd=st.booleans(),
        max_tokens=st.integers(1, 30),
    )
    def submit(self, tenant: str, start: int, num_tokens: int, odd: bool, max_tokens: int) -> None:
        """Add one of few prompts, so that many begin alike; some differ in their last token."""
        token_ids = [(start + index // 6) % 3 for index in range(num_tokens - odd)] + [3] * odd
        params = SamplingParams(max_tokens=min(max_tokens, MAX_CONTEXT - num_tokens), seed=1)
        request = Request(
            id=str(self.num_added), model="m", revision="r", token_ids=tuple(token_ids), params=params, tenant=tenant
        )
        self.num_added += 1
        self.arrivals.append(Sequence(Claim(request=request, epoch=1), TOKENIZER, 0.0))
        self.scheduler.add(self.arrivals[-1])

    @rule(drawn=st.lists(st.integers(0, 2), min_size=1, max_size=8))
    def step(self, drawn: list[int]) -> None:
        """Compute a step; what is drawn repeats, so that answers go on alike too."""
        decoding = {sequence for sequence in self.scheduler.running if sequence.num_to_compute == 1}
        chunks = self.scheduler.schedule()
        self.check_works(chunks, decoding)
        for chunk in chunks:
            self.write(chunk)
        for chunk in chunks:
            chunk.sequence.num_computed_tokens += chunk.num_tokens
        self.each_reads_its_own_past()
        sampled = [chunk.sequence for chunk in chunks if chunk.sequence.num_to_compute == 0]
        for index, sequence in enumerate(sampled):
            if sequence.append(drawn[index % len(drawn)], 0.0):
                self.end(sequence)

    @rule(which=st.integers(0, 30))
    def abort(self, which: int) -> None:
        """Let one go, wherever it is."""
        if self.arrivals:
            self.end(self.arrivals[which % len(self.arrivals)])

    @rule(which=st.integers(0, 30))
    def fail(self, which: int) -> None:
        """Let one go whose pages are not to be trusted; nobody finds what they hold."""
        if self.scheduler.running:
            sequence = self.scheduler.running[which % len(self.scheduler.running)]
            pages = set(sequence.page_table)
            self.pool.discard(sequence)
            self.end(sequence)
            assert not pages & self.pool._key_of.keys()

    def teardown(self) -> None:
        """Everybody ends."""
        for _ in range(MAX_CONTEXT * len(self.arrivals)):
            self.step([0, 1])
        assert not self.arrivals
        assert self.pool.usage == 0

    def end(self, sequence: Sequence) -> None:
        self.scheduler.remove(sequence)
        self.arrivals.remove(sequence)

    def check_works(self, chunks: list[ScheduledChunk], decoding: set[Sequence]) -> None:
        sizes = [chunk.num_tokens for chunk in chunks]
        assert sizes == sorted(sizes, key=lambda size: size > 1)
        assert sum(sizes) <= MAX_STEP_TOKENS
        assert all(1 <= chunk.num_tokens <= chunk.sequence.num_to_compute for chunk in chunks)
        computed = [chunk.sequence for chunk in chunks]
        assert not self.arrivals or self.arrivals[0] in computed, "the oldest always proceeds"
        if num_decodes := len(decoding.intersection(computed)):
            assert sum(sizes) - num_decodes <= PREFILL_SHARE * (FIXED_COST + num_decodes) * len(self.arrivals)

    def write(self, chunk: ScheduledChunk) -> None:
        sequence, first = chunk.sequence, chunk.sequence.num_computed_tokens
        for position in range(first, first + chunk.num_tokens):
            self.storage[slot(sequence, position)] = past(sequence, position)

    def each_reads_its_own_past(self) -> None:
        for sequence in self.scheduler.running:
            for position in range(sequence.num_computed_tokens):
                assert self.storage[slot(sequence, position)] == past(sequence, position)

    @invariant()
    def books_are_right(self) -> None:
        holders = Counter(page for sequence in self.arrivals for page in sequence.page_table)
        assert self.pool._num_holders == [holders[page] for page in range(NUM_PAGES)]
        assert set(self.pool._free) == set(range(NUM_PAGES)) - set(holders)
        assert {page: key for key, page in self.pool._page_of.items()} == self.pool._key_of
        assert all(len(set(sequence.page_table)) == len(sequence.page_table) for sequence in self.arrivals)

    @invariant()
    def order_is_that_of_arrival(self) -> None:
        assert [*self.scheduler.running, *self.scheduler.waiting] == self.arrivals
        assert len(self.scheduler.running) <= MAX_NUM_SEQS
        assert not any(sequence.page_table for sequence in self.scheduler.waiting)


def slot(sequence: Sequence, position: int) -> tuple[int, int]:
    return sequence.page_table[position // PAGE_SIZE], position % PAGE_SIZE


def past(sequence: Sequence, position: int) -> Past:
    return sequence.request.tenant, tuple(sequence.token_ids[: position + 1])


TestSchedules = Schedules.TestCase
TestSchedules.settings = settings(max_examples=80, stateful_step_count=60)
