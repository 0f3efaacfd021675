import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.config import OptimConfig
from training.model_config import GPTConfig
from training.models.gpt import GPT
from training.muon import NEWTON_SCHULZ_STEPS, Muon, orthogonalize
from training.optim import Average, Optimizer, schedule


@given(progress=st.floats(0, 1), shape=st.sampled_from(["linear", "cosine"]), final=st.floats(0, 1))
def test_rates_stay_between_final_and_peak(progress: float, shape: str, final: float) -> None:
    config = OptimConfig(decay_shape=shape, final_lr_fraction=final)  # type: ignore[arg-type]
    rate = schedule(config, progress)
    assert 0 < rate <= 1 if progress < config.warmup_fraction else final - 1e-9 <= rate <= 1


def test_rates_rise_stay_and_fall() -> None:
    config = OptimConfig(warmup_fraction=0.1, decay_fraction=0.5, final_lr_fraction=0.1)
    rates = [schedule(config, progress) for progress in (0.05, 0.1, 0.3, 0.5, 0.75, 1.0)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 1.0, 0.55, 0.1])
    assert schedule(config.replace(decay_shape="cosine"), 0.75) == pytest.approx(0.55)
    assert schedule(config.replace(decay_fraction=0.0), 1.0) == 1.0


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 24), (2, 24, 8)])
def test_an_orthogonalized_update_has_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrices).float())
    assert values.max() < 1.35
    assert values.median() > 0.5


def test_stacked_matrices_move_as_torchs_muon_moves_each() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(16, 16), (16, 16), (32, 16), (16, 32), (16, 16)]
    ours, theirs = ([torch.randn(s, generator=g) for s in shapes] for g in (generator, generator.clone_state()))
    for mine, other in zip(ours, theirs, strict=True):
        other.copy_(mine)
    settings = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.1}
    optimizers = [Muon(ours, **settings), torch.optim.Muon(theirs, ns_steps=NEWTON_SCHULZ_STEPS, **settings)]
    for _ in range(5):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            other.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=5e-3)  # of steps of 0.02: bf16 rounds to 1/256


def test_every_weight_has_one_owner_and_norms_no_decay() -> None:
    model = GPT(GPTConfig(vocab_size=20, n_layer=1, n_head=2, n_embd=16))
    optimizer = Optimizer(model, OptimConfig(weight_decay=0.1))
    owned = [
        (id(parameter), group["weight_decay"])
        for inner in optimizer._optimizers
        for group in inner.param_groups
        for parameter in group["params"]
    ]
    assert sorted(id_ for id_, _ in owned) == sorted(id(parameter) for parameter in model.parameters())
    decay = dict(owned)
    assert all(decay[id(p)] == (0.0 if p.dim() == 1 else 0.1) for p in model.parameters())


def test_clipping_bounds_the_gradient() -> None:
    model = GPT(GPTConfig(vocab_size=20, n_layer=1, n_head=2, n_embd=16))
    optimizer = Optimizer(model, OptimConfig(grad_clip=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert optimizer.step(0.5) == pytest.approx(math.sqrt(count), rel=1e-4)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_average_follows_and_swaps_back() -> None:
    model = torch.nn.Linear(2, 1, bias=False)
    average = Average(model, 0.5)
    start = model.weight.detach().clone()
    with torch.no_grad():
        model.weight += 1.0
    average.update(model, step=100)
    average.swap(model)
    torch.testing.assert_close(model.weight.detach(), start + 0.5)
    average.swap(model)
    torch.testing.assert_close(model.weight.detach(), start + 1.0)
