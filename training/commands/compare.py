"""`minigpt compare`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console

from training.commands.options import DataOption, SetOption, make_console
from training.commands.session import claim_folder, load_data, require_one_process, run_training
from training.compare import Budget, Contestant, Result, list_contestants, read_result, table_of
from training.config import TrainConfig
from training.errors import TrainingError
from training.plots import Curve, plot_losses
from training.runlog import read_events

AXES = {"tokens": "tokens", "seconds": "seconds", "flops": "floating-point operations"}
"""What the losses are drawn against: name in the file, name at the axis."""


def compare(
    presets: Annotated[list[str], typer.Argument(help="Presets, or paths of TOML files; see minigpt train --list.")],
    minutes: Annotated[float | None, typer.Option(help="Equal time for each.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Equal text for each.")] = None,
    flops: Annotated[float | None, typer.Option(help="Equal floating-point operations for each, e.g. 1e13.")] = None,
    optimizers: Annotated[str, typer.Option(help="Compare these too: adamw,muon,sgd,…")] = "",
    activations: Annotated[str, typer.Option(help="Compare these too: gelu,relu2,swiglu,…")] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Train each with so many seeds.")] = 1,
    data: DataOption = None,
    out: Annotated[Path, typer.Option(help="Folder of the comparison: each run's folder, table, pictures.")] = Path(
        "runs/compare"
    ),
    overrides: SetOption = None,
) -> None:
    """Train presets under one budget and set them side by side. What is finished is not trained again."""
    require_one_process("minigpt compare")
    budget = Budget(minutes=minutes, tokens=tokens, flops=flops)
    contestants = list_contestants(
        presets,
        optimizers=_names(optimizers),
        activations=_names(activations),
        overrides=overrides or [],
        num_seeds=seeds,
    )
    console = make_console()
    ready = [_make_ready(contestant, budget, data, out) for contestant in contestants]
    results = []
    for number, contestant in enumerate(ready, 1):
        console.print(f"{number} of {len(ready)}: {contestant.folder_name}")
        results.append(_train(contestant, data, out / contestant.folder_name, console))
        _write(budget, results, ready[:number], out)
    console.print(table_of(results) + f"\ntable, pictures and comparison.json in {out}")


def _names(listed: str) -> list[str]:
    return [name.strip() for name in listed.split(",") if name.strip()]


def _make_ready(contestant: Contestant, budget: Budget, data: Path | None, out: Path) -> Contestant:
    """Fill in what the text decides, and refuse a folder that holds another run."""
    data_config, prepared = load_data(contestant.config.data, data)
    model = contestant.config.model.replace(vocab_size=prepared.tokenizer.vocab_size)
    config = contestant.config.replace(data=data_config, model=model, budget=budget.of(model))
    folder = out / contestant.folder_name
    saved = _saved_config(folder)
    if saved and _what_counts(saved) != _what_counts(config):
        raise TrainingError(f"{folder}: a run with other settings is there already; choose another --out")
    return msgspec.structs.replace(contestant, config=config)


def _train(contestant: Contestant, data: Path | None, folder: Path, console: Console) -> Result:
    if result := read_result(contestant, folder):
        return result
    claim_folder(folder, resume=True)
    _, prepared = load_data(contestant.config.data, data)
    _forget_compiled(contestant.config)
    run_training(contestant.config, prepared, folder, console, resume=_saved_config(folder) is not None)
    result = read_result(contestant, folder)
    if result is None:
        console.print("interrupted and saved; the same command goes on")
        raise typer.Exit(130)
    return result


def _saved_config(folder: Path) -> TrainConfig | None:
    from training.resume import read_resume_state

    file = folder / "resume.safetensors"
    return read_resume_state(file).config if file.exists() else None


def _what_counts(config: TrainConfig) -> tuple[object, ...]:
    """Return the settings that make it another run; batches may have been cut smaller for want of memory."""
    return config.model, config.data, config.optim, config.budget, config.run.seed


def _forget_compiled(config: TrainConfig) -> None:
    """Let each model be compiled as if it were the first: for shapes that change, the compiler makes slower code."""
    if config.run.compile:
        import torch

        torch.compiler.reset()


def _write(budget: Budget, results: Sequence[Result], contestants: Sequence[Contestant], out: Path) -> None:
    _replace(out / "table.md", table_of(results).encode())
    report = msgspec.json.format(msgspec.json.encode({"budget": budget, "results": results}))
    _replace(out / "comparison.json", report + b"\n")
    for name, axis in AXES.items():
        curves = [_curve(c, r, name, out) for c, r in zip(contestants, results, strict=True)]
        plot_losses(curves, axis, out / f"loss-{name}.png")


def _replace(file: Path, content: bytes) -> None:
    aside = file.with_name(f".{file.name}.new")
    aside.write_bytes(content)
    aside.replace(file)


def _curve(contestant: Contestant, result: Result, axis: str, out: Path) -> Curve:
    events = read_events(out / contestant.folder_name / "log.jsonl")
    evaluations = [event for event in events if event["event"] == "evaluation"]
    return Curve(
        name=contestant.name,
        costs=[_cost(event, axis, result.flops / result.tokens) for event in evaluations],
        losses=[event["nats_per_char"] for event in evaluations],
    )


def _cost(event: dict[str, Any], axis: str, flops_per_token: float) -> float:
    if axis == "seconds":
        return float(event["elapsed_s"])
    return float(event["tokens"]) * (flops_per_token if axis == "flops" else 1.0)
