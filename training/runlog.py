"""What a run writes for people: a JSON line for each event, and a picture of its curves."""

from pathlib import Path
from typing import Any

import msgspec


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
        """Append one event."""
        self.events.append(msgspec.to_builtins(event))
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(self.events[-1]) + b"\n")


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
    """Draw training and validation loss against tokens, with the best evaluation marked, as a PNG."""
    from matplotlib.figure import Figure  # half a second to import: only who draws pays

    steps = [event for event in events if event["event"] == "step"]
    evaluations = [event for event in events if event["event"] == "evaluation"]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([e["tokens"] / 1e6 for e in steps], [e["loss"] for e in steps], lw=0.8, color="0.6", label="training")
    if evaluations:
        xs, ys = [e["tokens"] / 1e6 for e in evaluations], [e["loss"] for e in evaluations]
        best = min(range(len(ys)), key=ys.__getitem__)
        axes.plot(xs, ys, marker="o", ms=4, color="tab:blue", label="validation (whole split)")
        axes.annotate(f"{ys[best]:.4f}", (xs[best], ys[best]), textcoords="offset points", xytext=(0, 10), ha="center")
        # The first steps fall from ln(vocabulary): what matters is below.
        axes.set_ylim(min([*ys, *(e["loss"] for e in steps)]) - 0.1, max(ys[0], ys[best] + 0.8) + 0.1)
    axes.set(xlabel="million tokens", ylabel="loss, nats a token", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    aside = path.with_name(f".{path.name}.new")
    figure.savefig(aside, dpi=120, format="png")
    aside.replace(path)
