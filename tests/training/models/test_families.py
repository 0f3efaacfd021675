import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.checkpoints import save_untrained
from training.checkpoint import load_checkpoint
from training.config import BudgetConfig, TrainConfig
from training.models.base import CarriedState
from training.models.families import AnyModel, make_model
from training.objectives import cross_entropy
from training.optim import Optimizer
from training.tokenizers.char import CharTokenizer

MakeModel = Callable[..., AnyModel]
LENGTH = 40


@pytest.fixture
def model(slot_family: str, make_model_of: MakeModel) -> AnyModel:
    return make_model_of(slot_family)


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def tokens(model: AnyModel, num_rows: int = 3, length: int = LENGTH) -> Tensor:
    return torch.randint(model.config.vocab_size, (num_rows, length), generator=torch.Generator().manual_seed(1))


def carried(model: AnyModel, num_rows: int) -> CarriedState:
    return CarriedState(model.state_spec, num_rows, torch.device("cpu"))


def in_pieces(model: AnyModel, ids: Tensor, cuts: list[int]) -> Tensor:
    state = carried(model, len(ids))
    return torch.cat([model(ids[:, start:end], state) for start, end in pairwise([0, *cuts, ids.size(1)])], dim=1)


def assert_same(first: Tensor, second: Tensor) -> None:
    torch.testing.assert_close(first, second, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "cuts", [[17], [1, 2, 21], [39], list(range(1, LENGTH))], ids=["two", "four", "last", "single"]
)
def test_a_row_read_in_pieces_is_the_row_read_at_once(model: AnyModel, cuts: list[int]) -> None:
    ids = tokens(model)
    assert_same(model(ids), in_pieces(model, ids, cuts))


def test_a_row_is_the_same_alone_and_among_strangers(model: AnyModel) -> None:
    ids = tokens(model, 7)
    for row in range(7):
        assert_same(in_pieces(model, ids[row : row + 1], [20]), in_pieces(model, ids, [20])[row : row + 1])


def test_rows_of_another_progress_are_no_strangers_to_each_other(model: AnyModel) -> None:
    ids = tokens(model, 2)
    ahead, behind = carried(model, 1), carried(model, 1)
    model(ids[:1, :30], ahead)
    model(ids[1:, :10], behind)
    both = carried(model, 2)
    for name in both.tensors:
        both.write(name, torch.cat((ahead.read(name), behind.read(name))))
    logits = model(torch.stack((ids[0, 30:35], ids[1, 10:15])), both)
    assert_same(logits, torch.stack((model(ids)[0, 30:35], model(ids)[1, 10:15])))


def test_the_state_has_the_shapes_that_are_declared(model: AnyModel) -> None:
    state = carried(model, 3)
    model(tokens(model), state)
    assert {name: tuple(tensor.shape[1:]) for name, tensor in state.tensors.items()} == dict(model.state_spec.shapes)
    assert all(tensor.abs().sum() > 0 for tensor in state.tensors.values())


def test_no_position_sees_a_later_token(model: AnyModel) -> None:
    ids = tokens(model)
    changed = ids.clone()
    changed[:, 20:] = (changed[:, 20:] + 1) % model.config.vocab_size
    torch.testing.assert_close(model(ids)[:, :20], model(changed)[:, :20], rtol=0, atol=1e-6)
    assert not torch.equal(model(ids)[:, 20:], model(changed)[:, 20:])


@pytest.mark.parametrize("rounding", ["autocast", "weights"])
def test_bf16_is_near_fp32_in_pieces_of_any_length(model: AnyModel, rounding: str) -> None:
    ids = tokens(model)
    expected = model(ids)
    if rounding == "weights":
        model.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=rounding == "autocast"):
        logits = in_pieces(model, ids, [20, 21, 22, 39])
    torch.testing.assert_close(logits.float(), expected, rtol=0, atol=0.05 * float(expected.abs().max()))


@torch.enable_grad()
def test_no_gradient_passes_through_a_carried_state(model: AnyModel) -> None:
    ids, state = tokens(model), carried(model, 3)
    for _ in range(2):
        cross_entropy(model(ids, state), ids).backward()  # twice through one graph would be an error
    assert not any(tensor.requires_grad for tensor in state.tensors.values())


@torch.enable_grad()
def test_a_new_model_knows_nothing_and_every_weight_learns(family: str, make_model_of: MakeModel) -> None:
    model = make_model(make_model_of(family).config, torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ids = tokens(model, 4, 33)
    losses = []
    for _ in range(3):  # output projections start at zero: what is behind them has a gradient from the second step on
        optimizer.zero_grad()
        loss = cross_entropy(model(ids[:, :-1]), ids[:, 1:])
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert losses[0] == pytest.approx(math.log(model.config.vocab_size), abs=0.3)
    assert losses[2] < losses[0]
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


@torch.enable_grad()
@pytest.mark.parametrize("algorithm", ["muon", "adamw"])
def test_it_trains_in_bf16_on_and_on(slot_family: str, make_model_of: MakeModel, algorithm: str) -> None:
    config = TrainConfig(budget=BudgetConfig(steps=1)).optim.replace(algorithm=algorithm)
    model = make_model(make_model_of(slot_family, dropout=0.1).config, torch.Generator().manual_seed(0)).train()
    optimizer, state, ids = Optimizer(model, config), carried(model, 3), tokens(model, 3, 33)
    losses = []
    for _ in range(12):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(ids[:, :-1], state)
        loss = cross_entropy(logits, ids[:, 1:])
        loss.backward()
        optimizer.step(0.1)
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_same_generator_same_weights(family: str, make_model_of: MakeModel) -> None:
    config = make_model_of(family).config
    first, second = (make_model(config, torch.Generator().manual_seed(3)).state_dict() for _ in range(2))
    other = make_model(config, torch.Generator().manual_seed(4)).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
def test_saved_and_loaded_it_gives_the_same_logits(
    slot_family: str, make_model_of: MakeModel, tokenizer: CharTokenizer, tmp_path: Path, tie: bool
) -> None:
    model = make_model_of(slot_family, tie_embeddings=tie)
    loaded = load_checkpoint(save_untrained(tmp_path / "c", model, tokenizer)).model
    assert loaded.config == model.config
    assert loaded.state_spec == model.state_spec
    assert (loaded.lm_head.weight is loaded.embed_tokens.weight) is tie
    ids = tokens(model)
    assert torch.equal(model(ids), loaded(ids))


def test_dropout_is_for_training(slot_family: str, make_model_of: MakeModel) -> None:
    model = make_model_of(slot_family, dropout=0.5)
    ids = tokens(model)
    assert torch.equal(model(ids), model(ids))
    model.train()
    assert not torch.equal(model(ids), model(ids))
