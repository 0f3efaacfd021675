"""Measuring in turn: what disturbs the machine disturbs every side, so the ratio of a round outlives a noisy minute."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What one side did in one round."""

    tokens: int
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        """Speed of the whole run."""
        return self.tokens / self.seconds


L = TypeVar("L")
R = TypeVar("R", bound=Run)


@dataclass
class Side(Generic[L, R]):
    """One of those that are measured in turn."""

    run: Callable[[L], R]
    """Bears a load once."""
    runs: list[R] = field(default_factory=list)
    """What it measured, a run a round."""


class Ratio(NamedTuple):
    """How many times as fast one side is as the other: of each round, then summed up."""

    median: float
    lowest: float
    highest: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.lowest:.2f} – {self.highest:.2f})"


def measure_in_turn(sides: Sequence[Side[L, Any]], loads: Sequence[L], *, warm_up: bool = True) -> None:
    """Give each load to every side, A B A B …; each keeps its runs.

    Args:
        sides: Who is measured.
        loads: What they bear, a round each.
        warm_up: Whether the first round is not kept.
    """
    for number, load in enumerate(loads):
        for side in sides:
            run = side.run(load)
            if number or not warm_up:
                side.runs.append(run)


def compare(runs: Sequence[Run], others: Sequence[Run]) -> Ratio:
    """Return how many times as many tokens a second `runs` made as `others`, round by round."""
    ratios = [run.tokens_per_s / other.tokens_per_s for run, other in zip(runs, others, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def median_speed(runs: Iterable[Run]) -> float:
    """Return the median of the runs' tokens a second."""
    return statistics.median(run.tokens_per_s for run in runs)
