"""The structures that the kernels read, as Python writes them: a mirror of the C++ files, compared at load."""

import ctypes
from collections.abc import Mapping

PAGE_SIZE = 16
"""Tokens of a page. What the kernels read is rounded up to whole pages of values, too."""
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
    """What is computed, and memory for what comes between."""

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
    """What is computed of a model of fixed state, and memory for what comes between."""

    _fields_ = (
        *((name, _I64) for name in ("num_chunks", "num_tokens", "num_samples", "num_threads")),
        *((name, _POINTER) for name in ("token_ids", "chunks", "starts", "slots", "positions", "samples")),
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


MIRRORED: tuple[type[ctypes.Structure], ...] = (
    *(Linear, GPTLayer, GPTModel, GPTStep, RecurrentLayer, RecurrentModel),
    *(Window, ConvolutionLayer, ConvolutionModel, PerceptronModel, SlotStep, Draw),
)
CONSTANTS: Mapping[str, int] = {
    "PAGE": PAGE_SIZE,
    **{str(name or "identity").upper(): number for number, name in enumerate(ACTIVATIONS)},
    **{name.upper(): number for number, name in enumerate(("simple", *CELLS[1:]))},
}
"""Numbers that both sides must give the same name."""
_KINDS: Mapping[type, str] = {_I64: "q", ctypes.c_uint64: "Q", ctypes.c_double: "d", ctypes.c_float: "f", _POINTER: "p"}


def describe_layout(mirrored: tuple[type[ctypes.Structure], ...] = MIRRORED) -> str:
    """Return what `layout.hpp` says of the structures and constants, as they are here: the same lines."""
    lines = [f"{name} {number}" for name, number in CONSTANTS.items()]
    for structure in mirrored:
        lines.append(f"{structure.__name__} {ctypes.sizeof(structure)}")
        for name, type_, *_ in structure._fields_:
            field = getattr(structure, name)
            lines.append(f"{structure.__name__}.{name} {_kind(type_)} {field.offset} {field.size}")
    return "".join(f"{line}\n" for line in lines)


def _kind(type_: type) -> str:
    return "S" if issubclass(type_, ctypes.Structure) else _KINDS.get(type_, "p")
