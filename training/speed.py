"""How fast this machine trains: a few real steps, timed."""

import statistics
import time
from collections.abc import Callable

from training.costs import count_costs
from training.trainer import Trainer

NUM_STEPS = 3


def measure_step_s(trainer: Trainer, limit_s: float, clock: Callable[[], float] = time.monotonic) -> float:
    """Return the seconds of one step: the median of three after the first, or of what fits into `limit_s`.

    Args:
        trainer: Moves on by these steps; nothing is written.
        limit_s: No step is begun after so many seconds.
        clock: Seconds, monotonic.
    """
    started = last = clock()
    times: list[float] = []
    while len(times) <= NUM_STEPS and (not times or last - started < limit_s):
        trainer.train_step()
        times.append(clock() - last)
        last += times[-1]
    return statistics.median(times[1:] or times)


def flops_per_step(trainer: Trainer) -> int:
    """Return the floating-point operations of one step of `trainer`."""
    run, model = trainer.config.run, trainer.config.model
    num_tokens = run.batch_size * run.accumulate * model.context_length
    return num_tokens * count_costs(model).flops_per_token
