"""Every setting of a training run: frozen, typed, with its unit and its range; an unknown key is an error.

A preset is a TOML file with one table for each class below; `--set table.key=value` overrides one value.
"""

import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import msgspec

from training.errors import ConfigError
from training.model_config import DEFAULT_FAMILY, GPTConfig, ModelConfig
from training.settings import Settings, require

Algorithm = Literal["muon", "adamw", "adam", "sgd", "momentum", "nesterov", "adagrad", "rmsprop"]
BUDGET_UNITS = ("steps", "epochs", "tokens", "minutes")
"""Of these a budget gives exactly one."""


class DataConfig(Settings, frozen=True, kw_only=True):
    """The text and how it becomes token ids."""

    corpus: str = "tinyshakespeare"
    """`tinyshakespeare`, `pydoc-topics`, or the path of a UTF-8 file or folder."""
    tokenizer: Literal["char", "bpe"] = "char"
    vocab_size: int | None = None
    """Entries of a trained `bpe` vocabulary, special tokens included (≥ 257); `None` for `char`: the corpus decides."""
    validation_fraction: float = 0.1
    """Share of the text, at its end, that is never trained on; 0 < x < 1."""
    memory_mb: int = 512
    """What reading and tokenizing may take, all processes together, torch apart; at least 256. Learning merges takes
    more where nearly every word of the text is another (hashes)."""

    def __post_init__(self) -> None:
        require(0 < self.validation_fraction < 1, "validation_fraction", self.validation_fraction, "between 0 and 1")
        require(self.memory_mb >= 256, "memory_mb", self.memory_mb, "at least 256")
        if self.tokenizer == "bpe":
            valid = self.vocab_size is not None and 257 <= self.vocab_size <= 65_536
            require(valid, "vocab_size", self.vocab_size, "a bpe vocabulary has 257 to 65536 entries, e.g. 1024")
        else:
            require(self.vocab_size is None, "vocab_size", self.vocab_size, "leave it out for tokenizer = 'char'")


class OptimConfig(Settings, frozen=True, kw_only=True):
    """Who moves the weights, and how far."""

    algorithm: Algorithm = "muon"
    """The optimizer; with `muon` embeddings, head, norms and biases are AdamW's."""
    matrix_lr: float = 0.02
    embed_lr: float = 0.012
    head_lr: float = 0.008
    other_lr: float = 0.01
    """Peak learning rates: hidden matrices, token and position embeddings, output head, norms and biases."""
    betas: tuple[float, float] = (0.9, 0.99)
    momentum: float = 0.95
    weight_decay: float = 0.0
    """Decoupled decay of everything with two dimensions; norms and biases are never decayed."""
    grad_clip: float = 1.0
    """Largest norm of the whole gradient; 0: no clipping."""
    ema_decay: float = 0.0
    """Decay of an exponential moving average of the weights, evaluated and kept in their place; 0: none."""
    warmup_fraction: float = 0.02
    decay_fraction: float = 0.6
    """Shares of the budget in which the rates rise from 0, and fall (at the end) to `final_lr_fraction`."""
    decay_shape: Literal["linear", "cosine"] = "linear"
    final_lr_fraction: float = 0.0

    def __post_init__(self) -> None:
        for field in ("matrix_lr", "embed_lr", "head_lr", "other_lr"):
            require(getattr(self, field) > 0, field, getattr(self, field), "greater than 0")
        for field in ("warmup_fraction", "decay_fraction", "final_lr_fraction"):
            require(0 <= getattr(self, field) <= 1, field, getattr(self, field), "between 0 and 1")
        together = self.warmup_fraction + self.decay_fraction
        require(together <= 1, "warmup_fraction + decay_fraction", together, "at most 1")
        require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "0 ≤ ema_decay < 1")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "at least 0")
        require(self.grad_clip >= 0, "grad_clip", self.grad_clip, "at least 0 (0: no clipping)")


class BudgetConfig(Settings, frozen=True, kw_only=True):
    """When a run ends: exactly one of steps, epochs, tokens and minutes; earlier by target or patience."""

    steps: int | None = None
    epochs: float | None = None
    tokens: int | None = None
    minutes: float | None = None
    target_loss: float | None = None
    """Stop when the whole-validation loss (nats a token) is at or under this."""
    patience: int | None = None
    """Stop after this many evaluations in a row without a new best."""

    def __post_init__(self) -> None:
        given = {f: v for f in BUDGET_UNITS if (v := getattr(self, f)) is not None}
        require(len(given) == 1, "budget", given, "give exactly one of steps, epochs, tokens, minutes")
        for field, value in given.items():
            require(value > 0, field, value, "greater than 0")
        if self.target_loss is not None:
            require(self.target_loss > 0, "target_loss", self.target_loss, "greater than 0")
        require(self.patience is None or self.patience >= 1, "patience", self.patience, "at least 1")


class RunConfig(Settings, frozen=True, kw_only=True):
    """How the loop runs: batches, precision, evaluations."""

    batch_size: int = 16
    """Sequences in a micro-batch."""
    accumulate: int = 1
    """Micro-batches whose gradients make one step."""
    batches: Literal["windows", "streams"] = "windows"
    """Windows from everywhere in random order; or streams that are read on and on, so that a model of fixed state
    carries it from window to window."""
    calibration_fraction: float = 0.0
    """Share of the training split, at its end, that the logits' temperature is fitted on instead; 0 ≤ x ≤ 0.5."""
    temperature: float = 1.0
    """What the logits of the checkpoint are divided by, where it is not fitted: what an earlier run fitted."""
    seed: int = 1337
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """What the matrix products are computed in; `auto` is bf16 where the processor has it in hardware."""
    compile: bool = False
    """Compile the model with `torch.compile`: worth it for runs longer than a few minutes."""
    eval_every: int = 250
    """Steps between evaluations."""
    sample_tokens: int = 120
    """Tokens of the text sample shown at each evaluation; 0: none."""
    tensorboard: bool = False
    """Write the curves for TensorBoard too, where it is installed."""

    def __post_init__(self) -> None:
        fraction = self.calibration_fraction
        require(0 <= fraction <= 0.5, "calibration_fraction", fraction, "0 ≤ x ≤ 0.5 (0: no temperature)")
        for field in ("batch_size", "accumulate", "eval_every"):
            require(getattr(self, field) >= 1, field, getattr(self, field), "at least 1")
        require(0 < self.temperature <= 10, "temperature", self.temperature, "greater than 0, at most 10")
        for field in ("seed", "sample_tokens"):
            require(getattr(self, field) >= 0, field, getattr(self, field), "at least 0")


class TrainConfig(Settings, frozen=True, kw_only=True):
    """One training run."""

    budget: BudgetConfig
    data: DataConfig = DataConfig()
    model: ModelConfig = GPTConfig()
    optim: OptimConfig = OptimConfig()
    run: RunConfig = RunConfig()
    title: str = ""
    """One line for `minigpt train --list`."""


def list_presets() -> dict[str, TrainConfig]:
    """Return every preset that comes with the package, by name."""
    files = sorted(resources.files("training").joinpath("presets").iterdir(), key=lambda file: file.name)
    return {
        file.name.removesuffix(".toml"): parse_config(tomllib.loads(file.read_text("utf-8")), file.name)
        for file in files
        if file.name.endswith(".toml")
    }


def load_config(preset: str, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a preset and apply `table.key=value` overrides.

    Args:
        preset: Name of a preset of the package, or path of a TOML file.
        overrides: `table.key=value`, the value as TOML writes it (a bare word is a string).

    Raises:
        ConfigError: no such preset, unreadable TOML, unknown key, wrong type or value.
    """
    packaged = resources.files("training").joinpath("presets", f"{preset}.toml")
    source = packaged if packaged.is_file() else Path(preset)
    if not source.is_file():
        names = ", ".join(list_presets())
        raise ConfigError(f"no preset or TOML file '{preset}': choose one of {names}, or give a path")
    try:
        tables = tomllib.loads(source.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{preset}: not TOML: {error}") from error
    for override in overrides:
        _apply(tables, override)
    return parse_config(tables, preset)


def override_config(config: TrainConfig, overrides: Sequence[str]) -> TrainConfig:
    """Return `config` with `table.key=value` overrides applied.

    Raises:
        ConfigError: unknown key, wrong type or value.
    """
    tables = msgspec.to_builtins(config)
    for override in overrides:
        _apply(tables, override)
    return parse_config(tables, "--set")


def parse_config(tables: dict[str, Any], where: str) -> TrainConfig:
    """Check `tables` as read from TOML or JSON; `where` names them in an error.

    Raises:
        ConfigError: unknown key, wrong type or value.
    """
    if isinstance(model := tables.get("model", {}), dict):
        tables = {**tables, "model": {"family": DEFAULT_FAMILY, **model}}
    try:
        return msgspec.convert(tables, TrainConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}") from error


def _apply(tables: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or len(keys) != 2:
        raise ConfigError(f"--set {override}: write table.key=value, e.g. --set model.n_layer=4")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    table = tables.setdefault(keys[0], {})
    if not isinstance(table, dict):
        raise ConfigError(f"--set {override}: '{keys[0]}' is no table")
    if keys[0] == "budget" and keys[1] in BUDGET_UNITS:
        for other in BUDGET_UNITS:
            table.pop(other, None)  # a new budget replaces the preset's
    table[keys[1]] = value
