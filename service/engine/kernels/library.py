"""The compiled kernels, as C sees them; the structures mirror `step.cpp` field by field."""

import ctypes
from functools import cache
from importlib.util import find_spec

PAGE_SIZE = 16
"""Tokens of a page, and floats of a vector: `W` in `step.cpp`."""

_I64 = ctypes.c_int64
_POINTER = ctypes.c_void_p


class Layer(ctypes.Structure):
    """Weights of a block, and its keys and values."""

    _fields_ = tuple(
        (name, _POINTER)
        for name in (
            *("input_norm", "qkv", "q_norm", "k_norm", "o_proj", "mlp_norm", "gate_up", "down_proj"),
            *("keys", "values"),
        )
    )


class Model(ctypes.Structure):
    """Shape and weights."""

    _fields_ = (
        *((name, _I64) for name in ("n_layer", "C", "H", "G", "D", "F", "V", "max_context")),
        ("norm_eps", ctypes.c_float),
        *((name, _POINTER) for name in ("embedding", "norm", "head", "cosine", "sine")),
        ("layers", ctypes.POINTER(Layer)),
    )


class Step(ctypes.Structure):
    """What is computed, and room to do it in."""

    _fields_ = (
        *((name, _I64) for name in ("num_tokens", "num_samples", "num_threads")),
        *((name, _POINTER) for name in ("token_ids", "positions", "tables", "pages", "samples")),
        *((name, _POINTER) for name in ("x", "normed", "qkv", "attended", "hidden", "gate_up", "scores", "logits")),
    )


@cache
def load_kernels() -> ctypes.CDLL | None:
    """Return the compiled kernels; None where the package was built without a C++ compiler."""
    spec = find_spec("service.engine.kernels._step")
    if spec is None or spec.origin is None:
        return None
    library = ctypes.CDLL(spec.origin)
    library.minigpt_step.argtypes = (ctypes.POINTER(Model), ctypes.POINTER(Step))
    library.minigpt_step.restype = None
    return library
