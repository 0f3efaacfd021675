"""`minigpt train`."""

import os
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from training.commands.auto_config import plan_run, with_minutes
from training.commands.dry_run import dry_run
from training.commands.options import DataOption, SetOption, make_console
from training.commands.session import claim_folder, load_data, run_training
from training.config import TrainConfig, list_presets, load_config, override_config
from training.errors import ConfigError

DEFAULT_PRESET = "best"


def train(
    preset: Annotated[
        str | None, typer.Argument(help=f"Preset, or path of a TOML file; see --list. Default: {DEFAULT_PRESET}.")
    ] = None,
    data: DataOption = None,
    minutes: Annotated[
        float | None, typer.Option(help="Time for the run; without a preset it chooses all settings.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run. Default: runs/PRESET, or runs/DATA.")] = None,
    overrides: SetOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    dry: Annotated[bool, typer.Option("--dry-run", help="Print what the run would take, and stop.")] = False,
    show_presets: Annotated[bool, typer.Option("--list", help="Print the presets and stop.")] = False,
) -> None:
    """Train a model and keep its best checkpoint in OUT/checkpoint. Ctrl-C saves; --resume goes on."""
    console = make_console()
    if show_presets:
        console.print(_preset_table(), soft_wrap=False)
        return
    folder = out or Path("runs") / _run_name(preset, data, minutes)
    config = _choose_config(preset, data, minutes, overrides or [], folder if resume else None, console)
    if dry:
        dry_run(config, load_data(config.data, data)[1], console)
        return
    claim_folder(folder, resume=resume)
    _train(config, data, folder, resume, console)


def _train(config: TrainConfig, data: Path | None, folder: Path, resume: bool, console: Console) -> None:
    from training.distributed import joined_ranks

    with joined_ranks(os.environ) as ranks:
        data_config, prepared = ranks.in_turn(lambda: load_data(config.data, data))
        config = config.replace(data=data_config)
        trainer = run_training(config, prepared, folder, console, resume=resume, ranks=ranks)
    if trainer.ending is None:
        console.print(f"interrupted and saved; go on with: minigpt train --resume --out {folder}")
        raise typer.Exit(130)
    console.print(
        f"ended by {trainer.ending}: best validation loss {trainer.state.best_loss:.4f}; curve in {folder}/curve.png\n"
        f'try it: minigpt sample {folder} "ROMEO:"    serve it: minigpt serve --model {folder}'
    )


def _choose_config(
    preset: str | None,
    data: Path | None,
    minutes: float | None,
    overrides: list[str],
    resumed: Path | None,
    console: Console,
) -> TrainConfig:
    if resumed is None and preset is None and minutes is not None:
        return plan_run(minutes, data, overrides, console)
    overrides = with_minutes(minutes, overrides)
    if resumed is not None:
        return _resumed_config(resumed, preset, overrides)
    return load_config(preset or DEFAULT_PRESET, overrides)


def _run_name(preset: str | None, data: Path | None, minutes: float | None) -> str:
    if preset is None and minutes is not None:
        return Path(data or "planned").stem
    return Path(preset or DEFAULT_PRESET).stem


def _resumed_config(folder: Path, preset: str | None, overrides: list[str]) -> TrainConfig:
    from training.resume import read_resume_state

    saved = read_resume_state(folder / "resume.safetensors").config
    config = override_config(saved, overrides)
    model = config.model
    if preset is not None:
        model = load_config(preset, overrides).model.replace(vocab_size=saved.model.vocab_size)
    if (model, config.data, config.optim.algorithm) != (saved.model, saved.data, saved.optim.algorithm):
        raise ConfigError(
            f"--resume cannot change [model], [data] or optim.algorithm of the run in {folder}: leave out the preset "
            "and --set, or start a new run with another --out"
        )
    return config


def _preset_table() -> Table:
    table = Table(title="Presets (minigpt train PRESET)")
    for column in ("preset", "what", "model", "budget"):
        table.add_column(column)
    for name, config in list_presets().items():
        shape = msgspec.to_builtins(config.model)
        family = shape.get("cell", shape["family"])
        model = f"{family} {shape['n_layer']} × {shape['n_embd']}, context {shape['context_length']}"
        given = {key: value for key, value in msgspec.to_builtins(config.budget).items() if value is not None}
        table.add_row(name, config.title, model, ", ".join(f"{value:,} {key}" for key, value in given.items()))
    return table
