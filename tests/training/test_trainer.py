import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import safetensors.torch
import torch

from tests.conftest import FAMILIES
from training.checkpoint import load_checkpoint
from training.config import Algorithm, TrainConfig
from training.data.corpus import Corpus
from training.data.prepare import PreparedData, encode_splits
from training.errors import TrainingError
from training.evaluate import evaluate
from training.events import EndEvent, EvaluationEvent, Event, StepEvent
from training.resume import read_resume_state
from training.trainer import Trainer

MakeConfig = Callable[..., TrainConfig]


def finish(trainer: Trainer) -> list[Event]:
    return list(trainer.run())


def steps(events: list[Event]) -> list[StepEvent]:
    return [event for event in events if isinstance(event, StepEvent)]


def evaluations(events: list[Event]) -> list[EvaluationEvent]:
    return [event for event in events if isinstance(event, EvaluationEvent)]


STREAMS = {"batches": "streams", "batch_size": 6}
RUNS: dict[str, dict[str, dict[str, object]]] = {
    **{algorithm: {"optim": {"algorithm": algorithm}, "run": {"accumulate": 2}} for algorithm in get_args(Algorithm)},
    "calibrated": {"run": {"calibration_fraction": 0.1}},
    **{f"{name} on streams": {"model": shape, "run": STREAMS} for name, shape in FAMILIES.items()},
    "accumulated streams": {"model": FAMILIES["lstm"], "run": STREAMS | {"batch_size": 3, "accumulate": 2}},
}


@pytest.mark.parametrize("kind", RUNS)
def test_resumed_is_uninterrupted_bit_for_bit(
    make_config: MakeConfig, prepared: PreparedData, tmp_path: Path, kind: str
) -> None:
    config = make_config(**RUNS[kind])
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
    [({"steps": 5}, 5), ({"tokens": 100}, 4), ({"epochs": 0.05}, 4), ({"minutes": 0.1}, 4)],
    ids=str,
)
def test_every_budget_ends_the_run(
    make_config: MakeConfig, prepared: PreparedData, tmp_path: Path, budget: dict[str, float], num_steps: int
) -> None:
    seconds = 0.0
    trainer = Trainer(make_config(budget=budget), prepared, tmp_path, clock=lambda: seconds)
    events: list[Event] = []
    for event in trainer.run():
        seconds += 1.5
        events.append(event)
    assert len(steps(events)) == num_steps
    assert trainer.ending == "budget"
    last, end = events[-2:]
    assert isinstance(last, EvaluationEvent)
    assert last.random_estimate is not None
    assert isinstance(end, EndEvent)
    assert (end.step, end.tokens, end.ending) == (num_steps, 32 * num_steps, "budget")


def test_a_model_of_fixed_state_learns_from_more_than_its_window_on_streams(
    make_config: MakeConfig, prepared: PreparedData, tmp_path: Path
) -> None:
    """In windows of one token only the past that is carried tells what comes next."""
    shape = {"family": "recurrent", "cell": "gru", "n_layer": 1, "n_embd": 32, "context_length": 1, "dropout": 0.0}
    losses = {}
    for batches in ("windows", "streams"):
        run = {"batches": batches, "batch_size": 16, "eval_every": 1000}
        config = make_config(budget={"steps": 400}, model=shape, run=run, optim={"ema_decay": 0.0})
        trainer = Trainer(config, prepared, tmp_path / batches)
        losses[batches] = min(event.loss for event in evaluations(finish(trainer)))
    assert losses["streams"] < 0.8 * losses["windows"]


def test_streams_begin_each_epoch_without_a_past(
    make_config: MakeConfig, prepared: PreparedData, tmp_path: Path
) -> None:
    config = make_config(model=FAMILIES["lstm"], run=STREAMS, budget={"epochs": 2.5})
    trainer = Trainer(config, prepared, tmp_path)
    num_batches = trainer.loader.batches.num_batches
    assert num_batches
    for step in range(2 * num_batches + 1):
        [batch] = trainer.loader.micro_batches(step, 1)
        assert batch.state
        fresh = all(not tensor.any() for tensor in batch.state.tensors.values())
        assert fresh == (step % num_batches == 0)
        trainer.model(batch.inputs, batch.state)
        trainer.loader.advance()


def test_a_resumed_run_keeps_its_streams(make_config: MakeConfig, prepared: PreparedData, tmp_path: Path) -> None:
    finish(Trainer(make_config(model=FAMILIES["lstm"], run=STREAMS), prepared, tmp_path))
    wider = make_config(model=FAMILIES["lstm"], run=STREAMS | {"batch_size": 8})
    with pytest.raises(TrainingError, match="cannot change the streams"):
        Trainer(wider, prepared, tmp_path, resume=True)


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


def test_a_loss_not_finite_stops_with_its_step_and_keeps_the_checkpoint(
    make_config: MakeConfig, prepared: PreparedData, tmp_path: Path
) -> None:
    trainer = Trainer(make_config(), prepared, tmp_path)
    events = trainer.run()
    while trainer.state.best_loss is None:
        next(events)
    with torch.no_grad():
        trainer.model.lm_head.weight.fill_(float("nan"))
    inputs, _ = trainer.loader.batches.batch(4)
    batch_hash = hashlib.sha256(inputs.numpy().tobytes()).hexdigest()[:12]
    kept = re.escape(str(tmp_path / "checkpoint"))
    with pytest.raises(TrainingError, match=rf"step 4: the loss is nan \(batch {batch_hash}\).*_lr.*{kept}"):
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


def test_weights_that_are_not_finite_are_no_checkpoint(
    make_config: MakeConfig, prepared: PreparedData, tmp_path: Path
) -> None:
    trainer = Trainer(make_config(optim={"ema_decay": 0.0}, run={"sample_tokens": 0}), prepared, tmp_path)
    with torch.no_grad():
        trainer.model.lm_head.weight.fill_(float("nan"))
    assert not trainer.evaluate().is_best
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA"), MemoryError(), RuntimeError("can't allocate memory")]
)
@pytest.mark.parametrize("run", [{"batch_size": 12}, STREAMS | {"batch_size": 12}], ids=["windows", "streams"])
def test_out_of_memory_cuts_the_same_batch_smaller(
    make_config: MakeConfig, prepared: PreparedData, tmp_path: Path, error: Exception, run: dict[str, object]
) -> None:
    config = make_config(model=FAMILIES["gru"] | {"dropout": 0.0}, run=run)
    expected = [event.loss for event in steps(finish(Trainer(config, prepared, tmp_path / "roomy")))]
    said: list[str] = []
    tight = Trainer(config, prepared, tmp_path / "tight", notice=said.append)

    def run_out(_: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        if tight.model.training and len(arguments[0]) > 4:
            raise error

    tight.model.register_forward_pre_hook(run_out)
    assert [event.loss for event in steps(finish(tight))] == pytest.approx(expected, abs=1e-4)
    saved = read_resume_state(tight.resume_file).config.run
    assert (saved.batch_size, saved.accumulate) == (3, 4)
    assert len(said) == 2
    assert "run.batch_size = 3 and run.accumulate = 4" in said[1]


def test_no_memory_for_a_row_ends_the_run_and_other_errors_are_as_they_are(
    make_config: MakeConfig, prepared: PreparedData, tmp_path: Path
) -> None:
    trainer = Trainer(make_config(), prepared, tmp_path)
    raised: list[Exception] = [torch.OutOfMemoryError("CUDA")]

    def run_out(*_: object) -> None:
        raise raised[0]

    trainer.model.register_forward_pre_hook(run_out)
    with pytest.raises(TrainingError, match=r"out of memory with run\.batch_size = 1: .*a smaller model"):
        trainer.train_step()
    raised[0] = RuntimeError("shapes differ")
    with pytest.raises(RuntimeError, match="shapes differ"):
        trainer.train_step()


def test_without_a_compiler_a_run_says_so_and_goes_on(
    make_config: MakeConfig, prepared: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    said: list[str] = []
    config = make_config(run={"compile": True}, budget={"steps": 1})
    finish(Trainer(config, prepared, tmp_path / "run", notice=said.append))
    assert len(said) == 1
    assert "g++" in said[0]
