"""The commands that make and examine checkpoints: train, evaluate, sample. torch is imported when one runs."""

import signal
import sys
import types
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from training.command_line import run
from training.config import TrainConfig, list_presets, load_config, override_config
from training.errors import ConfigError, TrainingError

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Train a mini-GPT on your own text.")

DataOption = Annotated[
    Path | None, typer.Option(help="UTF-8 file or folder to use as the corpus (or a local copy of the preset's).")
]
DEFAULT_PRESET = "shakespeare"


@app.command()
def train(
    preset: Annotated[str, typer.Argument(help="Preset, or path of a TOML file; see --list.")] = DEFAULT_PRESET,
    data: DataOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run. Default: runs/PRESET.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Change one setting; repeatable.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    show_presets: Annotated[bool, typer.Option("--list", help="Print the presets and stop.")] = False,
) -> None:
    """Train a model and keep its best checkpoint in OUT/checkpoint. Ctrl-C saves; --resume goes on."""
    console = _console()
    if show_presets:
        console.print(_preset_table(), soft_wrap=False)
        return
    folder = out or Path("runs") / Path(preset).stem
    _run(_train_config(preset, overrides or [], folder if resume else None), data, folder, resume, console)


def _train_config(preset: str, overrides: list[str], resumed: Path | None) -> TrainConfig:
    if resumed is None:
        return load_config(preset, overrides)
    from training.resume import read_resume_state

    saved = read_resume_state(resumed / "resume.safetensors").config
    config = override_config(saved, overrides)
    if (config.model, config.data, config.optim.algorithm) != (saved.model, saved.data, saved.optim.algorithm):
        raise ConfigError(
            "--resume cannot change [model], [data] or optim.algorithm; start a new run with another --out"
        )
    return config


def _run(config: TrainConfig, data: Path | None, folder: Path, resume: bool, console: Console) -> None:
    from training.data.corpus import default_cache_dir, load_corpus
    from training.data.prepare import prepare
    from training.display import Display
    from training.runlog import RunLog, plot_curves
    from training.trainer import Trainer

    _claim_folder(folder, resume)
    corpus = load_corpus(config.data.corpus, data)
    prepared = prepare(config.data, corpus, default_cache_dir())
    config = config.replace(data=config.data.replace(corpus=corpus.name))
    trainer = Trainer(config, prepared, folder, resume=resume, notice=console.print)
    num_parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    console.print(
        f"{corpus.name}: {len(prepared.train):,} training tokens, {len(prepared.validation):,} held out · "
        f"{num_parameters / 1e6:.2f}M parameters · {trainer.device}, {str(trainer.dtype).removeprefix('torch.')}"
    )
    log = RunLog(folder / "log.jsonl", trainer.state.step if resume else None)
    interrupted = _catch_interrupts()
    with Display(console) as display:
        for event in trainer.run():
            log.write(event)
            display.show(event)
            if interrupted():
                break
    plot_curves(log.events, folder / "curve.png", f"{folder.name}: {num_parameters / 1e6:.2f}M parameters")
    if trainer.ending is None:
        trainer.save()
        console.print(f"interrupted and saved; go on with: minigpt train --resume --out {folder}")
        raise typer.Exit(130)
    console.print(
        f"ended by {trainer.ending}: best validation loss {trainer.state.best_loss:.4f}; curve in {folder}/curve.png\n"
        f'try it: minigpt sample {folder} "ROMEO:"    serve it: minigpt serve --model {folder}'
    )


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder, or folder of a run.")],
    data: DataOption = None,
    estimate: Annotated[bool, typer.Option("--estimate", help="Also nanoGPT's estimate: 200 random batches.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, fp32 or bf16: arithmetic of the matrix products.")] = "fp32",
) -> None:
    """Print the loss of a checkpoint over the whole validation split of its corpus."""
    from training.checkpoint import load_checkpoint
    from training.config import parse_config
    from training.data.corpus import load_corpus
    from training.data.prepare import encode_splits
    from training.evaluate import evaluate as evaluate_model
    from training.evaluate import random_estimate
    from training.models.devices import choose_device, choose_dtype

    chosen = choose_device(device)
    arithmetic = choose_dtype(dtype, chosen)
    loaded = load_checkpoint(checkpoint, device=str(chosen))
    config = parse_config(loaded.manifest.train_config, str(checkpoint))
    prepared = encode_splits(config.data, load_corpus(config.data.corpus, data), loaded.tokenizer)
    context = loaded.model.config.context_length
    result = evaluate_model(loaded.model, prepared, context, dtype=arithmetic)
    console = _console()
    console.print(
        f"whole validation split: {result.loss:.4f} nats a token, {result.nats_per_char:.4f} nats a "
        f"character, {result.bits_per_byte:.4f} bits a byte"
    )
    if estimate:
        value = random_estimate(
            loaded.model,
            prepared.validation,
            context,
            batch_size=config.run.batch_size,
            seed=config.run.seed,
            dtype=arithmetic,
        )
        console.print(f"nanoGPT's estimate (200 random batches): {value:.4f} nats a token")


@app.command()
def sample(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder, or folder of a run.")],
    prompt: Annotated[str, typer.Argument(help="Text to go on from.")] = "\n",
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens to write.")] = 300,
    temperature: Annotated[float, typer.Option(min=0, help="0: the likeliest token each time.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(min=1, help="Draw from the likeliest k only.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same text.")] = 1337,
) -> None:
    """Write text with a checkpoint, token by token, without a server (and without its speed)."""
    import torch

    from training.checkpoint import load_checkpoint
    from training.sample import sample as draw

    loaded = load_checkpoint(checkpoint)
    tokenizer = loaded.tokenizer
    ids = tokenizer.encode(prompt) or [tokenizer.end_of_text_id]
    drawn = draw(
        loaded.model,
        ids,
        temperature=temperature,
        top_k=top_k,
        banned=tokenizer.special_ids - {tokenizer.end_of_text_id},
        generator=torch.Generator().manual_seed(seed),
    )
    text = []
    for token_id in islice(drawn, max_tokens):
        if token_id == tokenizer.end_of_text_id:
            break
        text.append(token_id)
    sys.stdout.write(prompt + tokenizer.decode(text) + "\n")


def _console() -> Console:
    return Console(soft_wrap=True)  # lines stay whole where there is no terminal


def _preset_table() -> Table:
    table = Table(title="Presets (minigpt train PRESET)")
    for column in ("preset", "what", "model", "budget"):
        table.add_column(column)
    for name, config in list_presets().items():
        model = f"{config.model.n_layer} × {config.model.n_embd}, context {config.model.context_length}"
        given = {key: value for key, value in msgspec.to_builtins(config.budget).items() if value is not None}
        table.add_row(name, config.title, model, ", ".join(f"{value:,} {key}" for key, value in given.items()))
    return table


def _claim_folder(folder: Path, resume: bool) -> None:
    if not resume and (folder / "log.jsonl").exists():
        raise TrainingError(f"{folder}: a run is there already; go on with --resume, or choose another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise TrainingError(f"{folder}: cannot write there: {error.strerror}; choose another --out") from error


def _catch_interrupts() -> Callable[[], bool]:
    """Make Ctrl-C (and SIGTERM) wait for the end of a step: half a step cannot be saved. The second one kills."""
    seen: list[int] = []

    def remember(number: int, _frame: types.FrameType | None) -> None:
        seen.append(number)
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, remember)
    return lambda: bool(seen)


def main() -> None:
    """Run the command that was typed."""
    run(app)


if __name__ == "__main__":
    main()
