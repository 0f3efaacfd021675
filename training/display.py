"""What a person sees of a run: a live line, a table that grows by a row an evaluation, a sample of the text."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from training.trainer import EvaluationEvent, Event, StepEvent


class Display:
    """Show the events of a run; a context manager.

    Args:
        console: Where to; without a terminal only the evaluations are printed.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%  {task.description}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=1.0)
        self._loss: float | None = None
        self._first: StepEvent | None = None
        self._best = ""

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, event: Event) -> None:
        """Take in one event."""
        if isinstance(event, StepEvent):
            self._show_step(event)
        else:
            self._show_evaluation(event)

    def _show_step(self, event: StepEvent) -> None:
        self._first = self._first or event
        self._loss = event.loss if self._loss is None else 0.95 * self._loss + 0.05 * event.loss
        rate, left_s = self._pace(event)
        text = f"step {event.step}  loss {self._loss:.3f}  {rate:,.0f} tokens/s  {_duration(left_s)} left{self._best}"
        self._progress.update(self._task, completed=min(1.0, event.progress), description=text)

    def _show_evaluation(self, event: EvaluationEvent) -> None:
        training = f"training {self._loss:.4f}  " if self._loss is not None else ""
        mark = "  best so far" if event.is_best else ""
        if event.is_best:
            self._best = f"  validation {event.loss:.4f}"
        self._console.print(
            Text(
                f"step {event.step:>6}  {event.tokens / 1e6:7.2f}M tokens  {_duration(event.elapsed_s):>7}  "
                f"{training}validation {event.loss:.4f}{mark}"
            )
        )
        if event.random_estimate is not None:
            self._console.print(f"validation as nanoGPT estimates it (200 random batches): {event.random_estimate:.4f}")
        if event.text:
            self._console.print(Text(event.text, style="dim"))

    def _pace(self, event: StepEvent) -> tuple[float, float]:
        """Return tokens a second and seconds left, both since the first step that this display saw."""
        first = self._first or event
        seconds, progress = event.elapsed_s - first.elapsed_s, event.progress - first.progress
        if seconds <= 0 or progress <= 0:
            return 0.0, 0.0
        return (event.tokens - first.tokens) / seconds, max(0.0, 1 - event.progress) * seconds / progress


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
