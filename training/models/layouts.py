"""How other programs write this model: Hugging Face's `config.json` for Qwen3, Llama and GPT-2, GPT-2's own names."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

import msgspec
from torch import Tensor

from training.errors import CheckpointError
from training.model_config import GPTConfig, ModelConfig, differences, parse_model_config

OWN_MODEL_TYPE, GPT2_MODEL_TYPE = "minigpt", "gpt2"
QWEN3 = GPTConfig(position="rope", norm="rmsnorm", activation="swiglu", qk_norm=True, bias=False, ngram_orders=())
"""The layout that transformers, vLLM, llama.cpp and the native kernels compute."""
SHAPE = frozenset(
    {
        *("vocab_size", "context_length", "n_layer", "n_embd", "n_head", "n_kv_head", "head_dim", "n_hidden"),
        *("norm_eps", "rope_theta", "tie_embeddings"),
        "dropout",  # counts in training alone
        "ngram_rows",  # means nothing without `ngram_orders`
    }
)
"""Fields of which a layout has any value. Of every other field, one that is new included, it has its own value only."""
_HF_MODEL_TYPES = {"qwen3": QWEN3, "llama": QWEN3.replace(qk_norm=False)}
"""Layouts of ours that transformers computes alike, under the same names of weights."""
_ARCHITECTURES = {"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
_GPT2_ACTIVATIONS = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "relu": "relu", "silu": "silu", "tanh": "tanh"}
_ABSENT_OR_FALSE = (None, False)
_EXPECTED: Mapping[str, Mapping[str, tuple[object, ...]]] = {
    "hf": {
        "hidden_act": ("silu",),
        "use_sliding_window": _ABSENT_OR_FALSE,
        "partial_rotary_factor": (None, 1.0),
        "quantization_config": (None,),
    },
    "gpt2": {
        "activation_function": (None, *_GPT2_ACTIVATIONS),
        "scale_attn_weights": (None, True),
        "scale_attn_by_inverse_layer_idx": _ABSENT_OR_FALSE,
        "add_cross_attention": _ABSENT_OR_FALSE,
        "quantization_config": (None,),
    },
}
"""What a field of a `config.json` must say for us to compute the same; other fields do not matter, or are the shape."""


def is_portable(config: ModelConfig) -> TypeGuard[GPTConfig]:
    """Tell whether `config` is exactly the Qwen3 layout, which transformers, vLLM and llama.cpp load."""
    return not departures(config)


def departures(config: ModelConfig) -> dict[str, Any]:
    """Return the settings, with their values, in which `config` departs from the Qwen3 layout."""
    return differences(config, QWEN3, but=SHAPE)


def hf_model_type(config: ModelConfig) -> str:
    """Return the `model_type` that a checkpoint of `config` has."""
    alike = (name for name, layout in _HF_MODEL_TYPES.items() if not differences(config, layout, but=SHAPE))
    return next(alike, OWN_MODEL_TYPE)


def to_hf_config(config: ModelConfig, dtype: str, end_of_text_id: int) -> dict[str, Any]:
    """Return the content of `config.json`.

    Args:
        config: The model's shape.
        dtype: torch's name of the weights' dtype, e.g. `bfloat16`.
        end_of_text_id: Token that begins and ends a text.
    """
    model_type = hf_model_type(config)
    if model_type == OWN_MODEL_TYPE or not isinstance(config, GPTConfig):
        return {"model_type": OWN_MODEL_TYPE, "dtype": dtype, "model": msgspec.to_builtins(config)}
    return {
        "architectures": [_ARCHITECTURES[model_type]],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.kv_heads,
        "hidden_size": config.n_embd,
        "head_dim": config.head_width,
        "intermediate_size": config.hidden_width,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": config.tie_embeddings,
        "use_sliding_window": False,
        "bos_token_id": end_of_text_id,
        "eos_token_id": end_of_text_id,
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def to_generation_config(end_of_text_id: int, special_ids: Iterable[int]) -> dict[str, Any]:
    """Return the content of `generation_config.json`: transformers draws what minigpt would draw.

    Args:
        end_of_text_id: Token that begins and ends a text.
        special_ids: Tokens that stand for no text.
    """
    never = sorted(set(special_ids) - {end_of_text_id})
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), end_of_text_id)
    return {**ids, "do_sample": True, **({"suppress_tokens": never} if never else {})}


def from_hf_config(data: Mapping[str, Any]) -> ModelConfig:
    """Return the shape that a `config.json` describes.

    Raises:
        CheckpointError: another model type, or a field that is missing or wrong.
    """
    model_type = data.get("model_type")
    try:
        if model_type == OWN_MODEL_TYPE:
            return parse_model_config(data["model"])
        if model_type in _HF_MODEL_TYPES:
            return _from_hf(data)
        if model_type == GPT2_MODEL_TYPE:
            return gpt2_config(data)
    except KeyError as error:
        raise CheckpointError(f"config.json: field {error} is missing") from error
    except (msgspec.ValidationError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"config.json: {error}") from error
    known = ", ".join((*_HF_MODEL_TYPES, GPT2_MODEL_TYPE, OWN_MODEL_TYPE))
    raise CheckpointError(f"config.json: model_type {model_type!r}; this minigpt reads {known}")


def _from_hf(data: Mapping[str, Any]) -> GPTConfig:
    _require_expected(data, "hf")
    rope = data.get("rope_parameters") or data.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    _require(rope_type == "default", "rope_type", rope_type)
    layers = data.get("layer_types") or ["full_attention"]
    _require(set(layers) == {"full_attention"}, "layer_types", sorted(set(layers)))
    is_qwen3 = data["model_type"] == "qwen3"
    shape = {
        "vocab_size": data["vocab_size"],
        "context_length": data["max_position_embeddings"],
        "n_layer": data["num_hidden_layers"],
        "n_head": data["num_attention_heads"],
        "n_kv_head": data.get("num_key_value_heads"),
        "n_embd": data["hidden_size"],
        "head_dim": data.get("head_dim") or (128 if is_qwen3 else None),
        "n_hidden": data["intermediate_size"],
        "norm_eps": data["rms_norm_eps"],
        "rope_theta": float(rope.get("rope_theta", data.get("rope_theta", 10_000.0))),
        "qk_norm": is_qwen3,
        "bias": bool(data.get("attention_bias") or data.get("mlp_bias")),
        "tie_embeddings": bool(data.get("tie_word_embeddings", False)),
    }
    return msgspec.convert(shape, GPTConfig)


def gpt2_config(data: Mapping[str, Any]) -> GPTConfig:
    """Return the shape of a Hugging Face GPT-2 `config.json`.

    Raises:
        CheckpointError: a field that asks for another computation.
        KeyError: a field is missing.
        msgspec.ValidationError: a field is wrong.
    """
    _require_expected(data, "gpt2")
    shape = {
        "vocab_size": data["vocab_size"],
        "context_length": data["n_positions"],
        "n_layer": data["n_layer"],
        "n_head": data["n_head"],
        "n_embd": data["n_embd"],
        "n_hidden": data.get("n_inner"),
        "norm_eps": data["layer_norm_epsilon"],
        "position": "learned",
        "norm": "layernorm",
        "activation": _GPT2_ACTIVATIONS[data.get("activation_function") or "gelu_new"],
        "qk_norm": False,
        "bias": True,
        "tie_embeddings": data.get("tie_word_embeddings", True),
    }
    return msgspec.convert(shape, GPTConfig)


def gpt2_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the state dict of `GPT2LMHeadModel`; its layers multiply from the left, so matrices are transposed."""
    modules = {
        "ln_1": "input_layernorm",
        "attn.c_proj": "self_attn.o_proj",
        "ln_2": "post_attention_layernorm",
        "mlp.c_fc": "mlp.up_proj",
        "mlp.c_proj": "mlp.down_proj",
    }
    tops = {"wte": "model.embed_tokens", "wpe": "model.embed_positions", "ln_f": "model.norm"}
    renamed = {}
    for name, tensor in weights.items():
        module, _, kind = name.removeprefix("transformer.").rpartition(".")
        if module.endswith(".attn"):  # masks, which older files keep
            continue
        if not module.startswith("h."):
            renamed[f"{tops.get(module, module)}.{kind}"] = tensor
            continue
        _, number, module = module.split(".", 2)
        layer, matrix = f"model.layers.{number}", tensor.T if tensor.dim() == 2 else tensor
        if module == "attn.c_attn":
            for letter, part in zip("qkv", matrix.chunk(3), strict=True):
                renamed[f"{layer}.self_attn.{letter}_proj.{kind}"] = part.contiguous()
        else:
            renamed[f"{layer}.{modules.get(module, module)}.{kind}"] = matrix.contiguous()
    return renamed


def _require_expected(data: Mapping[str, Any], layout: str) -> None:
    for field, values in _EXPECTED[layout].items():
        _require(data.get(field) in values, field, data.get(field))


def _require(condition: bool, field: str, value: object) -> None:
    if not condition:
        raise CheckpointError(f"config.json: {field} = {value!r}: minigpt does not compute that; take another model")
