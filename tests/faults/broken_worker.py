"""A `minigpt worker` whose engine fails where a request's seed says so; otherwise it is a paced one.

The seed chooses what happens when the sequence gets its 200th token: `DEADLY` kills the process, in every life;
`HANGING` hangs the step of a sequence that is new to the world, so that another worker may finish it, and the worker's
clock leaps: no step that is only slow is taken for hung. With `NOT_FINITE` its logits are NaN from there on.
"""

import os
import signal
import time
from typing import Any

from service.protocol import Claim
from tests.faults.paced_worker import MAX_STEP_S, PacedEngine, run_worker

DEADLY, HANGING, NOT_FINITE = 666, 667, 668
FATAL_TOKEN = 200
LEAP_S = 10 * MAX_STEP_S


class BrokenEngine(PacedEngine):
    """Hands everything on to `engine`, but for what it does to the process and to logits."""

    def __init__(self, engine: Any) -> None:
        super().__init__(engine)
        self._left: dict[str, int] = {}
        self._seeds: dict[str, int] = {}
        self._run = engine.backend.runner.run
        engine.backend = engine.backend._replace(runner=self)

    def add(self, claim: Claim) -> None:
        seed = claim.request.params.seed
        if seed in (DEADLY, NOT_FINITE) or (seed == HANGING and not claim.token_ids):
            self._seeds[claim.request.id] = seed
            self._left[claim.request.id] = max(1, FATAL_TOKEN - len(claim.token_ids))
        self._engine.add(claim)

    def step(self) -> Any:
        outputs = super().step()
        for output in outputs:
            if output.id in self._left:
                self._left[output.id] -= len(output.token_ids)
                if self._left[output.id] <= 0:
                    fail(self._seeds[output.id])
        return outputs

    def run(self, chunks: Any) -> Any:
        """Do what the engine's runner does; spoil what is to be spoilt."""
        logits = self._run(chunks).clone()
        rows = [chunk.sequence.id for chunk in chunks for _ in range(chunk.num_logits)]
        for row, id_ in enumerate(rows):
            if self._seeds.get(id_) == NOT_FINITE and self._left[id_] <= 1:
                logits[row] = float("nan")
        return logits


def fail(seed: int) -> None:
    """Do what such a request does to the process."""
    if seed == DEADLY:
        os.kill(os.getpid(), signal.SIGKILL)
    if seed == HANGING:
        Clock.leapt_s = LEAP_S
        time.sleep(1e6)


class Clock:
    """Of the worker, whose lease is the queue's to measure."""

    leapt_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.leapt_s


if __name__ == "__main__":
    run_worker(BrokenEngine, clock=Clock())
