"""`minigpt evaluate` and `minigpt sample`: what a checkpoint can do, without a server."""

import sys
from itertools import islice
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
    longest = loaded.model.state_spec.max_context
    if window is not None and window > longest:
        raise ConfigError(f"--window {window}: the model looks back over {longest} tokens; give at most that")
    context = window or loaded.model.config.context_length
    result = evaluate_model(loaded.model, prepared, context, dtype=arithmetic, carries=window is None)
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
            dtype=arithmetic,
        )
        console.print(f"nanoGPT's estimate (200 random batches): {value:.4f} nats a token")


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
