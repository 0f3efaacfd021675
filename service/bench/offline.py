"""The engine with nothing around it: requests in, tokens out, each step timed."""

import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from service.bench.rounds import Run
from service.config import EngineSettings
from service.engine.engine import Engine
from service.engine.interface import StepOutput
from service.engine.loading import load_engine
from service.errors import SettingError
from service.protocol import Claim, Request


class EngineRun(Run, frozen=True, kw_only=True):
    """Some requests computed."""

    step_s: list[float]
    """Seconds of each step that only decoded."""
    kv_cache_peak_bytes: int = 0
    """Most that keys and values held at once; 0: not known."""


class OfflineEngine:
    """An engine that is driven here.

    Args:
        checkpoint: Folder of the model.
        settings: Of the engine.

    Raises:
        CheckpointError: the folder is refused.
        SettingError: what is demanded is not to be had here, or the memory does not hold one full context.
    """

    def __init__(self, checkpoint: Path, settings: EngineSettings) -> None:
        self._engine = load_engine(checkpoint, settings)
        self.info = self._engine.info

    def run(self, requests: Sequence[Request], streams: int) -> EngineRun:
        """Compute `requests`, `streams` of them at once.

        Raises:
            SettingError: one of them cannot be computed.
        """
        waiting = deque(requests)
        num_running = num_tokens = 0
        peak = 0.0
        step_s = []
        began = time.perf_counter()
        while waiting or num_running:
            while waiting and num_running < streams:
                self._engine.add(Claim(request=waiting.popleft(), epoch=1))
                num_running += 1
            seconds, outputs = _time_step(self._engine)
            stats = self._engine.last_step
            if stats.num_tokens == stats.batch_size:
                step_s.append(seconds)
            peak = max(peak, stats.kv_cache_usage)
            num_tokens += sum(len(output.token_ids) for output in outputs)
            num_running -= sum(output.end is not None for output in outputs)
        return EngineRun(
            tokens=num_tokens,
            seconds=time.perf_counter() - began,
            step_s=step_s,
            kv_cache_peak_bytes=round(peak * self.info.kv_cache_bytes),
        )

    def describe(self) -> dict[str, str | int]:
        """Return what the settings came to on this machine."""
        info = self.info
        kernels = f"{info.kernels} kernels"
        return {"device": info.device, "kernels": kernels, "dtype": info.dtype, "threads": info.num_threads}


def _time_step(engine: Engine) -> tuple[float, list[StepOutput]]:
    began = time.perf_counter()
    outputs = engine.step()
    seconds = time.perf_counter() - began
    for output in outputs:
        if output.end is not None and output.end.error is not None:
            raise SettingError(f"{output.end.error}; lower --prompt-tokens or --max-tokens")
    return seconds, outputs
