"""`minigpt evaluate`: how well a checkpoint predicts the validation split of its corpus."""

from pathlib import Path
from typing import Annotated

import typer

from training.commands.options import DataOption, make_console
from training.errors import ConfigError


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder, or folder of a run.")],
    data: DataOption = None,
    estimate: Annotated[bool, typer.Option("--estimate", help="Also nanoGPT's estimate: 200 random batches.")] = False,
    window: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Read windows of so many tokens, each from nothing. Default: windows of the context; recurrent and "
            "other models of fixed state read on and on.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, fp32 or bf16: what matrix products are computed in.")] = "fp32",
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
    compute_dtype = choose_dtype(dtype, chosen)
    loaded = load_checkpoint(checkpoint, device=str(chosen))
    config = parse_config(loaded.manifest.train_config, str(checkpoint))
    prepared = encode_splits(config.data, load_corpus(config.data.corpus, data), loaded.tokenizer)
    longest = loaded.model.state_spec.max_context
    if window is not None and window > longest:
        raise ConfigError(f"--window {window}: the model looks back over {longest} tokens; give at most that")
    context = window or loaded.model.config.context_length
    result = evaluate_model(loaded.model, prepared, context, dtype=compute_dtype, carries=window is None)
    console = make_console()
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
            dtype=compute_dtype,
        )
        console.print(f"nanoGPT's estimate (200 random batches): {value:.4f} nats a token")
