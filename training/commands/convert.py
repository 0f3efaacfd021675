"""`minigpt export` and `minigpt import`: checkpoints for other programs, and theirs for minigpt."""

from pathlib import Path
from typing import Annotated

import typer

from training.commands.options import make_console
from training.exchange.formats import ExportFormat, GgufType, ImportFormat


def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder, or folder of a run.")],
    to: Annotated[ExportFormat, typer.Option(help="gguf: llama.cpp's format.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to.")],
    dtype: Annotated[GgufType, typer.Option(help="How matrices are stored.")] = "bf16",
) -> None:
    """Write a checkpoint of the Qwen3 layout for another program. For transformers and vLLM it needs no export."""
    del to  # there is one so far
    from training.exchange.gguf_file import write_gguf

    write_gguf(checkpoint, out, dtype)
    make_console().print(f"{out}: {out.stat().st_size / 2**20:.1f} MiB    try it: llama-cli -m {out} -no-cnv")


def import_(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Model folder of Hugging Face's.")],
    source: Annotated[ImportFormat, typer.Option("--from", help="hf: GPT-2, Llama and Qwen3 as transformers saves.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where to; must not exist.")],
    context: Annotated[
        int | None, typer.Option(min=1, help="Positions to keep: fewer take less memory to serve. Default: all.")
    ] = None,
) -> None:
    """Make a checkpoint of a model that another program has trained."""
    del source  # there is one so far
    from training.exchange.hugging_face import import_hf

    manifest = import_hf(folder, out, context_length=context)
    make_console().print(
        f"{manifest.num_parameters / 1e6:.2f}M parameters · {manifest.vocab_size:,} tokens · "
        f"context {manifest.context_length:,}    serve it: minigpt serve --model {out}"
    )
