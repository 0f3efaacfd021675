"""Our end of a peer: its process, loaded once, then given one load after another."""

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import msgspec

from service.bench.offline import EngineRun
from service.bench.peers.choice import MODULES, PeerChoice
from service.bench.report import usable_cpus
from service.bench.workload import Workload
from service.engine.interface import EngineInfo
from service.errors import SettingError
from service.protocol import Request
from training.exchange.formats import GgufType

PROGRAM = Path(__file__).with_name("program.py")
GGUF_TYPES: Mapping[str, GgufType] = {"fp32": "f32", "bf16": "bf16", "int8": "q8_0"}
PATIENCE_S = 20.0
"""Seconds that a peer has to end."""


class Answer(msgspec.Struct, frozen=True):
    """A line that a peer writes."""

    version: str = ""
    error: str = ""
    token_ids: list[list[int]] = []
    seconds: float = 0.0
    step_s: list[float] = []


class Peer:
    """A peer that is loaded."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: IO[str]) -> None:
        self.name = name
        self._process = process
        self._log = log
        self.version = self._read().version

    def run(self, requests: Sequence[Request]) -> EngineRun:
        """Compute `requests`, all of one length, as one batch.

        Raises:
            SettingError: the peer failed.
        """
        answer = self.generate(requests)
        return EngineRun(tokens=sum(map(len, answer.token_ids)), seconds=answer.seconds, step_s=answer.step_s)

    def generate(self, requests: Sequence[Request]) -> Answer:
        """Return the tokens that continue each of `requests`, and how long it took."""
        load = {"prompts": [request.token_ids for request in requests], "max_tokens": requests[0].params.max_tokens}
        with contextlib.suppress(BrokenPipeError):  # `_read` says why
            _pipe(self._process.stdin).write(msgspec.json.encode(load) + b"\n")
            _pipe(self._process.stdin).flush()
        return self._read()

    def _read(self) -> Answer:
        line = _pipe(self._process.stdout).readline()
        answer = msgspec.json.decode(line, type=Answer) if line else Answer(error=self._last_words())
        if answer.error:
            reason = " ".join(answer.error.split())[:300]
            raise SettingError(f"--against {self.name}: {reason}; choose another peer, or --against none")
        return answer

    def _last_words(self) -> str:
        self._process.wait()
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        return f"it ended: {lines[-1] if lines else 'it said nothing'}"


@contextlib.contextmanager
def start_peer(choice: PeerChoice, workload: Workload, info: EngineInfo, max_batch: int) -> Iterator[Peer]:
    """Load the model of `workload` into a peer, in the dtype and with the threads of ours.

    Args:
        choice: Which peer; it ends with the context.
        workload: What is measured.
        info: Of our engine.
        max_batch: Sequences at once, at most.

    Raises:
        SettingError: the peer is not installed there, or cannot load this model.
    """
    dtype = choice.dtype_beside(info.dtype)
    with tempfile.TemporaryDirectory(prefix="minigpt-bench-") as folder, tempfile.TemporaryFile("w+") as log:
        model = workload.folder
        if choice.engine == "llama.cpp":
            model = _convert(model, dtype, Path(folder))
        options = {
            "model": str(model),
            "dtype": dtype,
            "device": info.device,
            "cpus": usable_cpus()[: info.num_threads],
            "max_batch": max_batch,
            "context": workload.prompt_tokens + workload.max_tokens,
            "never": sorted(workload.tokenizer.special_ids),
        }
        with _start(choice, options, log) as process:
            yield Peer(f"{choice.engine}:{dtype}", process, log)


def _convert(checkpoint: Path, dtype: str, folder: Path) -> Path:
    try:
        from training.exchange.gguf_file import write_gguf
    except ModuleNotFoundError as error:
        raise SettingError(f"--against llama.cpp: {error}; pip install 'minigpt[train]'") from error
    file = folder / "model.gguf"
    write_gguf(checkpoint, file, GGUF_TYPES[dtype])
    return file


@contextlib.contextmanager
def _start(choice: PeerChoice, options: dict[str, Any], log: IO[str]) -> Iterator[subprocess.Popen[bytes]]:
    command = [choice.python, str(PROGRAM), MODULES[choice.engine], msgspec.json.encode(options).decode()]
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True
        )
    except OSError as error:
        raise SettingError(f"--peer-python {choice.python}: {error.strerror}; name an interpreter") from error
    with process:
        try:
            yield process
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the peer and whatever it started: first by the end of its stdin."""
    with contextlib.suppress(BrokenPipeError):
        _pipe(process.stdin).close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(PATIENCE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise RuntimeError("the process was started without pipes")
    return stream
