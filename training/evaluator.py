"""What a run wants to know of its model now and then: how well it predicts, how sure of itself it may be, its text."""

import time
from collections.abc import Callable
from itertools import islice

import msgspec
import torch

from training.calibration import fit_temperature
from training.config import TrainConfig
from training.data.batches import Tokens
from training.data.prepare import PreparedData
from training.distributed import ALONE, Ranks
from training.evaluate import Evaluation, evaluate, random_estimate
from training.models.families import AnyModel
from training.sample import sample

SAMPLE_SEED = 1
SAMPLE_TEMPERATURE = 0.8


class EvaluationReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was found."""

    evaluation: Evaluation
    temperature: float
    """Fitted on text that is held out for it, or given; 1: neither."""
    text: str
    seconds: float
    """What reading the whole split took, the fit included and the text not."""


class Evaluator:
    """Evaluates the model of one run, again and again.

    Args:
        config: Its settings.
        data: The prepared text.
        calibration_tokens: What the temperature is fitted on; none: it is the settings'.
        dtype: What the matrix products are computed in.
        ranks: The processes that share the work; all get the same results, but the first alone a text.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: PreparedData,
        calibration_tokens: Tokens,
        dtype: torch.dtype,
        ranks: Ranks = ALONE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = config.run
        self._context_length = config.model.context_length
        self._data = data
        self._calibration_tokens = calibration_tokens
        self._dtype = dtype
        self._ranks = ranks
        self._clock = clock

    def evaluate(self, model: AnyModel) -> EvaluationReport:
        """Read the whole validation split, and let the model write."""
        started = self._clock()
        temperature = self._fit(model)
        evaluation = evaluate(
            model, self._data, self._context_length, dtype=self._dtype, temperature=temperature, ranks=self._ranks
        )
        seconds = self._clock() - started
        text = self._write(model) if self._ranks.is_first else ""
        return EvaluationReport(evaluation=evaluation, temperature=temperature, text=text, seconds=seconds)

    def estimate(self, model: AnyModel, temperature: float) -> float:
        """Return nanoGPT's estimate of the loss."""
        return random_estimate(
            model,
            self._data.validation,
            self._context_length,
            batch_size=self._run.batch_size,
            seed=self._run.seed,
            dtype=self._dtype,
            temperature=temperature,
            ranks=self._ranks,
        )

    def _fit(self, model: AnyModel) -> float:
        if not self._run.calibration_fraction:
            return self._run.temperature
        fitted = fit_temperature(model, self._calibration_tokens, self._context_length, dtype=self._dtype)
        return self._ranks.of_first(fitted)

    def _write(self, model: AnyModel) -> str:
        tokenizer = self._data.tokenizer
        was_training = model.training
        model.eval()
        drawn = sample(
            model,
            self._data.validation[:1].tolist(),
            temperature=SAMPLE_TEMPERATURE,
            banned=tokenizer.special_ids,
            generator=torch.Generator().manual_seed(SAMPLE_SEED),
        )
        text = tokenizer.decode(list(islice(drawn, self._run.sample_tokens)))
        model.train(was_training)
        return text
