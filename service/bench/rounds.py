"""Measuring in turn: what disturbs the machine disturbs every side, so the ratio of a round outlives a noisy minute."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import msgspec


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What one side did in one round."""

    tokens: int
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        """Speed of the whole run."""
        return self.tokens / self.seconds


A = TypeVar("A", bound=Run)
B = TypeVar("B", bound=Run)


class Ratio(NamedTuple):
    """How many times as fast one side is as the other: of each round, then summed up."""

    median: float
    lowest: float
    highest: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.lowest:.2f} – {self.highest:.2f})"


def measure_in_turn(
    ours: Callable[[], A], other: Callable[[], B] | None, rounds: int, *, warm_up: bool = True
) -> tuple[list[A], list[B]]:
    """Run the two sides A B A B …; return the runs of each, one a round.

    Args:
        ours: One side.
        other: The other; None: there is none, and its list stays empty.
        rounds: Times that each is measured.
        warm_up: Run each once before, untimed.
    """
    if warm_up:
        measure_in_turn(ours, other, 1, warm_up=False)
    our_runs, other_runs = [], []
    for _ in range(rounds):
        our_runs.append(ours())
        if other is not None:
            other_runs.append(other())
    return our_runs, other_runs


def compare(runs: Sequence[Run], others: Sequence[Run]) -> Ratio:
    """Return how many times as many tokens a second `runs` made as `others`, round by round."""
    ratios = [run.tokens_per_s / other.tokens_per_s for run, other in zip(runs, others, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def median_speed(runs: Iterable[Run]) -> float:
    """Return the median of the runs' tokens a second."""
    return statistics.median(run.tokens_per_s for run in runs)
