from collections.abc import Callable

import pytest

from service.engine.page_pool import PagePool
from service.engine.scheduler import FIXED_COST, PREFILL_SHARE, ScheduledChunk, Scheduler
from service.engine.sequence import Sequence
from service.protocol import Claim
from training.models.base import UNBOUNDED_CONTEXT
from training.tokenizers.char import CharTokenizer

MakeSequence = Callable[..., Sequence]


@pytest.fixture
def make_sequence(tokenizer: CharTokenizer, make_claim: Callable[..., Claim]) -> MakeSequence:
    """Make sequences that have nothing in common, unless their names begin alike."""
    return lambda name, num_tokens: Sequence(make_claim(name, [ord(name[0])] * num_tokens), tokenizer, 0.0)


def advance(chunks: list[ScheduledChunk]) -> list[tuple[str, int]]:
    """Do as the engine does with a step, and return what it was."""
    for chunk in chunks:
        samples = chunk.num_logits
        chunk.sequence.num_computed_tokens += chunk.num_tokens
        if samples:
            chunk.sequence.token_ids.append(1)
    return [(chunk.sequence.id, chunk.num_tokens) for chunk in chunks]


def test_decodes_come_first_and_a_long_prefill_takes_what_is_left(make_sequence: MakeSequence) -> None:
    scheduler = Scheduler(PagePool(100, 4), max_num_seqs=4, max_step_tokens=10)
    scheduler.add(make_sequence("long", 25))
    assert advance(scheduler.schedule()) == [("long", 10)]
    scheduler.add(make_sequence("short", 3))
    assert advance(scheduler.schedule()) == [("long", 10)]
    assert advance(scheduler.schedule()) == [("long", 5), ("short", 3)]
    scheduler.add(make_sequence("next", 20))
    assert advance(scheduler.schedule()) == [("long", 1), ("short", 1), ("next", 8)]
    assert advance(scheduler.schedule()) == [("long", 1), ("short", 1), ("next", 8)]


def test_at_most_max_num_seqs_run(make_sequence: MakeSequence) -> None:
    scheduler = Scheduler(PagePool(100, 4), max_num_seqs=2, max_step_tokens=10)
    for name in "abc":
        scheduler.add(make_sequence(name, 2))
    assert advance(scheduler.schedule()) == [("a", 2), ("b", 2)]
    scheduler.remove(scheduler.running[0])
    assert advance(scheduler.schedule()) == [("b", 1), ("c", 2)]


def test_the_newest_gives_way_and_comes_back_first(make_sequence: MakeSequence) -> None:
    pool = PagePool(4, 4)
    scheduler = Scheduler(pool, max_num_seqs=4, max_step_tokens=16)
    for name, num_tokens in (("old", 8), ("new", 8), ("waiting", 1)):
        scheduler.add(make_sequence(name, num_tokens))
    assert advance(scheduler.schedule()) == [("old", 8), ("new", 8)]
    assert advance(scheduler.schedule()) == [("old", 1)]
    assert [sequence.id for sequence in scheduler.waiting] == ["new", "waiting"]
    assert scheduler.num_preempted == 1
    scheduler.remove(scheduler.running[0])
    # What the page taken from it held is computed again, the rest of its past is found; single tokens stand first.
    assert advance(scheduler.schedule()) == [("waiting", 1), ("new", 5)]


def test_a_sequence_is_admitted_only_when_all_of_it_fits(make_sequence: MakeSequence) -> None:
    pool = PagePool(4, 4)
    scheduler = Scheduler(pool, max_num_seqs=4, max_step_tokens=4)
    scheduler.add(make_sequence("a", 9))
    scheduler.add(make_sequence("b", 9))
    for _ in range(3):
        assert [name for name, _ in advance(scheduler.schedule())] == ["a"]
    assert scheduler.num_preempted == 0


@pytest.mark.parametrize("num_decodes", [1, 8, 31])
def test_a_long_prompt_takes_at_most_twice_what_a_step_takes_without_it(
    make_sequence: MakeSequence, num_decodes: int
) -> None:
    scheduler = Scheduler(PagePool(500, 4), max_num_seqs=32, max_step_tokens=512)
    for number in range(num_decodes):
        scheduler.add(make_sequence(chr(number), 3))
    advance(scheduler.schedule())
    scheduler.add(make_sequence("long", 1000))
    for _ in range(5):
        [*decodes, (name, num_tokens)] = advance(scheduler.schedule())
        assert (name, len(decodes)) == ("long", num_decodes)
        assert 1 <= num_tokens <= PREFILL_SHARE * (num_decodes + FIXED_COST)
    while scheduler.running[0].id != "long":
        scheduler.remove(scheduler.running[0])
    assert advance(scheduler.schedule())[0][1] == 512


def test_in_a_slot_a_prompts_last_token_costs_no_more_than_its_first(make_sequence: MakeSequence) -> None:
    scheduler = Scheduler(PagePool(4, UNBOUNDED_CONTEXT, prefix_caching=False), max_num_seqs=4, max_step_tokens=512)
    scheduler.add(make_sequence("short", 3))
    advance(scheduler.schedule())
    scheduler.add(make_sequence("long", 5000))
    chunks = {num_tokens for _ in range(400) for name, num_tokens in advance(scheduler.schedule()) if name == "long"}
    assert chunks == {PREFILL_SHARE * (FIXED_COST + 1)}


def test_a_short_prompt_joins_32_streams_in_one_step(make_sequence: MakeSequence) -> None:
    scheduler = Scheduler(PagePool(500, 16), max_num_seqs=64, max_step_tokens=512)
    for number in range(32):
        scheduler.add(make_sequence(chr(number), 3))
    advance(scheduler.schedule())
    scheduler.add(make_sequence("short", 64))
    assert advance(scheduler.schedule())[-1] == ("short", 64)


def test_choices_that_come_together_share_what_the_same_step_computes(make_sequence: MakeSequence) -> None:
    pool = PagePool(100, 4)
    scheduler = Scheduler(pool, max_num_seqs=4, max_step_tokens=12)
    choices = [make_sequence("alike", 18) for _ in range(3)]
    for choice in choices:
        scheduler.add(choice)
    assert advance(scheduler.schedule()) == [("alike", 12)]
    assert advance(scheduler.schedule()) == [("alike", 6), ("alike", 2), ("alike", 2)]
    assert len({tuple(choice.page_table[:4]) for choice in choices}) == 1
    assert pool.num_pages - pool.num_free == 4 + 3
    assert (scheduler.num_queried_tokens, scheduler.num_found_tokens) == (36, 32)
    assert [choice.num_cached_tokens for choice in choices] == [0, 16, 16]


def test_one_that_was_preempted_is_counted_once(make_sequence: MakeSequence) -> None:
    scheduler = Scheduler(PagePool(4, 4), max_num_seqs=4, max_step_tokens=16)
    counted = 0
    for name in ("old", "new"):
        scheduler.add(make_sequence(name, 8))
    while scheduler.waiting or scheduler.running:
        advance(scheduler.schedule())
        counted += scheduler.num_queried_tokens
        for sequence in [sequence for sequence in scheduler.running if len(sequence.token_ids) == 11]:
            scheduler.remove(sequence)
    assert counted == 16
