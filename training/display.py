"""What a person sees of a run: a live line, a table that grows by a row an evaluation, a sample of the text."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from training.events import EndEvent, EvaluationEvent, Event, StepEvent
from training.overfitting import OverfittingWatch


class Display:
    """Show the events of a run; a context manager.

    Args:
        console: Where to; without a terminal only the evaluations and the end are printed.
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
        self._watch = OverfittingWatch()
        self._first: StepEvent | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, event: Event) -> None:
        """Take in one event."""
        match event:
            case StepEvent():
                self._show_step(event)
            case EvaluationEvent():
                self._show_evaluation(event)
            case EndEvent():
                self._print(_describe_end(event))

    def _show_step(self, event: StepEvent) -> None:
        self._first = self._first or event
        self._watch.step(event)
        rate, left_s = self._pace(event)
        best = self._watch.best
        known = f"  validation {best.loss:.3f}" if best else ""
        warning = "  overfitting" if self._watch.since is not None else ""
        text = (
            f"step {event.step}  loss {self._watch.training_loss:.3f}{known}{warning}  "
            f"{rate:,.0f} tokens/s  {_duration(left_s)} left"
        )
        self._progress.update(self._task, completed=min(1.0, event.progress), description=text)

    def _show_evaluation(self, event: EvaluationEvent) -> None:
        watch = self._watch
        watch.evaluation(event)
        training = watch.training_loss
        parts = [
            f"step {event.step:>6}",
            f"{event.tokens / 1e6:7.2f}M tokens",
            f"{_duration(event.elapsed_s):>7}",
            *([f"training {training:.4f}"] if training is not None else []),
            f"validation {event.loss:.4f}",
            *([f"({event.raw_loss:.4f} / temperature {event.temperature:.3f})"] if event.temperature != 1.0 else []),
            *(["best so far"] if event.is_best else []),
        ]
        self._print("  ".join(parts))
        if watch.since is not None and watch.best is not None:
            self._print(f"overfitting since step {watch.since}: the best checkpoint (step {watch.best.step}) is kept")
        if event.random_estimate is not None:
            self._print(f"validation as nanoGPT estimates it (200 random batches): {event.random_estimate:.4f}")
        if event.text:
            self._console.print(Text(event.text, style="dim"))

    def _print(self, line: str) -> None:
        self._console.print(Text(line))

    def _pace(self, event: StepEvent) -> tuple[float, float]:
        """Return tokens a second and seconds left, both since the first step that this display saw."""
        first = self._first or event
        seconds, progress = event.elapsed_s - first.elapsed_s, event.progress - first.progress
        if seconds <= 0 or progress <= 0:
            return 0.0, 0.0
        return (event.tokens - first.tokens) / seconds, max(0.0, 1 - event.progress) * seconds / progress


def _describe_end(event: EndEvent) -> str:
    seconds = max(event.elapsed_s, 1e-9)
    return (
        f"{event.tokens / 1e6:.2f}M tokens in {_duration(event.elapsed_s)}: {event.flops:.2g} FLOPs, "
        f"{event.gflops_per_s:,.0f} GFLOP/s, {event.peak_memory_bytes / 1e6:,.0f} MB at most; "
        f"{100 * event.evaluation_s / seconds:.1f} % of the time evaluating, "
        f"{100 * event.data_s / seconds:.1f} % waiting for data"
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
