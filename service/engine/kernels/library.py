"""The compiled kernels: which were built, which this processor runs, and how they are called."""

import ctypes
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec

from service.engine.kernels.structures import (
    ConvolutionModel,
    GPTModel,
    GPTStep,
    PerceptronModel,
    RecurrentModel,
    SlotStep,
    describe_layout,
)
from service.errors import SettingError

LEVELS = ("portable", "avx2", "avx512", "avx512bf16")
"""Kinds of processor that the kernels are compiled for, from the plainest to the fastest."""

_I64, _POINTER = ctypes.c_int64, ctypes.c_void_p
_STEPS: Mapping[str, tuple[type[ctypes.Structure], type[ctypes.Structure]]] = {
    "gpt": (GPTModel, GPTStep),
    "recurrent": (RecurrentModel, SlotStep),
    "conv": (ConvolutionModel, SlotStep),
    "mlp": (PerceptronModel, SlotStep),
}
"""Families of models, by what `training.model_config` calls them."""


def built_levels() -> list[str]:
    """Return which of `LEVELS` were built. None is loaded: with it would come OpenMP, which then reads its settings."""
    return [level for level in LEVELS if _path(level) is not None]


@cache
def best_level() -> str | None:
    """Return the fastest of `LEVELS` that was built and that this processor runs; None where nothing was built."""
    return next((level for level in reversed(LEVELS) if load_kernels(level) is not None), None)


@cache
def load_kernels(level: str) -> ctypes.CDLL | None:
    """Return the kernels of one of `LEVELS`; None where they were not built, or this processor does not run them.

    Raises:
        SettingError: they were built from other sources: what Python writes is not what they would read.
    """
    library, plainest = _open(level), _open(LEVELS[0])
    if library is None or plainest is None or not plainest.minigpt_supports(LEVELS.index(level)):
        return None
    _require_same_layout(library, level)
    for family, (model, inputs) in _STEPS.items():
        for compute_dtype in ("fp32", "bf16", "int8"):
            step = getattr(library, f"minigpt_{family}_{compute_dtype}")
            step.argtypes = (ctypes.POINTER(model), ctypes.POINTER(inputs))
            step.restype = None
    library.minigpt_sample.argtypes = (_POINTER, _I64, _I64, _POINTER, _I64, _POINTER, _I64, _I64, _POINTER)
    library.minigpt_sample.restype = None
    library.minigpt_panel.restype = _I64
    return library


def require_kernels(level: str | None = None) -> ctypes.CDLL:
    """Return the kernels of one of `LEVELS`; None: of the best.

    Raises:
        RuntimeError: they are not here, ask `best_level` or `choose.why_not_native` first.
    """
    kernels = load_kernels(level or best_level() or "")
    if kernels is None:
        raise RuntimeError("no kernels: ask best_level or why_not_native first")
    return kernels


def _require_same_layout(library: ctypes.CDLL, level: str) -> None:
    theirs: list[str] = []
    if hasattr(library, "minigpt_layout"):  # older ones do not say
        library.minigpt_layout.restype = ctypes.c_char_p
        theirs = library.minigpt_layout().decode().splitlines()
    ours = describe_layout().splitlines()
    if theirs != ours:
        difference = next((line for line in ours if line not in theirs), "a field that Python does not have")
        remedy = "they were built from other sources; build them again: pip install --no-deps -e ."
        raise SettingError(f"the {level} kernels do not read what this minigpt writes ({difference}): {remedy}")


def _open(level: str) -> ctypes.CDLL | None:
    path = _path(level)
    return None if path is None else ctypes.CDLL(path)


def _path(level: str) -> str | None:
    spec = find_spec(f"service.engine.kernels._{level}")
    return None if spec is None else spec.origin
