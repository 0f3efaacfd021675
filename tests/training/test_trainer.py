from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import get_args

import pytest
import safetensors.torch
import torch

from training.checkpoint import load_checkpoint
from training.config import Algorithm, TrainConfig
from training.data.corpus import Corpus
from training.data.prepare import PreparedData, encode_splits
from training.errors import TrainingError
from training.evaluate import evaluate
from training.trainer import EvaluationEvent, StepEvent, Trainer

MakeConfig = Callable[..., TrainConfig]


def finish(trainer: Trainer) -> list[StepEvent | EvaluationEvent]:
    return list(trainer.run())


def steps(events: list[StepEvent | EvaluationEvent]) -> list[StepEvent]:
    return [event for event in events if isinstance(event, StepEvent)]


def evaluations(events: list[StepEvent | EvaluationEvent]) -> list[EvaluationEvent]:
    return [event for event in events if isinstance(event, EvaluationEvent)]


@pytest.mark.parametrize("algorithm", get_args(Algorithm))
def test_resumed_is_uninterrupted_bit_for_bit(
    make_config: MakeConfig, prepared: PreparedData, tmp_path: Path, algorithm: str
) -> None:
    config = make_config(optim={"algorithm": algorithm}, run={"accumulate": 2})
    whole = Trainer(config, prepared, tmp_path / "whole")
    losses = [event.loss for event in steps(finish(whole))]

    first = Trainer(config, prepared, tmp_path / "parts")
    next(event for event in first.run() if isinstance(event, EvaluationEvent))
    first.save()
    torch.manual_seed(999)  # another process has another state
    second = Trainer(config, prepared, tmp_path / "parts", resume=True)
    assert [event.loss for event in steps(finish(second))] == losses[4:]

    ours, theirs = (safetensors.torch.load_file(trainer.resume_file) for trainer in (second, whole))
    assert ours.keys() == theirs.keys()
    assert {name.split("/")[0] for name in ours} >= {"model", "average", "rng"}
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_resumed_run_needs_its_text_and_a_state(
    make_config: MakeConfig, prepared: PreparedData, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="nothing to resume"):
        Trainer(make_config(), prepared, tmp_path / "none", resume=True)
    trainer = Trainer(make_config(), prepared, tmp_path / "run")
    trainer.save()
    other = encode_splits(make_config().data, Corpus(name="other", documents=("x" * 300,)), prepared.tokenizer)
    with pytest.raises(TrainingError, match="another text"):
        Trainer(make_config(), other, tmp_path / "run", resume=True)
    trainer.resume_file.write_bytes(trainer.resume_file.read_bytes()[:-10])
    with pytest.raises(TrainingError, match="not the state of a run"):
        Trainer(make_config(), prepared, tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("budget", "num_steps"),
    [({"steps": 5}, 5), ({"tokens": 100}, 4), ({"epochs": 0.05}, 4), ({"minutes": 0.1}, 5)],
    ids=str,
)
def test_every_budget_ends_the_run(
    make_config: MakeConfig, prepared: PreparedData, tmp_path: Path, budget: dict[str, float], num_steps: int
) -> None:
    seconds = count()  # each look at the clock is a second, the evaluation at step 4 too
    trainer = Trainer(make_config(budget=budget), prepared, tmp_path, clock=lambda: float(next(seconds)))
    events = finish(trainer)
    assert len(steps(events)) == num_steps
    assert trainer.ending == "budget"
    assert isinstance(events[-1], EvaluationEvent)
    assert events[-1].random_estimate is not None


def test_target_and_patience_end_it_earlier(make_config: MakeConfig, prepared: PreparedData, tmp_path: Path) -> None:
    target = Trainer(make_config(budget={"steps": 100, "target_loss": 3.0}), prepared, tmp_path / "a")
    finish(target)
    assert target.ending == "target"
    # A rate that can only do harm: nothing after the first evaluation is better.
    wild = {"embed_lr": 50.0, "head_lr": 50.0, "matrix_lr": 50.0, "ema_decay": 0.0, "warmup_fraction": 0.0}
    config = make_config(budget={"steps": 100, "patience": 2}, optim=wild)
    patience = Trainer(config, prepared, tmp_path / "b")
    finish(patience)
    assert patience.ending == "patience"


def test_the_checkpoint_is_the_best_evaluation(make_config: MakeConfig, prepared: PreparedData, tmp_path: Path) -> None:
    config = make_config(budget={"steps": 20})
    events = finish(Trainer(config, prepared, tmp_path))
    best = min(evaluations(events), key=lambda event: event.loss)
    loaded = load_checkpoint(tmp_path)
    assert loaded.manifest.step == best.step
    assert loaded.manifest.validation_loss == pytest.approx(best.nats_per_char)
    context = config.model.context_length
    assert evaluate(loaded.model, prepared, context).loss == pytest.approx(best.loss, abs=1e-6)


def test_it_learns(make_config: MakeConfig, prepared: PreparedData, tmp_path: Path) -> None:
    config = make_config(budget={"steps": 150}, model={"dropout": 0.0}, run={"batch_size": 8, "eval_every": 150})
    [event] = evaluations(finish(Trainer(config, prepared, tmp_path)))
    assert event.loss < 0.5  # ln 28 = 3.3 knows nothing
    assert len(event.text) == 4


def test_a_loss_that_is_not_finite_stops_with_the_step_and_keeps_the_checkpoint(
    make_config: MakeConfig, prepared: PreparedData, tmp_path: Path
) -> None:
    trainer = Trainer(make_config(), prepared, tmp_path)
    events = trainer.run()
    while trainer.state.best_loss is None:
        next(events)
    with torch.no_grad():
        trainer.model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="step 4"):
        list(events)
    assert load_checkpoint(tmp_path).manifest.step == 4


def test_accumulated_micro_batches_are_one_batch(
    make_config: MakeConfig, prepared: PreparedData, tmp_path: Path
) -> None:
    shape = {"dropout": 0.0}
    once = Trainer(make_config(model=shape, run={"batch_size": 4}), prepared, tmp_path / "a")
    twice = Trainer(make_config(model=shape, run={"batch_size": 2, "accumulate": 2}), prepared, tmp_path / "b")
    for first, second in zip(steps(finish(once)), steps(finish(twice)), strict=True):
        assert first.tokens == second.tokens
        assert first.loss == pytest.approx(second.loss, abs=1e-4)


def test_without_a_compiler_a_run_says_so_and_goes_on(
    make_config: MakeConfig, prepared: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    said: list[str] = []
    config = make_config(run={"compile": True}, budget={"steps": 1})
    finish(Trainer(config, prepared, tmp_path / "run", notice=said.append))
    assert len(said) == 1
    assert "g++" in said[0]
