"""Several trainings under one budget, set side by side: who takes part, what came out, a table."""

import itertools
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from training.config import BUDGET_UNITS, Algorithm, BudgetConfig, TrainConfig, load_config
from training.costs import count_costs
from training.errors import ConfigError
from training.model_config import ModelConfig
from training.runlog import read_events

RATE_FIELDS = ("matrix_lr", "embed_lr", "head_lr", "other_lr")
RATES: dict[Algorithm, tuple[float, float, float, float]] = {
    "muon": (0.02, 0.012, 0.008, 0.01),
    "adamw": (0.002, 0.006, 0.004, 0.005),
    "adam": (0.002, 0.006, 0.004, 0.005),
    "rmsprop": (0.001, 0.003, 0.002, 0.0025),
    "adagrad": (0.01, 0.03, 0.02, 0.025),
    "sgd": (2.0, 2.0, 2.0, 2.0),
    "momentum": (0.4, 0.4, 0.4, 0.4),
    "nesterov": (0.4, 0.4, 0.4, 0.4),
}
"""Rates of an optimizer where the preset was tuned for another, the best of a few (docs/experiments.md); `--set
optim.…_lr=` changes them for all."""


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """What every contestant may use; exactly one of the three."""

    minutes: float | None = None
    tokens: int | None = None
    flops: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.minutes, self.tokens, self.flops) if value is not None]
        if len(given) != 1 or not given[0] > 0:
            raise ConfigError("a comparison needs one budget, above 0: give one of --minutes, --tokens, --flops")

    def of(self, model: ModelConfig) -> BudgetConfig:
        """Return the budget of one run: FLOPs are so many tokens of its model, whose `vocab_size` must be set."""
        if self.flops is None:
            return BudgetConfig(minutes=self.minutes, tokens=self.tokens)
        return BudgetConfig(tokens=max(1, round(self.flops / count_costs(model).flops_per_token)))


class Contestant(msgspec.Struct, frozen=True, kw_only=True):
    """One training of a comparison."""

    name: str
    """What sets it apart from the others, its seed left out."""
    config: TrainConfig

    @property
    def folder_name(self) -> str:
        """Name of its folder, seed included."""
        return f"{self.name}-{self.config.run.seed}"


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What came out of one training."""

    name: str
    seed: int
    num_parameters: int
    tokens: int
    seconds: float
    flops: float
    loss: float
    """Lowest loss on the whole validation split, nats a character."""
    bits_per_byte: float


def list_contestants(
    presets: Sequence[str],
    *,
    optimizers: Sequence[str] = (),
    activations: Sequence[str] = (),
    overrides: Sequence[str] = (),
    num_seeds: int = 1,
) -> list[Contestant]:
    """Return every combination of preset, optimizer, activation and seed.

    Args:
        presets: Names or paths of TOML files.
        optimizers: Names for `optim.algorithm`, with `RATES` where a preset has another; none: the presets' own.
        activations: Names for `model.activation`; none: the presets' own.
        overrides: `table.key=value`, for all of them.
        num_seeds: Seeds, counted up from the presets' own.

    Raises:
        ConfigError: no such preset or value, the same one twice, or a budget among the overrides.
    """
    for override in overrides:
        if override.partition("=")[0].strip() in {f"budget.{unit}" for unit in BUDGET_UNITS}:
            raise ConfigError(f"--set {override}: a comparison has one budget for all: --minutes, --tokens or --flops")
    contestants = [
        Contestant(name=name, config=config.replace(run=config.run.replace(seed=config.run.seed + index)))
        for name, config in _vary(presets, optimizers, activations, overrides)
        for index in range(num_seeds)
    ]
    names = [contestant.folder_name for contestant in contestants]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"'{twice}' takes part twice: name each preset, optimizer and activation once")
    return contestants


def read_result(contestant: Contestant, folder: Path) -> Result | None:
    """Read from a run's log how it ended; None: it has not.

    Args:
        contestant: Whose run it is; `config.model.vocab_size` must be set.
        folder: Of the run.
    """
    events = read_events(folder / "log.jsonl") if (folder / "log.jsonl").exists() else []
    if not events or events[-1]["event"] != "end":
        return None
    best = min((event for event in events if event["event"] == "evaluation"), key=lambda event: event["loss"])
    return Result(
        name=contestant.name,
        seed=contestant.config.run.seed,
        num_parameters=count_costs(contestant.config.model).num_parameters,
        tokens=events[-1]["tokens"],
        seconds=events[-1]["elapsed_s"],
        flops=events[-1]["flops"],
        loss=best["nats_per_char"],
        bits_per_byte=best["bits_per_byte"],
    )


def table_of(results: Sequence[Result]) -> str:
    """Return the results as a Markdown table, the best first; of several seeds medians, and the range of the loss."""
    lines = [
        "| | loss, nats a character | bits a byte | parameters | tokens | FLOPs | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for runs in group_by_name(results):
        first = runs[0]
        losses = [run.loss for run in runs]
        spread = f" ({min(losses):.4f} to {max(losses):.4f})" if len(runs) > 1 else ""
        lines.append(
            f"| {first.name} | {median_loss(runs):.4f}{spread} | {_median(runs, 'bits_per_byte'):.4f} "
            f"| {first.num_parameters / 1e6:.2f}M | {_median(runs, 'tokens') / 1e6:.2f}M "
            f"| {_median(runs, 'flops'):.2e} | {_median(runs, 'seconds'):.0f} |"
        )
    return "\n".join(lines) + "\n"


def group_by_name(results: Sequence[Result]) -> list[list[Result]]:
    """Return the results of each name, all its seeds together, the lowest median loss first."""
    names = dict.fromkeys(result.name for result in results)
    groups = [[result for result in results if result.name == name] for name in names]
    return sorted(groups, key=median_loss)


def median_loss(runs: Sequence[Result]) -> float:
    """Return the median over the seeds, nats a character."""
    return _median(runs, "loss")


def _vary(
    presets: Sequence[str], optimizers: Sequence[str], activations: Sequence[str], overrides: Sequence[str]
) -> Iterator[tuple[str, TrainConfig]]:
    """Yield every combination, named by what varies."""
    dimensions = (presets, optimizers, activations)
    for preset, optimizer, activation in itertools.product(presets, optimizers or [""], activations or [""]):
        settings = _optimizer_settings(preset, optimizer) if optimizer else []
        settings += [f"model.activation={activation}"] if activation else []
        parts = (Path(preset).stem, optimizer, activation)
        varied = [part for part, choices in zip(parts, dimensions, strict=True) if len(choices) > 1]
        yield "-".join(varied or parts[:1]), load_config(preset, [*settings, *overrides])


def _optimizer_settings(preset: str, algorithm: str) -> list[str]:
    chosen = load_config(preset, [f"optim.algorithm={algorithm}"]).optim.algorithm
    own = load_config(preset).optim.algorithm
    rates = {} if chosen == own else dict(zip(RATE_FIELDS, RATES[chosen], strict=True))
    return [f"optim.{key}={value}" for key, value in {"algorithm": chosen, **rates}.items()]


def _median(runs: Sequence[Result], field: str) -> float:
    return statistics.median(getattr(run, field) for run in runs)
