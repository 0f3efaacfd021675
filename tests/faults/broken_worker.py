"""A `minigpt worker` whose engine fails where a request's seed says so; otherwise it is the real one.

The seed chooses: `DEADLY` kills the process when the sequence gets its 200th token, in every life; `HANGING` hangs the
step in which a sequence that is new to the world gets it, so that another worker may finish it.
"""

import functools
import os
import signal
import time
from typing import Any

import msgspec

import service.commands.worker as command
import service.engine.loading as loading
from service.__main__ import main
from service.protocol import Claim

DEADLY, HANGING = 666, 667
FATAL_TOKEN = 200
MAX_STEP_S = 1.0


class BrokenEngine:
    """Hands everything on to `engine`, but for what it does to the process."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._left: dict[str, int] = {}
        self._seeds: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def add(self, claim: Claim) -> None:
        seed = claim.request.params.seed
        if seed == DEADLY or (seed == HANGING and not claim.token_ids):
            self._seeds[claim.request.id] = seed
            self._left[claim.request.id] = max(1, FATAL_TOKEN - len(claim.token_ids))
        self._engine.add(claim)

    def step(self) -> Any:
        outputs = self._engine.step()
        for output in outputs:
            if output.id in self._left:
                self._left[output.id] -= len(output.token_ids)
                if self._left[output.id] <= 0:
                    fail(self._seeds[output.id])
        return outputs


def fail(seed: int) -> None:
    """Do what such a request does."""
    if seed == DEADLY:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(1e6)


if __name__ == "__main__":
    load, worker = loading.load_engine, command.Worker
    loading.load_engine = lambda *args: BrokenEngine(load(*args))  # type: ignore[assignment]

    @functools.wraps(worker)
    def make(queue: Any, engine: Any, models: Any, settings: Any, **options: Any) -> Any:
        return worker(queue, engine, models, msgspec.structs.replace(settings, max_step_s=MAX_STEP_S), **options)

    command.Worker = make  # type: ignore[misc,assignment]
    main()
