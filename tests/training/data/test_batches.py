import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.data.batches import (
    RandomBatches,
    StreamBatches,
    random_estimate_batches,
    validation_streams,
    validation_windows,
)
from training.errors import CorpusError

SIZES = {"num_tokens": st.integers(2, 200), "context_length": st.integers(1, 20), "batch_size": st.integers(1, 9)}


def count_up(num_tokens: int) -> npt.NDArray[np.uint16]:
    """Return tokens that are their own places, so that a batch tells where it comes from."""
    return np.arange(num_tokens, dtype=np.uint16)


def assert_is_batch(inputs: torch.Tensor, targets: torch.Tensor) -> None:
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.shape == targets.shape
    assert inputs.is_contiguous()
    assert targets.is_contiguous()
    assert torch.equal(targets, inputs + 1)
    assert torch.equal(inputs, inputs[:, :1] + torch.arange(inputs.shape[1]))


@given(**SIZES, seed=st.integers(0, 2**63), index=st.integers(0, 10_000))
def test_a_training_batch_is_whole_windows(
    num_tokens: int, context_length: int, batch_size: int, seed: int, index: int
) -> None:
    num_tokens += context_length
    inputs, targets = RandomBatches(count_up(num_tokens), batch_size, context_length, seed).batch(index)
    assert_is_batch(inputs, targets)
    assert inputs.shape == (batch_size, context_length)
    assert int(targets.max()) < num_tokens


def test_a_batch_depends_on_seed_and_index_alone() -> None:
    tokens = count_up(1000)
    once = RandomBatches(tokens, 4, 16, seed=1)
    forward = [once.batch(index) for index in range(40)]
    for index in reversed(range(40)):
        inputs, targets = RandomBatches(tokens, 4, 16, seed=1).batch(index)
        assert torch.equal(inputs, forward[index][0])
        assert torch.equal(targets, forward[index][1])
    other = [RandomBatches(tokens, 4, 16, seed=2).batch(index)[0] for index in range(40)]
    assert not any(torch.equal(one, two[0]) for one, two in zip(other, forward, strict=True))


def test_an_epoch_draws_every_window_once_and_the_next_cuts_elsewhere() -> None:
    length, num_tokens = 16, 1000
    batches = RandomBatches(count_up(num_tokens), 1, length, seed=5)
    num_windows = (num_tokens - 1) // length - 1
    epochs = [
        [int(batches.batch(index)[0][0, 0]) for index in range(epoch * num_windows, (epoch + 1) * num_windows)]
        for epoch in range(12)
    ]
    for starts in epochs:
        assert sorted(starts) == list(range(min(starts), min(starts) + length * num_windows, length))
        assert starts != sorted(starts)
    assert len({min(starts) for starts in epochs}) > 6


def test_batches_go_on_across_the_end_of_an_epoch() -> None:
    tokens = count_up(1000)
    wide, single = RandomBatches(tokens, 7, 16, seed=5), RandomBatches(tokens, 1, 16, seed=5)
    rows = torch.cat([wide.batch(index)[0] for index in range(20)])
    assert torch.equal(rows, torch.cat([single.batch(index)[0] for index in range(140)]))


@pytest.mark.parametrize("kind", [RandomBatches, StreamBatches])
def test_some_rows_of_a_batch_are_those_of_the_whole(kind: type[RandomBatches | StreamBatches]) -> None:
    batches = kind(count_up(1000), 6, 16, seed=5)
    for index in range(30):
        whole = batches.batch(index)
        for rows in (slice(1, None, 2), slice(2, 4), slice(0, 0)):
            part = batches.batch(index, rows)
            assert all(torch.equal(ours, theirs[rows]) for ours, theirs in zip(part, whole, strict=True))


@given(**SIZES, seed=st.integers(0, 2**63), epoch=st.integers(0, 5))
def test_streams_go_on_through_an_epoch_and_never_over_each_other(
    num_tokens: int, context_length: int, batch_size: int, seed: int, epoch: int
) -> None:
    num_tokens += batch_size * max(2, context_length)
    batches = StreamBatches(count_up(num_tokens), batch_size, context_length, seed)
    first = epoch * batches.num_batches
    windows = [batches.batch(index) for index in range(first, first + batches.num_batches)]
    inputs, targets = (torch.cat(parts, dim=1) for parts in zip(*windows, strict=True))
    assert inputs.shape == (batch_size, batches.num_batches * context_length)
    assert torch.equal(targets, (inputs + 1) % num_tokens)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert len(inputs.unique()) == inputs.numel() > num_tokens - batch_size * (context_length + 1)


def test_streams_begin_elsewhere_in_each_epoch_and_with_each_seed() -> None:
    starts = set()
    for seed in range(3):
        batches = StreamBatches(count_up(1000), 4, 16, seed)
        starts |= {int(batches.batch(epoch * batches.num_batches)[0][0, 0]) for epoch in range(5)}
    assert len(starts) > 12


@given(**SIZES)
def test_validation_streams_predict_each_token_but_the_first_once(
    num_tokens: int, context_length: int, batch_size: int
) -> None:
    predicted = []
    for stream in validation_streams(count_up(num_tokens), context_length, batch_size):
        last: torch.Tensor | None = None
        for inputs, targets in stream:
            assert_is_batch(inputs, targets)
            assert inputs.shape[1] <= context_length
            assert last is None or torch.equal(inputs[:, 0], last)
            last = targets[:, -1]
            predicted += targets.flatten().tolist()
    assert sorted(predicted) == list(range(1, num_tokens))


def test_every_place_is_trained_on() -> None:
    batches = RandomBatches(count_up(100), 5, 16, seed=3)
    seen = {int(token) for index in range(300) for token in batches.batch(index)[1].flatten()}
    assert seen == set(range(1, 100))


@given(**SIZES)
def test_validation_predicts_each_token_but_the_first_once(
    num_tokens: int, context_length: int, batch_size: int
) -> None:
    predicted = []
    for inputs, targets in validation_windows(count_up(num_tokens), context_length, batch_size):
        assert_is_batch(inputs, targets)
        assert inputs.shape[0] <= batch_size
        assert inputs.shape[1] <= context_length
        predicted += targets.flatten().tolist()
    assert predicted == list(range(1, num_tokens))


def test_the_random_estimate_is_whole_windows_from_everywhere() -> None:
    starts = set()
    batches = list(random_estimate_batches(count_up(40), 8, 16, num_batches=50, seed=1))
    for inputs, targets in batches:
        assert_is_batch(inputs, targets)
        assert inputs.shape == (8, 16)
        starts |= set(inputs[:, 0].tolist())
    assert len(batches) == 50
    assert starts == set(range(40 - 16))


def test_the_random_estimate_repeats_with_its_seed() -> None:
    def draw(seed: int) -> list[list[int]]:
        batches = random_estimate_batches(count_up(400), 2, 16, num_batches=5, seed=seed)
        return [inputs.flatten().tolist() for inputs, _ in batches]

    assert draw(1) == draw(1) != draw(2)


@pytest.mark.parametrize("num_tokens", [0, 1, 16])
def test_a_split_shorter_than_a_window_is_refused(num_tokens: int) -> None:
    tokens = count_up(num_tokens)
    with pytest.raises(CorpusError, match=rf"{num_tokens} tokens has no window of 16 \+ 1: use a longer text"):
        RandomBatches(tokens, 1, 16, seed=0)
    with pytest.raises(CorpusError, match="has no window of 16"):
        next(random_estimate_batches(tokens, 1, 16, 1, seed=0))
    RandomBatches(count_up(17), 1, 16, seed=0).batch(3)


@pytest.mark.parametrize(("num_tokens", "batch_size"), [(0, 1), (15, 1), (63, 4)])
def test_a_split_too_short_for_its_streams_is_refused(num_tokens: int, batch_size: int) -> None:
    with pytest.raises(CorpusError, match=rf"{num_tokens} tokens are too few for {batch_size} streams"):
        StreamBatches(count_up(num_tokens), batch_size, 16, seed=0)
    StreamBatches(count_up(64), 4, 16, seed=0).batch(3)


def test_a_split_without_a_prediction_is_refused() -> None:
    with pytest.raises(CorpusError, match=r"1 tokens has no window of 1 \+ 1"):
        next(validation_windows(count_up(1), 16))
