"""A page has the holders that it counts, and is found again only for what stands in it."""

from collections.abc import Callable

import pytest

from service.engine.page_pool import PagePool
from service.engine.sequence import Sequence
from service.protocol import Claim
from training.tokenizers.char import CharTokenizer

MakeSequence = Callable[..., Sequence]


@pytest.fixture
def make_sequence(tokenizer: CharTokenizer, make_claim: Callable[..., Claim]) -> MakeSequence:
    return lambda token_ids, **options: Sequence(make_claim("a", token_ids, **options), tokenizer, 0.0)


def compute(pool: PagePool, sequence: Sequence) -> Sequence:
    """Let `sequence` compute all it knows."""
    assert pool.admit(sequence)
    pool.share(sequence, sequence.num_to_compute)
    sequence.num_computed_tokens = len(sequence.token_ids)
    return sequence


def found(pool: PagePool, sequence: Sequence) -> int:
    """How many tokens of `sequence` need not be computed."""
    assert pool.admit(sequence)
    num_tokens = sequence.num_computed_tokens
    pool.release(sequence)
    return num_tokens


def test_pages_are_given_whole_or_not_at_all(make_sequence: MakeSequence) -> None:
    pool = PagePool(3, 4)
    first, second = make_sequence(range(8)), make_sequence(range(10, 18))
    assert pool.grow(first, 8)
    assert not pool.grow(second, 8)
    assert not pool.admit(second)
    assert (second.page_table, pool.num_free, pool.usage) == ([], 1, pytest.approx(2 / 3))
    pool.release(first)
    assert pool.num_free == 3


def test_a_beginning_is_found_while_held_and_after(make_sequence: MakeSequence) -> None:
    pool = PagePool(8, 4)
    first = compute(pool, make_sequence(range(10)))
    second = compute(pool, make_sequence([*range(9), 30, 30]))
    assert second.page_table[:2] == first.page_table[:2]
    assert second.page_table[2:] != first.page_table[2:]
    assert pool.num_free == 4
    pool.release(first)
    assert pool.num_free == 5
    pool.release(second)
    assert (pool.num_free, pool.usage) == (8, 0)
    assert found(pool, make_sequence(range(12))) == 8


def test_the_last_known_token_is_always_computed(make_sequence: MakeSequence) -> None:
    pool = PagePool(8, 4)
    pool.release(compute(pool, make_sequence(range(8))))
    assert [found(pool, make_sequence(range(count))) for count in (4, 5, 8, 9)] == [0, 4, 4, 8]


@pytest.mark.parametrize("options", [{"tenant": "b"}, {"prompt_logprobs": True, "logprobs": 0}], ids=str)
def test_nothing_is_found_for_another_tenant_or_if_all_logits_are_wanted(
    make_sequence: MakeSequence, options: dict[str, object]
) -> None:
    pool = PagePool(8, 4)
    pool.release(compute(pool, make_sequence(range(8))))
    assert found(pool, make_sequence(range(8))) == 4
    assert found(pool, make_sequence(range(8), **options)) == 0


def test_a_page_is_found_only_after_the_same_pages(make_sequence: MakeSequence) -> None:
    pool = PagePool(8, 4)
    pool.release(compute(pool, make_sequence([1, 1, 1, 1, 2, 2, 2, 2])))
    assert found(pool, make_sequence([3, 3, 3, 3, 2, 2, 2, 2, 2])) == 0
    assert found(pool, make_sequence([2, 2, 2, 2, 2])) == 0


def test_the_least_recently_held_goes_first_and_of_a_sequence_the_last_page(make_sequence: MakeSequence) -> None:
    pool = PagePool(6, 4)
    old, new = [0] * 9, [1] * 9
    pool.release(compute(pool, make_sequence(old)))
    pool.release(compute(pool, make_sequence(new)))
    assert found(pool, make_sequence(old)) == 8  # and so it is the more recent of the two
    big = make_sequence([2] * 9)
    assert pool.admit(big)
    pool.release(big)
    assert (found(pool, make_sequence(old)), found(pool, make_sequence(new))) == (8, 4)


def test_what_is_discarded_is_found_by_nobody(make_sequence: MakeSequence) -> None:
    pool = PagePool(8, 4)
    first, second = (compute(pool, make_sequence(range(9))) for _ in range(2))
    pool.discard(first)
    pool.release(first)
    pool.release(second)
    assert found(pool, make_sequence(range(9))) == 0
    assert pool.num_free == 8


def test_of_two_that_computed_the_same_one_is_found(make_sequence: MakeSequence) -> None:
    pool = PagePool(8, 4)
    first, second = make_sequence(range(8)), make_sequence(range(8))
    for sequence in (first, second):
        assert pool.grow(sequence, 8)
    for sequence in (first, second):
        pool.share(sequence, 8)
    assert not set(first.page_table) & set(second.page_table)
    pool.release(second)
    assert found(pool, make_sequence(range(9))) == 8
    pool.release(first)
    assert found(pool, make_sequence(range(9))) == 8


def test_without_caching_nothing_is_found(make_sequence: MakeSequence) -> None:
    pool = PagePool(8, 4, prefix_caching=False)
    pool.release(compute(pool, make_sequence(range(8))))
    assert found(pool, make_sequence(range(8))) == 0
