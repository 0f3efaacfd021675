"""`minigpt bench train`: a step of preset `nanogpt-cpu` beside a step of nanoGPT's own CPU recipe."""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import torch
from rich.table import Table

from service.bench.nanogpt_peer import BATCH_SIZE, NanoGPTTrainer, make_nanogpt, nanogpt_config
from service.bench.rounds import Run, Side, compare, measure_in_turn, median_speed
from training.config import TrainConfig
from training.data.batches import random_estimate_batches
from training.data.prepare import PreparedData
from training.evaluate import evaluate
from training.trainer import Trainer


class TrainRun(Run, frozen=True, kw_only=True):
    """Some steps made, none of them an evaluation."""

    steps: int


class TrainResult(msgspec.Struct, frozen=True, kw_only=True):
    """All rounds, a run a round; the losses, nats a token over the whole validation split, if asked for."""

    minigpt: list[TrainRun]
    nanogpt: list[TrainRun]
    minigpt_loss: float | None
    nanogpt_loss: float | None


class TrainBench:
    """Both trainings, at their start.

    Args:
        config: Of minigpt's.
        data: The text for both.
        folder: Where checkpoints may be written.
    """

    def __init__(self, config: TrainConfig, data: PreparedData, folder: Path) -> None:
        self._data = data
        self._trainer = Trainer(config, data, folder)
        seed = config.run.seed
        # Ids that stand for no character are in our vocabulary only; nanoGPT's has 65 for Tiny-Shakespeare.
        self._peer_config = nanogpt_config(vocab_size=1 + int(max(data.train.max(), data.validation.max())))
        self._peer_model = make_nanogpt(self._peer_config, torch.Generator().manual_seed(seed))
        batches = random_estimate_batches(data.train, BATCH_SIZE, self._peer_config.context_length, sys.maxsize, seed)
        self._peer = NanoGPTTrainer(self._peer_model, batches)

    def describe(self) -> dict[str, str | int]:
        """Return minigpt's dtype (nanoGPT's is fp32), and the threads of both."""
        return {"dtype": str(self._trainer.dtype).removeprefix("torch."), "threads": torch.get_num_threads()}

    def measure(self, steps: int, rounds: int, *, to_the_end: bool) -> TrainResult:
        """Train both in turn, `steps` a round; the first round is untimed unless the losses are wanted."""
        ours: Side[int, TrainRun] = Side(lambda num_steps: _time(self._our_step, num_steps))
        nanogpt: Side[int, TrainRun] = Side(lambda num_steps: _time(self._peer.train_step, num_steps))
        loads = [steps] * (rounds if to_the_end else rounds + 1)
        measure_in_turn([ours, nanogpt], loads, warm_up=not to_the_end)
        return TrainResult(
            minigpt=ours.runs,
            nanogpt=nanogpt.runs,
            minigpt_loss=self._our_loss() if to_the_end else None,
            nanogpt_loss=self._peer_loss() if to_the_end else None,
        )

    def _our_step(self) -> int:
        before = self._trainer.state.tokens
        return self._trainer.train_step().tokens - before

    def _our_loss(self) -> float:
        trainer = self._trainer
        if trainer.average:
            trainer.average.swap(trainer.model)
        return evaluate(trainer.model, self._data, trainer.config.model.context_length, dtype=trainer.dtype).loss

    def _peer_loss(self) -> float:
        return evaluate(self._peer_model, self._data, self._peer_config.context_length).loss


def train_table(result: TrainResult, title: str) -> Table:
    """Return the medians, a row for each side."""
    table = Table("", title=title)
    for heading in ("ms a step", "tokens/s", "times as fast\nmedian (range)", "steps", "seconds", "validation loss"):
        table.add_column(heading, justify="right")
    ratio = compare(result.minigpt, result.nanogpt)
    table.add_row("minigpt", *_cells(result.minigpt, str(ratio), result.minigpt_loss))
    table.add_row("nanoGPT's recipe", *_cells(result.nanogpt, "1", result.nanogpt_loss))
    return table


def _cells(runs: Sequence[TrainRun], ratio: str, loss: float | None) -> list[str]:
    speed = median_speed(runs)
    steps, seconds = sum(run.steps for run in runs), sum(run.seconds for run in runs)
    ms_a_step = 1000 * runs[0].tokens / runs[0].steps / speed
    shown_loss = "–" if loss is None else f"{loss:.4f}"
    return [f"{ms_a_step:.2f}", f"{speed:,.0f}", ratio, f"{steps:,}", f"{seconds:.1f}", shown_loss]


def _time(step: Callable[[], int], steps: int) -> TrainRun:
    began = time.perf_counter()
    tokens = sum(step() for _ in range(steps))
    return TrainRun(tokens=tokens, seconds=time.perf_counter() - began, steps=steps)
