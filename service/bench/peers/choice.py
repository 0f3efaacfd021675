"""Which peers a command line asks for."""

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from service.errors import SettingError

MODULES = {"transformers": "with_transformers", "vllm": "with_vllm", "llama.cpp": "with_llama_cpp"}
"""Engine → the file beside this one that drives it."""
DTYPES = {"transformers": ("fp32", "bf16"), "vllm": ("fp32", "bf16"), "llama.cpp": ("fp32", "bf16", "int8")}
"""Engine → the dtype that it computes in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerChoice:
    """A peer, its dtype, and the Python that has it."""

    engine: str
    dtype: str | None
    """None: minigpt's own, or bf16 if the peer lacks it."""
    python: str

    def dtype_beside(self, ours: str) -> str:
        """Return the dtype that it is to compute in where minigpt has `ours`."""
        return self.dtype or (ours if ours in DTYPES[self.engine] else "bf16")


def choose_peers(against: Sequence[str], pythons: Sequence[str]) -> list[PeerChoice]:
    """Read `--against` and `--peer-python`.

    Args:
        against: Texts of `ENGINE[:DTYPE]` with commas between them; `auto` is transformers if it is installed here.
        pythons: `[ENGINE=]PATH`; an engine that is not named has this Python.

    Raises:
        SettingError: no such peer.
    """
    wanted = [part.strip() for text in against for part in text.split(",")]
    if wanted == ["auto"]:
        wanted = ["transformers"] if importlib.util.find_spec("transformers") else []
    if wanted == ["none"]:
        wanted = []
    paths = _read_pythons(pythons)
    return [_choose(part, paths) for part in wanted]


def _choose(text: str, paths: dict[str, str]) -> PeerChoice:
    engine, _, dtype = text.partition(":")
    if engine not in MODULES:
        raise SettingError(f"--against {text}: choose none, or some of {', '.join(MODULES)}")
    if dtype not in ("", *DTYPES[engine]):
        raise SettingError(f"--against {text}: {engine} has {', '.join(DTYPES[engine])}")
    return PeerChoice(engine=engine, dtype=dtype or None, python=paths.get(engine) or paths.get("") or sys.executable)


def _read_pythons(pythons: Sequence[str]) -> dict[str, str]:
    """Return engine → interpreter; under `""` the one for all that are not named."""
    paths = {}
    for text in pythons:
        engine, _, path = text.rpartition("=")
        if engine not in ("", *MODULES):
            raise SettingError(f"--peer-python {text}: write PATH or ENGINE=PATH, with one of {', '.join(MODULES)}")
        paths[engine] = path
    return paths
