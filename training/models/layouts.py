"""How other programs write this model: Hugging Face's `config.json` for Qwen3, and GPT-2's weights under our names."""

from collections.abc import Mapping
from typing import Any, TypeGuard

import msgspec
from torch import Tensor

from training.errors import CheckpointError
from training.model_config import GPTConfig, ModelConfig, parse_model_config

OWN_MODEL_TYPE = "minigpt"
_QWEN3 = {"position": "rope", "norm": "rmsnorm", "activation": "swiglu", "qk_norm": True, "bias": False}


def is_portable(config: ModelConfig) -> TypeGuard[GPTConfig]:
    """Tell whether `config` is exactly the Qwen3 layout, which transformers, vLLM and llama.cpp load."""
    return isinstance(config, GPTConfig) and all(getattr(config, field) == value for field, value in _QWEN3.items())


def to_hf_config(config: ModelConfig, dtype: str, end_of_text_id: int) -> dict[str, Any]:
    """Return the content of `config.json`.

    Args:
        config: The model's shape.
        dtype: torch's name of the weights' dtype, e.g. `bfloat16`.
        end_of_text_id: Token that begins and ends a text.
    """
    if not is_portable(config):
        return {"model_type": OWN_MODEL_TYPE, "dtype": dtype, "model": msgspec.to_builtins(config)}
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
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


def from_hf_config(data: Mapping[str, Any]) -> ModelConfig:
    """Return the shape that a `config.json` describes.

    Raises:
        CheckpointError: another model type, or a field that is missing or wrong.
    """
    model_type = data.get("model_type")
    try:
        if model_type == OWN_MODEL_TYPE:
            return parse_model_config(data["model"])
        if model_type == "qwen3":
            return msgspec.convert(_from_qwen3(data), GPTConfig)
    except KeyError as error:
        raise CheckpointError(f"config.json: field {error} is missing") from error
    except msgspec.ValidationError as error:
        raise CheckpointError(f"config.json: {error}") from error
    raise CheckpointError(f"config.json: model_type {model_type!r}; this minigpt reads 'qwen3' and '{OWN_MODEL_TYPE}'")


def _from_qwen3(data: Mapping[str, Any]) -> dict[str, Any]:
    if data.get("hidden_act") != "silu" or data.get("attention_bias") or data.get("use_sliding_window"):
        raise CheckpointError("config.json: a Qwen3 with hidden_act silu, no biases and no sliding window is expected")
    rope = data.get("rope_parameters") or {}
    return {
        "vocab_size": data["vocab_size"],
        "context_length": data["max_position_embeddings"],
        "n_layer": data["num_hidden_layers"],
        "n_head": data["num_attention_heads"],
        "n_kv_head": data["num_key_value_heads"],
        "n_embd": data["hidden_size"],
        "head_dim": data["head_dim"],
        "n_hidden": data["intermediate_size"],
        "norm_eps": data["rms_norm_eps"],
        "rope_theta": float(rope.get("rope_theta", data.get("rope_theta", 10_000.0))),
        "tie_embeddings": data.get("tie_word_embeddings", False),
    }


def gpt2_config(data: Mapping[str, Any]) -> GPTConfig:
    """Return the shape of a Hugging Face GPT-2 `config.json`."""
    return GPTConfig(
        vocab_size=data["vocab_size"],
        context_length=data["n_positions"],
        n_layer=data["n_layer"],
        n_head=data["n_head"],
        n_embd=data["n_embd"],
        n_hidden=data.get("n_inner"),
        norm_eps=data["layer_norm_epsilon"],
        position="learned",
        norm="layernorm",
        activation="gelu",
        qk_norm=False,
        bias=True,
        tie_embeddings=True,
    )


def gpt2_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the state dict of `GPT2LMHeadModel`; its layers multiply from the left, so matrices are transposed."""
    modules = {
        "ln_1": "input_layernorm",
        "attn.c_proj": "self_attn.o_proj",
        "ln_2": "post_attention_layernorm",
        "mlp.c_fc": "mlp.up_proj",
        "mlp.c_proj": "mlp.down_proj",
    }
    tops = {"wte": "embed_tokens", "wpe": "embed_positions", "ln_f": "norm"}
    renamed = {"lm_head.weight": weights["transformer.wte.weight"]}
    for name, tensor in weights.items():
        parts = name.split(".")
        if parts[0] != "transformer":
            continue
        if parts[1] != "h":
            renamed[f"model.{tops[parts[1]]}.{parts[2]}"] = tensor
            continue
        layer, module, kind = f"model.layers.{parts[2]}", ".".join(parts[3:-1]), parts[-1]
        matrix = tensor.T if tensor.dim() == 2 else tensor
        if module == "attn.c_attn":
            for letter, part in zip("qkv", matrix.chunk(3), strict=True):
                renamed[f"{layer}.self_attn.{letter}_proj.{kind}"] = part.contiguous()
        elif module in modules:
            renamed[f"{layer}.{modules[module]}.{kind}"] = matrix.contiguous()
    return renamed
