"""The pictures of a comparison: validation loss against what it cost."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
"""Told apart by people who see few colors too: Okabe and Ito 2008; a ninth line has the first color, dashed."""
LINE_STYLES = ("-", "--", ":")
VISIBLE_NATS = 1.2
"""Height of the picture over the lowest loss: the first steps fall from ln(vocabulary), what matters is below."""


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """What one training was at each evaluation."""

    name: str
    """Curves of one name, its seeds, look the same and stand in the legend once."""
    costs: list[float]
    losses: list[float]
    """Nats a character on the validation split."""


def plot_losses(curves: Sequence[Curve], axis: str, path: Path) -> None:
    """Draw losses against their costs as a PNG, the legend in the order of the best losses.

    Args:
        curves: At least one, with at least one point each.
        axis: What the costs are, for the axis.
        path: The file.
    """
    from matplotlib.figure import Figure  # half a second to import: only who draws pays
    from matplotlib.ticker import LogLocator, NullLocator

    names = sorted({curve.name for curve in curves}, key=lambda name: _best(curves, name))
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    for index, name in enumerate(names):
        color, style = COLORS[index % len(COLORS)], LINE_STYLES[index // len(COLORS) % len(LINE_STYLES)]
        label = f"{_best(curves, name):.3f}  {name}"
        for curve in (curve for curve in curves if curve.name == name):
            axes.plot(curve.costs, curve.losses, style, color=color, lw=1.6, marker="o", ms=3, label=label)
            label = "_" + label  # hidden: once in the legend is enough
    lowest = _best(curves, names[0])
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: _abbreviate(value))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(lowest - 0.05, min(lowest + VISIBLE_NATS, max(max(curve.losses) for curve in curves) + 0.05))
    axes.set(xlabel=axis, ylabel="validation loss, nats a character")
    axes.grid(alpha=0.3, lw=0.5)
    figure.legend(title="best", loc="outside right upper", frameon=False)
    aside = path.with_name(f".{path.name}.new")
    figure.savefig(aside, dpi=120, format="png")
    aside.replace(path)


def _abbreviate(value: float) -> str:
    for suffix, size in {"T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3}.items():
        if value >= size:
            return f"{value / size:g}{suffix}"
    return f"{value:g}"


def _best(curves: Sequence[Curve], name: str) -> float:
    return min(loss for curve in curves if curve.name == name for loss in curve.losses)
