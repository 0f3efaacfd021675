"""`minigpt sample`: text written by a checkpoint, without a server."""

import sys
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer


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
