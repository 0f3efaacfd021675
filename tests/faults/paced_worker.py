"""A `minigpt worker` whose steps take a moment longer, so that streams last on any machine; else it is the real one."""

import time
from typing import Any

import service.engine.loading as loading
from service.__main__ import main

PACE_S = 0.001


class PacedEngine:
    """Hands everything on to `engine`, in no hurry."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def step(self) -> Any:
        time.sleep(PACE_S)
        return self._engine.step()


def wrap_engines(wrapper: type[PacedEngine]) -> None:
    """Let every engine that is loaded from now on be in a `wrapper`."""
    load = loading.load_engine
    loading.load_engine = lambda *args: wrapper(load(*args))  # type: ignore[assignment]


if __name__ == "__main__":
    wrap_engines(PacedEngine)
    main()
