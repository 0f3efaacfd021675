"""A `minigpt worker` whose steps take as long as a test wants, so that streams last on any machine; else the real one.

A step begins after as many seconds as stand in the file that `PACE` names: a test that has streams where it wants them
lets them crawl, for as long as it takes to break something. No step counts as hung before `MAX_STEP_S`: one that a test
has stopped, or that is starved, is none.
"""

import os
import time
from pathlib import Path
from typing import Any

import msgspec

import service.commands.worker as command
import service.engine.loading as loading
from service.__main__ import main
from service.config import WorkerSettings
from service.worker.worker import Worker
from tests.fleet.fleet import PACE

MAX_STEP_S = 1e5


class PacedEngine:
    """Hands everything on to `engine`, in no hurry."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._pace = Path(os.environ[PACE])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def step(self) -> Any:
        time.sleep(float(self._pace.read_text()))
        return self._engine.step()


def run_worker(wrapper: type[PacedEngine], **options: Any) -> None:
    """Run the command line; every engine is in a `wrapper`, every worker has these `options`."""
    load = loading.load_engine
    loading.load_engine = lambda *args: wrapper(load(*args))  # type: ignore[assignment]

    def make(queue: Any, engine: Any, models: Any, settings: WorkerSettings, **others: Any) -> Worker:
        patient = msgspec.structs.replace(settings, max_step_s=MAX_STEP_S)
        return Worker(queue, engine, models, patient, **others, **options)

    command.Worker = make  # type: ignore[misc,assignment]
    main()


if __name__ == "__main__":
    run_worker(PacedEngine)
