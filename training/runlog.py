"""What a run writes for people: a JSON line for each event, and a picture of its curves."""

from itertools import accumulate
from pathlib import Path
from typing import Any

import msgspec

from training.errors import TrainingError

VISIBLE_NATS = 1.5
"""Height of the picture over the lowest loss."""


class RunLog:
    """Append events to a JSON-lines file.

    Args:
        path: The file; a line that a crash cut short is dropped, and so is, on resume, what came after `from_step`.
        from_step: Steps made by the run that is resumed; None: a new run.
    """

    def __init__(self, path: Path, from_step: int | None = None) -> None:
        self._path = path
        self.events: list[dict[str, Any]] = []
        if from_step is not None and path.exists():
            self.events = [event for event in read_events(path) if event.get("step", 0) <= from_step]
        lines = [msgspec.json.encode(event) for event in self.events]
        path.write_bytes(b"".join(line + b"\n" for line in lines))

    def write(self, event: msgspec.Struct) -> None:
        """Append one event.

        Raises:
            TrainingError: no room, or no permission.
        """
        self.events.append(msgspec.to_builtins(event))
        try:
            with self._path.open("ab") as file:
                file.write(msgspec.json.encode(self.events[-1]) + b"\n")
        except OSError as error:
            raise TrainingError(
                f"{self._path}: cannot write: {error.strerror}: make room, then go on with --resume"
            ) from error


def read_events(path: Path) -> list[dict[str, Any]]:
    """Return the events of a log, without a last line that was cut short."""
    events = []
    for line in path.read_bytes().splitlines():
        try:
            events.append(msgspec.json.decode(line))
        except msgspec.DecodeError:
            break
    return events


def plot_curves(events: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draw training and validation loss against tokens, with the best evaluation marked, as a PNG.

    The training loss is smoothed, over its own jumps in faint gray.
    """
    from matplotlib.figure import Figure  # half a second to import: only who draws pays

    steps = [event for event in events if event["event"] == "step"]
    evaluations = [event for event in events if event["event"] == "evaluation"]
    tokens, losses = _millions(steps), [event["loss"] for event in steps]
    smooth = _smooth(losses)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(tokens, losses, lw=0.6, color="0.85")
    axes.plot(tokens, smooth, lw=1.4, color="0.4", label="training, smoothed")
    if evaluations:
        places, validation = _millions(evaluations), [event["loss"] for event in evaluations]
        best = min(range(len(validation)), key=validation.__getitem__)
        axes.plot(places, validation, marker="o", ms=3, color="tab:blue", label="validation, whole split")
        label = f"best: {validation[best]:.4f} at step {evaluations[best]['step']}"
        axes.plot(places[best], validation[best], "o", ms=8, mfc="none", mew=1.6, color="tab:red", label=label)
        # The first steps fall from ln(vocabulary): what matters is below.
        lowest, highest = min([*validation, *smooth]), max([*validation, *smooth[len(smooth) // 8 :]])
        axes.set_ylim(lowest - 0.05, min(highest, lowest + VISIBLE_NATS) + 0.05)
    axes.set(xlabel="million tokens", ylabel="loss, nats a token", title=title, xlim=(0, None))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    aside = path.with_name(f".{path.name}.new")
    figure.savefig(aside, dpi=120, format="png")
    aside.replace(path)


def _millions(events: list[dict[str, Any]]) -> list[float]:
    return [event["tokens"] / 1e6 for event in events]


def _smooth(losses: list[float]) -> list[float]:
    """Return for each loss the mean of those around it, of as many as are one fiftieth of all."""
    reach = len(losses) // 100
    sums = list(accumulate(losses, initial=0.0))
    bounds = [(max(0, at - reach), min(len(losses), at + reach + 1)) for at in range(len(losses))]
    return [(sums[last] - sums[first]) / (last - first) for first, last in bounds]
