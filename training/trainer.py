"""The loop: steps, now and then an evaluation, and a saved state from which it goes on as if nothing had happened."""

import hashlib
import math
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from training.calibration import scaled_logits
from training.checkpoint import save_checkpoint
from training.config import TrainConfig
from training.costs import count_costs
from training.data.prepare import PreparedData
from training.data_loader import DataLoader
from training.distributed import ALONE, Ranks
from training.errors import TrainingError
from training.evaluator import EvaluationReport, Evaluator
from training.events import EndEvent, Ending, EvaluationEvent, Event, StepEvent
from training.gradients import find_gradients, shrink_micro_batches
from training.memory import keep_freed_memory, peak_memory_bytes
from training.models.devices import choose_device, choose_dtype
from training.models.families import make_model
from training.optim import Average, Optimizer
from training.resume import (
    Parts,
    ResumeState,
    load_rng_tensors,
    read_resume_parts,
    read_resume_state,
    rng_tensors,
    save_resume,
)
from training.stopping import used_share, why_ended


class Trainer:
    """One run, or one process of it.

    Args:
        config: Its settings.
        data: The prepared text.
        folder: Of the run: `checkpoint/` holds the best weights, `resume.safetensors` the last state.
        resume: Go on from `resume.safetensors` instead of starting anew.
        ranks: The processes of the run; each makes a `Trainer` of the same arguments.
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
        ranks: Ranks = ALONE,
        clock: Callable[[], float] = time.monotonic,
        notice: Callable[[str], None] = lambda _: None,
    ) -> None:
        keep_freed_memory()
        self.data = data
        self.folder = folder
        self.ranks = ranks
        model_config = config.model.replace(vocab_size=data.tokenizer.vocab_size)
        self.config = config.replace(model=model_config)
        self.device = choose_device(config.run.device)
        self.dtype = choose_dtype(config.run.dtype, self.device)
        torch.manual_seed(config.run.seed + ranks.rank)  # each process drops out other elements
        self.model = make_model(model_config, torch.Generator().manual_seed(config.run.seed)).to(self.device).train()
        self.optimizer = Optimizer(self.model, config.optim)
        self.average = Average(self.model, config.optim.ema_decay) if config.optim.ema_decay else None
        if config.run.calibration_fraction or config.run.temperature != 1:
            self.model.scale_logits(1.0)  # changes nothing, unless it refuses
        border = round((1 - config.run.calibration_fraction) * len(data.train))
        self.train_tokens, self.calibration_tokens = data.train[:border], data.train[border:]
        self.loader = DataLoader(
            config.run, self.train_tokens, model_config.context_length, self.model.state_spec, self.device, ranks, clock
        )
        self._evaluator = Evaluator(self.config, data, self.calibration_tokens, self.dtype, ranks, clock)
        self.state = ResumeState(config=self.config, corpus_sha256=data.corpus_sha256)
        self._clock = clock
        self._notice = notice
        if resume:
            self._resume()
        self._started = clock() - self.state.elapsed_s
        if config.run.compile:
            self._compile()
        self._parallel = ranks.parallel(self.model)

    @property
    def resume_file(self) -> Path:
        """Where the last state stands."""
        return self.folder / "resume.safetensors"

    @property
    def progress(self) -> float:
        """Share of the budget that is used."""
        return used_share(self.config.budget, self.state, len(self.train_tokens))

    @property
    def ending(self) -> Ending | None:
        """Why the run is over; None while it is not."""
        return why_ended(self.config.budget, self.state, len(self.train_tokens))

    def run(self) -> Iterator[Event]:
        """Train to the end of the budget, yielding what happens; the state is saved after each evaluation."""
        while self.ending is None:
            yield self.train_step()
            if self.state.step % self.config.run.eval_every == 0 or self.ending:
                yield self.evaluate()
                self.save()
                if self.ending:
                    yield self._end(self.ending)

    def train_step(self) -> StepEvent:
        """Make one optimizer step from `accumulate` micro-batches.

        Raises:
            TrainingError: the loss is not finite, or there is no memory for a single row.
        """
        progress = self.progress
        loss = self._find_gradients()
        self._require_finite(loss)
        grad_norm = self.optimizer.step(progress)
        self.loader.advance()
        self._advance()
        return StepEvent(
            step=self.state.step,
            tokens=self.state.tokens,
            elapsed_s=self.state.elapsed_s,
            progress=self.progress,
            loss=loss,
            grad_norm=grad_norm,
        )

    def evaluate(self) -> EvaluationEvent:
        """Read the whole validation split; keep the weights as the checkpoint if they are the best so far."""
        if self.average:
            self.average.swap(self.model)
        with torch.compiler.set_stance("force_eager"):  # compiled for one shape, and here every shape comes
            found = self._evaluator.evaluate(self.model)
            is_best = self._take_in(found)
            estimate = self._evaluator.estimate(self.model, found.temperature) if self.ending else None
        if is_best and self.ranks.is_first:
            self._save_best(found)
        if self.average:
            self.average.swap(self.model)
        return EvaluationEvent(
            step=self.state.step,
            tokens=self.state.tokens,
            elapsed_s=self.state.elapsed_s,
            loss=found.evaluation.loss,
            nats_per_char=found.evaluation.nats_per_char,
            bits_per_byte=found.evaluation.bits_per_byte,
            raw_loss=found.evaluation.raw_loss,
            temperature=found.temperature,
            random_estimate=estimate,
            is_best=is_best,
            text=found.text,
        )

    def save(self) -> None:
        """Write the state from which `resume=True` goes on, bit for bit; every process must call."""
        parts: Parts = {
            "model": dict(self.model.named_parameters()),
            "optimizer": self.optimizer.state_tensors(),
            "average": self.average.weights if self.average else {},
            "state": self.loader.state_tensors(),
            "rng": rng_tensors(self.ranks),
        }
        if self.ranks.is_first:
            save_resume(self.resume_file, self.state, parts)

    def _resume(self) -> None:
        state = read_resume_state(self.resume_file)
        if state.corpus_sha256 != self.data.corpus_sha256:
            raise TrainingError(f"{self.resume_file}: was trained on another text; give the same --data as before")
        parts = read_resume_parts(self.resume_file, self.device)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(parts["model"][name])
        self.optimizer.load_state_tensors(dict(parts["optimizer"]))
        if self.average:
            self.average.weights = dict(parts["average"])
        self.loader.load_state_tensors(parts["state"])
        load_rng_tensors(parts["rng"], self.ranks)
        self.state = state.replace(config=self.config)

    def _find_gradients(self) -> float:
        """Leave the gradient of the step's batch in the weights, and return its mean loss."""
        while (loss := self._try_gradients()) is None:
            run = shrink_micro_batches(self.config.run, self.ranks.num_ranks)
            self.config = self.config.replace(run=run)
            self.state = self.state.replace(config=self.config)
            self.model.zero_grad()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self._notice(
                f"out of memory: going on with run.batch_size = {run.batch_size} and run.accumulate = "
                f"{run.accumulate}, which is the same batch a step"
            )
        return self.ranks.sum(loss) / self.ranks.num_ranks

    def _try_gradients(self) -> float | None:
        return find_gradients(
            self._parallel,
            self.loader,
            self.state.step,
            self.config.run.accumulate,
            device=self.device,
            dtype=self.dtype,
        )

    def _require_finite(self, loss: float) -> None:
        if math.isfinite(loss):
            return
        inputs, _ = self.loader.batches.batch(self.state.step)
        batch_hash = hashlib.sha256(inputs.numpy().tobytes()).hexdigest()[:12]
        best = self.folder / "checkpoint"
        kept = f"the best checkpoint so far stays in {best}" if best.exists() else "there is no checkpoint yet"
        raise TrainingError(
            f"step {self.state.step}: the loss is {loss} (batch {batch_hash}): lower the learning rates (--set "
            f"optim.matrix_lr=…); {kept}"
        )

    def _advance(self) -> None:
        run = self.config.run
        self.state = self.state.replace(
            step=self.state.step + 1,
            tokens=self.state.tokens + run.batch_size * run.accumulate * self.config.model.context_length,
            elapsed_s=self._elapsed(),
            data_s=self.state.data_s + self.loader.take_seconds(),
        )
        if self.average:
            self.average.update(self.model, self.state.step)

    def _take_in(self, found: EvaluationReport) -> bool:
        """Count an evaluation, and tell whether it is the best so far."""
        loss, best = found.evaluation.loss, self.state.best_loss
        is_best = loss < (math.inf if best is None else best)  # never where it is not a number
        self.state = self.state.replace(
            best_loss=loss if is_best else best,
            evaluations_without_best=0 if is_best else self.state.evaluations_without_best + 1,
            elapsed_s=self._elapsed(),
            evaluation_s=self.state.evaluation_s + found.seconds,
        )
        return is_best

    def _elapsed(self) -> float:
        """Return the first process' time: a budget in minutes must not end for one and go on for another."""
        return self.ranks.of_first(self._clock() - self._started)

    def _save_best(self, found: EvaluationReport) -> None:
        with scaled_logits(self.model, 1 / found.temperature):
            save_checkpoint(
                self.folder / "checkpoint",
                self.model,
                self.data.tokenizer,
                self.config,
                dtype=self.dtype,
                corpus_sha256=self.data.corpus_sha256,
                step=self.state.step,
                tokens=self.state.tokens,
                validation_loss=found.evaluation.nats_per_char,
            )

    def _end(self, ending: Ending) -> EndEvent:
        state = self.state
        return EndEvent(
            step=state.step,
            tokens=state.tokens,
            elapsed_s=state.elapsed_s,
            ending=ending,
            data_s=state.data_s,
            evaluation_s=state.evaluation_s,
            flops=float(count_costs(self.config.model).flops_per_token) * state.tokens,
            peak_memory_bytes=peak_memory_bytes(self.device),
        )

    def _compile(self) -> None:
        if self.device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
            self._notice("no C++ compiler (g++) here: going on without torch.compile, somewhat slower")
            return
        for block in self.model.blocks:
            block.compile()  # in place: parameter names stay as they are
