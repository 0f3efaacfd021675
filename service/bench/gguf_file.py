"""A checkpoint as one GGUF file, the format of llama.cpp."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import msgspec
import torch
from torch import Tensor

from service.bench.options import GgufType
from service.errors import SettingError
from training.checkpoint import load_checkpoint
from training.manifest import TOKENIZER, resolve_checkpoint
from training.model_config import GPTConfig
from training.models.layouts import is_portable
from training.tokenizers.base import Tokenizer

_TYPES: Mapping[GgufType, tuple[gguf.GGMLQuantizationType, gguf.LlamaFileType]] = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}


def write_gguf(checkpoint: Path, file: Path, weights: GgufType) -> None:
    """Write a checkpoint of the Qwen3 layout as a GGUF file.

    Args:
        checkpoint: Its folder.
        file: Where to.
        weights: How matrices are stored; vectors are f32.

    Raises:
        CheckpointError: the folder is refused.
        SettingError: GGUF has no name for the layout, or q8_0 no blocks for its widths.

    Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
    """
    loaded = load_checkpoint(checkpoint, dtype=torch.float32)
    config = loaded.model.config
    if not is_portable(config):
        raise SettingError(f"{checkpoint}: not of the Qwen3 layout, which is all that GGUF has a name for")
    aside = file.with_name(f".{file.name}.new")
    writer = gguf.GGUFWriter(aside, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.QWEN3])
    _add_shape(writer, config)
    writer.add_file_type(_TYPES[weights][1])
    _add_vocabulary(writer, loaded.tokenizer, resolve_checkpoint(checkpoint) / TOKENIZER)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config.n_layer)
    for name, parameter in loaded.model.named_parameters():  # a tied matrix once
        kind = _TYPES[weights][0] if parameter.dim() == 2 else gguf.GGMLQuantizationType.F32
        _add_tensor(writer, str(names.get_name(name, (".weight",))), parameter.detach(), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    aside.replace(file)


def _add_shape(writer: gguf.GGUFWriter, config: GPTConfig) -> None:
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.hidden_width)
    writer.add_head_count(config.n_head)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_width)
    writer.add_value_length(config.head_width)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_vocab_size(config.vocab_size)


def _add_vocabulary(writer: gguf.GGUFWriter, tokenizer: Tokenizer, file: Path) -> None:
    model: dict[str, Any] = msgspec.json.decode(file.read_bytes())["model"]
    name_of = {id_: name for name, id_ in model["vocab"].items()}
    letters = gguf.vocab.bytes_to_unicode()
    ids = range(tokenizer.vocab_size)
    spelled = ["".join(letters[byte] for byte in tokenizer.token_bytes(id_)) for id_ in ids]
    is_special = [id_ in tokenizer.special_ids for id_ in ids]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([name_of[id_] if is_special[id_] else spelled[id_] for id_ in ids])
    writer.add_token_types([gguf.TokenType.CONTROL if special else gguf.TokenType.NORMAL for special in is_special])
    writer.add_token_merges([" ".join(pair) for pair in model.get("merges") or _merges_of_characters(spelled)])
    writer.add_bos_token_id(tokenizer.end_of_text_id)
    writer.add_eos_token_id(tokenizer.end_of_text_id)


def _merges_of_characters(spelled: Sequence[str]) -> list[tuple[str, str]]:
    """Return what joins the bytes of each character, from the left: llama.cpp has no vocabulary of characters."""
    pairs = ((letters[:end], letters[end]) for letters in spelled for end in range(1, len(letters)))
    return list(dict.fromkeys(pairs))


def _add_tensor(writer: gguf.GGUFWriter, name: str, tensor: Tensor, kind: gguf.GGMLQuantizationType) -> None:
    try:
        data = gguf.quantize(tensor.numpy(), kind)
    except gguf.QuantError as error:
        shape = " × ".join(map(str, tensor.shape))
        raise SettingError(f"{name}, {shape}: {kind.name.lower()} takes rows of whole blocks; choose bf16") from error
    writer.add_tensor(name, data, raw_dtype=kind)
