import numpy as np
import pytest
import torch

from training.config import RunConfig
from training.data_loader import DataLoader
from training.distributed import Ranks
from training.errors import ConfigError, TrainingError
from training.models.base import KVSpec, SlotSpec, StateSpec

KV = KVSpec(n_layer=1, n_kv_head=1, head_dim=2, max_context=8)
SLOTS = SlotSpec(shapes={"h": (2,), "c": (1, 3)})


def make_loader(run: RunConfig, ranks: Ranks, spec: StateSpec = SLOTS) -> DataLoader:
    return DataLoader(run, np.arange(1000, dtype=np.uint16), 8, spec, torch.device("cpu"), ranks)


def read(loader: DataLoader, step: int, accumulate: int) -> torch.Tensor:
    """Return the inputs of a step; the past of a row becomes what it has read."""
    inputs = []
    for batch in loader.micro_batches(step, accumulate):
        inputs.append(batch.inputs)
        if batch.state:
            sums = batch.inputs.sum(1)[:, None].float()
            batch.state.write("h", batch.state.read("h") + sums)
            batch.state.write("c", batch.state.read("c") + sums[:, None])
    loader.advance()
    return torch.cat(inputs)


@pytest.mark.parametrize("batches", ["windows", "streams"])
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_processes_share_a_batch_without_overlap(batches: str, num_ranks: int) -> None:
    run = RunConfig(batch_size=6, accumulate=2, batches=batches)
    whole = make_loader(run, Ranks())
    parts = [make_loader(run, Ranks(rank, num_ranks)) for rank in range(num_ranks)]
    for step in range(12):
        rows = read(whole, step, 2)
        shared = torch.stack([read(part, step, 2) for part in parts], 1).flatten(0, 1)
        assert torch.equal(shared, rows)


@pytest.mark.parametrize("accumulate", [1, 2, 3, 6])
def test_rows_and_their_past_are_the_same_in_micro_batches_of_any_size(accumulate: int) -> None:
    run = RunConfig(batch_size=6, batches="streams")
    plain, cut = make_loader(run, Ranks()), make_loader(run, Ranks())
    for step in range(5):
        assert torch.equal(read(plain, step, 1), read(cut, step, accumulate))
    ours, theirs = plain.state_tensors(), cut.state_tensors()
    assert ours["h"].shape == (6, 2)
    assert ours["c"].shape == (6, 1, 3)
    assert all(torch.equal(ours[name], theirs[name]) and ours[name].all() for name in ours)


def test_a_step_that_was_not_learned_from_leaves_the_past() -> None:
    loader = make_loader(RunConfig(batch_size=4, batches="streams"), Ranks())
    read(loader, 0, 1)
    before = loader.state_tensors()["h"].clone()
    first, *_ = loader.micro_batches(1, 2)
    assert first.state
    first.state.write("h", first.state.read("h") + 1)
    assert torch.equal(loader.state_tensors()["h"], before)


def test_the_past_is_dealt_out_to_any_number_of_processes() -> None:
    run = RunConfig(batch_size=6, batches="streams")
    whole = make_loader(run, Ranks())
    read(whole, 0, 1)
    saved = whole.state_tensors()
    rows = torch.stack([first_past(run, Ranks(rank, 3), saved) for rank in range(3)], 1).flatten(0, 1)
    assert torch.equal(rows, saved["h"])
    with pytest.raises(TrainingError, match="cannot change the streams"):
        make_loader(run.replace(batch_size=8), Ranks()).load_state_tensors(saved)
    with pytest.raises(TrainingError, match="cannot change the streams"):
        make_loader(run, Ranks()).load_state_tensors({})


def first_past(run: RunConfig, ranks: Ranks, saved: dict[str, torch.Tensor]) -> torch.Tensor:
    loader = make_loader(run, ranks)
    loader.load_state_tensors(saved)
    [batch] = loader.micro_batches(1, 1)
    assert batch.state
    return batch.state.read("h")


@pytest.mark.parametrize(("batches", "spec"), [("windows", SLOTS), ("windows", KV), ("streams", KV)])
def test_only_a_fixed_state_on_streams_is_carried(batches: str, spec: StateSpec) -> None:
    loader = make_loader(RunConfig(batch_size=2, batches=batches), Ranks(), spec)
    [batch] = loader.micro_batches(0, 1)
    assert batch.state is None
    loader.advance()
    assert loader.state_tensors() == {}
    loader.load_state_tensors({})


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="3 processes share it"):
        make_loader(RunConfig(batch_size=4), Ranks(0, 3))


def test_the_time_that_batches_take_is_told_once() -> None:
    loader = make_loader(RunConfig(batch_size=2), Ranks())
    read(loader, 0, 1)
    assert loader.take_seconds() > 0
    assert loader.take_seconds() == 0
