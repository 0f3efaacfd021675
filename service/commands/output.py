"""How a command shows what it found: a table for people, JSON for programs."""

from collections.abc import Iterable, Sequence

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.table import Table

PIPE_WIDTH = 200
"""Columns where the output is no terminal."""


def show_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; what does not fit in a cell goes on below, so that ids can be copied whole."""
    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(str, row))
    console = Console(markup=False, highlight=False)
    (console if console.is_terminal else Console(markup=False, highlight=False, width=PIPE_WIDTH)).print(table)


def show_json(value: object) -> None:
    """Print one line of JSON."""
    typer.echo(msgspec.json.encode(value))
