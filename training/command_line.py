"""How a command of ours ends when something is wrong with the user's input."""

import sys

import typer

from training.errors import MinigptError


def run(app: typer.Typer) -> None:
    """Run the commands of `app`; a `MinigptError` is one line on standard error and exit status 2."""
    try:
        app()
    except MinigptError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
