"""The compiled kernels, as C sees them; the structures mirror the C++ files field by field."""

import ctypes
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec

PAGE_SIZE = 16
"""Tokens of a page: `PAGE` in `attention.hpp`. What the kernels read is rounded up to whole pages of values, too."""
LEVELS = ("portable", "avx2", "avx512", "avx512bf16")
"""Kinds of processor that the kernels are compiled for, from the plainest to the fastest."""
ACTIVATIONS = (None, "sigmoid", "tanh", "relu", "leaky_relu", "gelu", "silu", "relu2")
"""By their numbers in `activations.hpp`."""
CELLS = ("rnn", "lstm", "gru")
"""By their numbers in `recurrent.hpp`."""

_I64 = ctypes.c_int64
_POINTER = ctypes.c_void_p


class Linear(ctypes.Structure):
    """Packed weights."""

    _fields_ = (
        *((name, _POINTER) for name in ("packed", "scales", "offsets", "bias")),
        *((name, _I64) for name in ("K", "N")),
    )


class GPTLayer(ctypes.Structure):
    """Weights of a block, and its keys and values."""

    _fields_ = (
        *((name, _POINTER) for name in ("input_norm", "q_norm", "k_norm", "mlp_norm")),
        *((name, Linear) for name in ("qkv", "o_proj", "gate_up", "down_proj")),
        *((name, _POINTER) for name in ("keys", "values")),
    )


class GPTModel(ctypes.Structure):
    """Shape and weights of a transformer."""

    _fields_ = (
        *((name, _I64) for name in ("n_layer", "C", "H", "G", "D", "F", "max_context")),
        ("norm_eps", ctypes.c_float),
        *((name, _POINTER) for name in ("embedding", "norm", "cosine", "sine")),
        ("head", Linear),
        ("layers", ctypes.POINTER(GPTLayer)),
    )


class GPTStep(ctypes.Structure):
    """What is computed, and room to do it in."""

    _fields_ = (
        *((name, _I64) for name in ("num_tokens", "num_samples", "num_threads")),
        *((name, _POINTER) for name in ("token_ids", "positions", "tables", "pages", "samples")),
        *((name, _POINTER) for name in ("x", "qkv", "attended", "gate_up", "logits")),
        *((name, _POINTER) for name in ("q", "lanes", "scales", "scores", "weights")),
    )


class RecurrentLayer(ctypes.Structure):
    """Weights of a layer, and its states."""

    _fields_ = (("input", Linear), ("hidden", Linear), ("state", _POINTER))


class RecurrentModel(ctypes.Structure):
    """Shape and weights of a recurrent network."""

    _fields_ = (
        *((name, _I64) for name in ("n_layer", "C", "F", "cell", "activation")),
        ("embedding", _POINTER),
        *((name, Linear) for name in ("projection", "head")),
        ("layers", ctypes.POINTER(RecurrentLayer)),
    )


class Window(ctypes.Structure):
    """What a layer reads of the past, and where it stands."""

    _fields_ = (("kept", _POINTER), *((name, _I64) for name in ("width", "taps", "dilation")))


class ConvolutionLayer(ctypes.Structure):
    """Weights of a layer, and its past."""

    _fields_ = (
        *((name, _POINTER) for name in ("norm", "norm_bias")),
        ("window", Window),
        *((name, Linear) for name in ("convolution", "projection")),
    )


class ConvolutionModel(ctypes.Structure):
    """Shape and weights of a causal convolutional network."""

    _fields_ = (
        *((name, _I64) for name in ("n_layer", "C", "F", "activation", "gate_activation")),
        *((name, _POINTER) for name in ("embedding", "norm", "norm_bias")),
        ("head", Linear),
        ("layers", ctypes.POINTER(ConvolutionLayer)),
    )


class PerceptronModel(ctypes.Structure):
    """Shape and weights of a perceptron over a window of embeddings."""

    _fields_ = (
        *((name, _I64) for name in ("n_layer", "C", "F", "activation")),
        ("embedding", _POINTER),
        ("window", Window),
        *((name, Linear) for name in ("output", "direct", "head")),
        ("layers", ctypes.POINTER(Linear)),
    )


class SlotStep(ctypes.Structure):
    """What is computed of a model of fixed state, and room to do it in."""

    _fields_ = (
        *((name, _I64) for name in ("num_works", "num_tokens", "num_samples", "num_threads")),
        *((name, _POINTER) for name in ("token_ids", "works", "starts", "slots", "positions", "samples")),
        *((name, _POINTER) for name in ("x", "wide", "side", "logits", "lanes", "scales")),
    )


class Draw(ctypes.Structure):
    """How the next token of a row is drawn."""

    _fields_ = (
        *((name, ctypes.c_uint64) for name in ("seed", "choice", "position")),
        *((name, ctypes.c_double) for name in ("temperature", "top_p", "min_p")),
        ("top_k", _I64),
        *((name, ctypes.c_double) for name in ("repetition_penalty", "presence_penalty", "frequency_penalty")),
        ("num_bias", _I64),
        *((name, _POINTER) for name in ("bias_ids", "bias")),
        *((name, _I64) for name in ("num_prompt", "num_tokens")),
        ("token_ids", _POINTER),
    )


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
    """Return the kernels of one of `LEVELS`; None where they were not built, or this processor does not run them."""
    library, plainest = _open(level), _open(LEVELS[0])
    if library is None or plainest is None or not plainest.minigpt_supports(LEVELS.index(level)):
        return None
    for family, (model, inputs) in _STEPS.items():
        for arithmetic in ("fp32", "bf16", "int8"):
            step = getattr(library, f"minigpt_{family}_{arithmetic}")
            step.argtypes = (ctypes.POINTER(model), ctypes.POINTER(inputs))
            step.restype = None
    library.minigpt_sample.argtypes = (_POINTER, _I64, _I64, _POINTER, _I64, _POINTER, _I64, _I64, _POINTER)
    library.minigpt_sample.restype = None
    library.minigpt_panel.restype = _I64
    return library


def require_kernels(level: str | None = None) -> ctypes.CDLL:
    """Return the kernels of one of `LEVELS`; None: of the best.

    Raises:
        RuntimeError: they are not here, which `best_level` or `native.why_not_native` would have told.
    """
    kernels = load_kernels(level or best_level() or "")
    if kernels is None:
        raise RuntimeError("no kernels: ask best_level or why_not_native first")
    return kernels


def _open(level: str) -> ctypes.CDLL | None:
    path = _path(level)
    return None if path is None else ctypes.CDLL(path)


def _path(level: str) -> str | None:
    spec = find_spec(f"service.engine.kernels._{level}")
    return None if spec is None else spec.origin
