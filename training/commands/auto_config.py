"""`minigpt train --minutes` without a preset: every setting chosen from text, machine and time."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from training.commands.dry_run import size_of
from training.commands.session import load_data, require_one_process
from training.config import BUDGET_UNITS, BudgetConfig, DataConfig, TrainConfig, override_config
from training.errors import ConfigError
from training.planning import choose_data, plan, probe

if TYPE_CHECKING:  # torch is loaded when a run begins
    from training.data.prepare import PreparedData

MEASURE_S = 3.0


def with_minutes(minutes: float | None, overrides: Sequence[str]) -> list[str]:
    """Return the overrides, `--minutes` among them.

    Raises:
        ConfigError: they give another budget.
    """
    if minutes is None:
        return list(overrides)
    for override in overrides:
        if override.partition("=")[0].strip() in {f"budget.{unit}" for unit in BUDGET_UNITS}:
            raise ConfigError(f"--minutes {minutes:g} and --set {override}: a run has one budget; leave one out")
    return [*overrides, f"budget.minutes={minutes}"]


def plan_run(minutes: float, data: Path | None, overrides: Sequence[str], console: Console) -> TrainConfig:
    """Choose every setting that `overrides` leave open from the text, this machine's speed and the minutes.

    Raises:
        ConfigError: no minutes, overrides that do not fit together, or several processes.
    """
    require_one_process("--minutes without a preset")
    asked = override_config(TrainConfig(budget=BudgetConfig(minutes=1.0)), with_minutes(minutes, overrides))
    data_config, prepared = load_data(_choose_data(asked.data, data, overrides), data)
    speed = _measure(asked.replace(data=data_config), prepared)
    planned = plan(size_of(prepared), speed, minutes)
    model, run = planned.model, planned.run
    console.print(
        f"{planned.title} at {speed / 1e9:.0f} GFLOP/s; dropout {model.dropout:g}, "
        f"batches of {run.batch_size} × {model.context_length}, temperature {run.temperature:g}"
    )
    if planned.budget.minutes is not None and planned.budget.minutes < minutes:
        console.print(f"the text is small: more than {planned.budget.minutes:.1f} minutes would only overfit")
    return override_config(planned.replace(data=data_config), overrides)


def _choose_data(asked: DataConfig, data: Path | None, overrides: Sequence[str]) -> DataConfig:
    from training.data.corpus import load_corpus

    if any(override.startswith(("data.tokenizer", "data.vocab_size")) for override in overrides):
        return asked
    corpus = load_corpus(asked.corpus, data)
    letters: set[str] = set()
    for piece in corpus.pieces("counting letters"):
        letters.update(piece.text)
    return choose_data(asked, corpus.num_chars, len(letters))


def _measure(asked: TrainConfig, prepared: "PreparedData") -> float:
    from training.speed import flops_per_step, measure_step_s
    from training.trainer import Trainer

    trainer = Trainer(probe(asked, size_of(prepared)), prepared, Path())
    return flops_per_step(trainer) / measure_step_s(trainer, MEASURE_S)
