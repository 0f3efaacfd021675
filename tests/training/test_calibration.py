import math
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from training.calibration import fit_temperature, scaled_logits
from training.checkpoint import load_checkpoint
from training.config import TrainConfig
from training.data.prepare import PreparedData
from training.errors import ConfigError
from training.evaluate import evaluate
from training.events import EvaluationEvent
from training.models.families import AnyModel
from training.models.gpt import GPT
from training.sample import sample
from training.tokenizers.char import CharTokenizer
from training.trainer import Trainer


def write(model: AnyModel, temperature: float) -> PreparedData:
    """Return what `model` writes: there it is right about the chances, but for the temperature."""
    drawn = sample(model, [1], temperature=temperature, generator=torch.Generator().manual_seed(1))
    ids = np.array(list(islice(drawn, 300)), np.uint16)
    return PreparedData(
        tokenizer=CharTokenizer("abc"),
        corpus_sha256="",
        train=ids,
        validation=ids,
        validation_chars=len(ids),
        validation_bytes=len(ids),
    )


@pytest.mark.parametrize("family", ["gpt", "lstm", "conv"])
def test_no_other_temperature_loses_less(make_model_of: Callable[..., AnyModel], family: str) -> None:
    model = make_model_of(family, tie_embeddings=False)
    data = write(model, 2.0)
    best = fit_temperature(model, data.train, 16)
    assert 1.3 < best < 8  # more than 2, since windows begin in the dark
    losses = [evaluate(model, data, 16, temperature=best * factor).loss for factor in (0.9, 0.99, 1.0, 1.01, 1.1)]
    assert min(losses) == losses[2]


def test_a_scale_of_the_logits_is_found_again(make_gpt: Callable[..., GPT]) -> None:
    model = make_gpt()
    tokens = write(model, 1.5).train
    once = fit_temperature(model, tokens, 16)
    model.scale_logits(0.5)
    assert fit_temperature(model, tokens, 16) == pytest.approx(0.5 * once, rel=1e-3)


def test_a_model_that_is_wrong_throughout_says_as_little_as_it_may(make_gpt: Callable[..., GPT]) -> None:
    model = make_gpt()
    tokens = write(model, 1.0).train
    model.scale_logits(-1.0)
    assert fit_temperature(model, tokens, 16) == pytest.approx(10.0)


@pytest.mark.parametrize("tied", [False, True])
def test_scaled_for_a_while_and_then_as_before_bit_for_bit(make_gpt: Callable[..., GPT], tied: bool) -> None:
    model = make_gpt(tie_embeddings=tied)
    ids = torch.arange(12)[None]
    with torch.inference_mode():
        before = model(ids)
        with scaled_logits(model, 0.7):
            torch.testing.assert_close(model(ids), 0.7 * before, rtol=1e-4, atol=1e-5)
        assert torch.equal(model(ids), before)


def test_the_checkpoint_has_the_temperature_and_the_run_goes_on_without(
    make_config: Callable[..., TrainConfig], prepared: PreparedData, tmp_path: Path
) -> None:
    config = make_config(budget={"steps": 4}, run={"calibration_fraction": 0.2})
    trainer = Trainer(config, prepared, tmp_path)
    assert len(trainer.train_tokens) == round(0.8 * len(prepared.train))
    [event] = [event for event in trainer.run() if isinstance(event, EvaluationEvent)]
    assert event.temperature != 1.0
    assert not math.isclose(event.loss, event.raw_loss)
    assert event.is_best
    kept = load_checkpoint(tmp_path).model
    assert evaluate(kept, prepared, 16).loss == pytest.approx(event.loss, abs=1e-6)
    assert trainer.average
    trainer.average.swap(trainer.model)
    assert evaluate(trainer.model, prepared, 16).loss == pytest.approx(event.raw_loss, abs=1e-6)


def test_a_temperature_that_is_given_is_taken(
    make_config: Callable[..., TrainConfig], prepared: PreparedData, tmp_path: Path
) -> None:
    trainer = Trainer(make_config(budget={"steps": 4}, run={"temperature": 1.25}), prepared, tmp_path)
    [event] = [event for event in trainer.run() if isinstance(event, EvaluationEvent)]
    assert event.temperature == 1.25
    assert len(trainer.train_tokens) == len(prepared.train)
    assert evaluate(load_checkpoint(tmp_path).model, prepared, 16).loss == pytest.approx(event.loss, abs=1e-6)


def test_what_cannot_be_scaled_is_refused_before_the_first_step(
    make_config: Callable[..., TrainConfig], prepared: PreparedData, tmp_path: Path
) -> None:
    config = make_config(model={"family": "recurrent", "tie_embeddings": True}, run={"calibration_fraction": 0.2})
    with pytest.raises(ConfigError, match=r"model\.tie_embeddings = false"):
        Trainer(config, prepared, tmp_path)
