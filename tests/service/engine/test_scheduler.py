from collections.abc import Callable

import pytest

from service.engine.scheduler import Scheduler, Work
from service.engine.sequence import Sequence
from service.engine.state_pool import PagePool
from service.protocol import Claim
from training.tokenizers.char import CharTokenizer

MakeSequence = Callable[..., Sequence]


@pytest.fixture
def make_sequence(tokenizer: CharTokenizer, make_claim: Callable[..., Claim]) -> MakeSequence:
    return lambda name, num_tokens: Sequence(make_claim(name, [1] * num_tokens), tokenizer, 0.0)


def advance(works: list[Work]) -> list[tuple[str, int]]:
    """Do as the engine does with a step, and return what it was."""
    for work in works:
        samples = work.num_logits
        work.sequence.num_computed_tokens += work.num_tokens
        if samples:
            work.sequence.token_ids.append(1)
    return [(work.sequence.id, work.num_tokens) for work in works]


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
    assert scheduler.num_preemptions == 1
    scheduler.remove(scheduler.running[0])
    assert advance(scheduler.schedule()) == [("waiting", 1), ("new", 9)]  # in a step single tokens stand first


def test_a_sequence_is_admitted_only_when_all_of_it_fits(make_sequence: MakeSequence) -> None:
    pool = PagePool(4, 4)
    scheduler = Scheduler(pool, max_num_seqs=4, max_step_tokens=4)
    scheduler.add(make_sequence("a", 9))
    scheduler.add(make_sequence("b", 9))
    for _ in range(3):
        assert [name for name, _ in advance(scheduler.schedule())] == ["a"]
    assert scheduler.num_preemptions == 0


def test_pages_are_given_whole_or_not_at_all(make_sequence: MakeSequence) -> None:
    pool = PagePool(3, 4)
    first, second = make_sequence("a", 8), make_sequence("b", 8)
    assert pool.grow(first, 8)
    assert not pool.grow(second, 8)
    assert (second.page_table, pool.num_free, pool.usage) == ([], 1, pytest.approx(2 / 3))
    pool.release(first)
    assert pool.num_free == 3
