"""A bar for every pass over a long text."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from training.data.corpus import Progress as Tell

LONG_BYTES = 2**25
"""A shorter text is read before anybody looks."""


@contextmanager
def reading_bar(console: Console) -> Iterator[Tell]:
    """Show what is done to a text, and how far it is, until the end of the context; without a terminal nothing."""
    columns = (BarColumn(), TextColumn("{task.percentage:>3.0f}%  {task.description}"), TransferSpeedColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        tasks = dict[str, TaskID]()

        def tell(what: str, done_bytes: int, total_bytes: int) -> None:
            if total_bytes < LONG_BYTES:
                return
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total_bytes)
            bar.update(tasks[what], completed=done_bytes)

        yield tell
