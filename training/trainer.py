"""The loop: steps, now and then an evaluation, and a saved state from which it goes on as if nothing had happened."""

import math
import shutil
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Literal

import msgspec
import torch

from training.checkpoint import save_checkpoint
from training.config import TrainConfig
from training.data.batches import RandomBatches
from training.data.prepare import PreparedData
from training.errors import TrainingError
from training.evaluate import evaluate, random_estimate
from training.models.devices import choose_device, choose_dtype
from training.models.families import make_model
from training.objectives import cross_entropy
from training.optim import Average, Optimizer
from training.resume import ResumeState, load_resume, save_resume
from training.sample import sample

SAMPLE_SEED = 1


class StepEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="step"):
    """One optimizer step was made."""

    step: int
    tokens: int
    elapsed_s: float
    progress: float
    """Share of the budget that is used, 0 to 1."""
    loss: float
    """Mean nats a token over the step's batch, before the step."""
    grad_norm: float


class EvaluationEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="evaluation"):
    """The validation split was read."""

    step: int
    tokens: int
    elapsed_s: float
    loss: float
    """Mean nats a token over the whole split."""
    nats_per_char: float
    bits_per_byte: float
    random_estimate: float | None
    """nanoGPT's estimate, at the end of the run only: it costs several times the whole split."""
    is_best: bool
    text: str
    """What the model writes now."""


Event = StepEvent | EvaluationEvent
Ending = Literal["budget", "target", "patience"]


class Trainer:
    """One run.

    Args:
        config: Its settings.
        data: The prepared text.
        folder: Of the run: `checkpoint/` holds the best weights, `resume.safetensors` the last state.
        resume: Go on from `resume.safetensors` instead of starting anew.
        clock: Seconds, monotonic.
        notice: Where one line for the user goes.

    Raises:
        TrainingError: nothing to resume, or it is a run on another text.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: PreparedData,
        folder: Path,
        *,
        resume: bool = False,
        clock: Callable[[], float] = time.monotonic,
        notice: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.data = data
        self.folder = folder
        model_config = config.model.replace(vocab_size=data.tokenizer.vocab_size)
        self.config = config.replace(model=model_config)
        self.device = choose_device(config.run.device)
        self.dtype = choose_dtype(config.run.dtype, self.device)
        torch.manual_seed(config.run.seed)
        self.model = make_model(model_config, torch.Generator().manual_seed(config.run.seed)).to(self.device).train()
        self.optimizer = Optimizer(self.model, config.optim)
        self.average = Average(self.model, config.optim.ema_decay) if config.optim.ema_decay else None
        self.batches = RandomBatches(
            data.train, config.run.batch_size, model_config.context_length, seed=config.run.seed
        )
        self.state = ResumeState(config=self.config, corpus_sha256=data.corpus_sha256)
        if resume:
            self.state = self._resume()
        self._clock = clock
        self._started = clock() - self.state.elapsed_s
        if config.run.compile:
            self._compile(notice)

    @property
    def resume_file(self) -> Path:
        """Where the last state stands."""
        return self.folder / "resume.safetensors"

    @property
    def progress(self) -> float:
        """Share of the budget that is used."""
        budget, state = self.config.budget, self.state
        if budget.minutes is not None:
            return state.elapsed_s / (60 * budget.minutes)
        if budget.steps is not None:
            return state.step / budget.steps
        limit = budget.tokens if budget.tokens is not None else (budget.epochs or 0) * len(self.data.train)
        return state.tokens / limit

    @property
    def ending(self) -> Ending | None:
        """Why the run is over; None while it is not."""
        budget, state = self.config.budget, self.state
        if budget.target_loss is not None and state.best_loss is not None and state.best_loss <= budget.target_loss:
            return "target"
        if budget.patience is not None and state.evaluations_without_best >= budget.patience:
            return "patience"
        return "budget" if self.progress >= 1 else None

    def run(self) -> Iterator[Event]:
        """Train to the end of the budget, yielding what happens; the state is saved after each evaluation."""
        while self.ending is None:
            yield self.train_step()
            if self.state.step % self.config.run.eval_every == 0 or self.ending:
                yield self.evaluate()
                self.save()

    def train_step(self) -> StepEvent:
        """Make one optimizer step from `accumulate` micro-batches.

        Raises:
            TrainingError: the loss is not finite.
        """
        progress, accumulate = self.progress, self.config.run.accumulate
        loss, num_tokens = 0.0, 0
        for index in range(accumulate):
            inputs, targets = self.batches.batch(self.state.step * accumulate + index)  # (B, T)
            with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
                logits = self.model(inputs.to(self.device))  # (B, T, V)
            batch_loss = cross_entropy(logits, targets.to(self.device)) / accumulate
            torch.autograd.backward(batch_loss)
            loss += float(batch_loss.detach())
            num_tokens += targets.numel()
        if not math.isfinite(loss):
            raise TrainingError(
                f"step {self.state.step}: the loss is {loss}; lower the learning rates (--set optim.matrix_lr=…); "
                f"the best checkpoint so far stays in {self.folder}"
            )
        grad_norm = self.optimizer.step(progress)
        self._advance(num_tokens)
        state = self.state
        return StepEvent(
            step=state.step,
            tokens=state.tokens,
            elapsed_s=state.elapsed_s,
            progress=self.progress,
            loss=loss,
            grad_norm=grad_norm,
        )

    def evaluate(self) -> EvaluationEvent:
        """Read the whole validation split; keep the weights as the checkpoint if they are the best so far."""
        if self.average:
            self.average.swap(self.model)
        with torch.compiler.set_stance("force_eager"):  # compiled for one shape, and here every shape comes
            event = self._evaluate()
        if event.is_best:
            self._save_best(event.nats_per_char)
        if self.average:
            self.average.swap(self.model)
        return event

    def save(self) -> None:
        """Write the state from which `resume=True` goes on, bit for bit."""
        save_resume(self.resume_file, self.state, self.model, self.optimizer, self.average)

    def _evaluate(self) -> EvaluationEvent:
        result = evaluate(self.model, self.data, self.config.model.context_length, dtype=self.dtype)
        best = self.state.best_loss
        is_best = best is None or result.loss < best
        estimate = self._random_estimate() if self.ending else None
        text = self._write_sample()
        self.state = self.state.replace(
            best_loss=result.loss if is_best else best,
            evaluations_without_best=0 if is_best else self.state.evaluations_without_best + 1,
            elapsed_s=self._clock() - self._started,
        )
        return EvaluationEvent(
            step=self.state.step,
            tokens=self.state.tokens,
            elapsed_s=self.state.elapsed_s,
            loss=result.loss,
            nats_per_char=result.nats_per_char,
            bits_per_byte=result.bits_per_byte,
            random_estimate=estimate,
            is_best=is_best,
            text=text,
        )

    def _resume(self) -> ResumeState:
        state = load_resume(self.resume_file, self.model, self.optimizer, self.average)
        if state.corpus_sha256 != self.data.corpus_sha256:
            raise TrainingError(f"{self.resume_file}: was trained on another text; give the same --data as before")
        return state.replace(config=self.config)

    def _advance(self, num_tokens: int) -> None:
        self.state = self.state.replace(
            step=self.state.step + 1,
            tokens=self.state.tokens + num_tokens,
            elapsed_s=self._clock() - self._started,
        )
        if self.average:
            self.average.update(self.model, self.state.step)

    def _save_best(self, nats_per_char: float) -> None:
        save_checkpoint(
            self.folder / "checkpoint",
            self.model,
            self.data.tokenizer,
            self.config,
            dtype=self.dtype,
            corpus_sha256=self.data.corpus_sha256,
            step=self.state.step,
            tokens=self.state.tokens,
            validation_loss=nats_per_char,
        )

    def _random_estimate(self) -> float:
        run, context = self.config.run, self.config.model.context_length
        return random_estimate(
            self.model, self.data.validation, context, batch_size=run.batch_size, seed=run.seed, dtype=self.dtype
        )

    def _write_sample(self) -> str:
        if not self.config.run.sample_tokens:
            return ""
        tokenizer = self.data.tokenizer
        self.model.eval()
        drawn = sample(
            self.model,
            self.data.validation[:1].tolist(),
            temperature=0.8,
            banned=tokenizer.special_ids,
            generator=torch.Generator().manual_seed(SAMPLE_SEED),
        )
        text = tokenizer.decode(list(islice(drawn, self.config.run.sample_tokens)))
        self.model.train()
        return text

    def _compile(self, notice: Callable[[str], None]) -> None:
        if self.device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
            notice("no C++ compiler (g++) here: going on without torch.compile, somewhat slower")
            return
        for block in self.model.blocks:
            block.compile()  # in place: parameter names stay as they are
