"""What several commands share: options, and where they print."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

DataOption = Annotated[
    Path | None, typer.Option(help="UTF-8 file or folder to use as the corpus (or a local copy of the preset's).")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Change one setting; repeatable.")
]


def make_console() -> Console:
    """Return where a command prints: lines stay whole without a terminal; of torchrun's processes one speaks."""
    return Console(soft_wrap=True, quiet=int(os.environ.get("RANK", 0)) > 0)
