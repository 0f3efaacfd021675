"""A `minigpt worker` whose steps take as long as a test wants, so that streams last on any machine; else the real one.

A step begins after as many seconds as stand in the file that `PACE` names: a test that has streams where it wants them
lets them crawl, for as long as it takes to break something.
"""

import os
import time
from pathlib import Path
from typing import Any

import service.engine.loading as loading
from service.__main__ import main
from tests.fleet.fleet import PACE


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


def wrap_engines(wrapper: type[PacedEngine]) -> None:
    """Let every engine that is loaded from now on be in a `wrapper`."""
    load = loading.load_engine
    loading.load_engine = lambda *args: wrapper(load(*args))  # type: ignore[assignment]


if __name__ == "__main__":
    wrap_engines(PacedEngine)
    main()
