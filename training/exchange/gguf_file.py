"""A checkpoint as one GGUF file, the format of llama.cpp."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import msgspec
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from torch import Tensor

from training.checkpoint import load_checkpoint
from training.errors import CheckpointError, ConfigError
from training.exchange.formats import GgufType
from training.manifest import TOKENIZER, resolve_checkpoint
from training.model_config import GPTConfig
from training.models.layouts import departures, hf_model_type, is_portable
from training.tokenizers.base import END_OF_TEXT, UNKNOWN, Tokenizer
from training.tokenizers.splits import GPT2, find_split

_TYPES: Mapping[GgufType, tuple[GGMLQuantizationType, gguf.LlamaFileType]] = {
    "f32": (GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "bf16": (GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
_NEVER_MERGED = (UNKNOWN, END_OF_TEXT)
"""A merge of what no text is cut into: llama.cpp refuses a vocabulary without any."""


def write_gguf(checkpoint: Path, file: Path, weights: GgufType) -> None:
    """Write a checkpoint of the Qwen3 layout as a GGUF file; what stood there is replaced once the new one is whole.

    Args:
        checkpoint: Its folder, or that of its run.
        file: Where to.
        weights: How matrices are stored; vectors are f32.

    Raises:
        CheckpointError: the folder is refused, is of another layout, or the file cannot be written.
        ConfigError: q8_0 has no blocks for its widths.

    Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
    """
    loaded = load_checkpoint(checkpoint, dtype=torch.float32)
    config = loaded.model.config
    if not is_portable(config):
        why = ", ".join(f"{field} = {value!r}" for field, value in departures(config).items())
        raise CheckpointError(
            f"{checkpoint}: model_type '{hf_model_type(config)}' ({why}): GGUF is written of the Qwen3 layout only"
        )
    kind, file_type = _TYPES[weights]
    tensors = {name: parameter.detach() for name, parameter in loaded.model.named_parameters()}  # a tied matrix once
    aside = file.with_name(f".{file.name}.new")
    writer = GGUFWriter(aside, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.QWEN3])
    writer.add_name(checkpoint.resolve().name)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_shape(writer, config)
    content: dict[str, Any] = msgspec.json.decode((resolve_checkpoint(checkpoint) / TOKENIZER).read_bytes())
    _add_vocabulary(writer, loaded.tokenizer, content)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config.n_layer)
    for name, tensor in tensors.items():
        stored = kind if tensor.dim() == 2 else GGMLQuantizationType.F32
        _add_tensor(writer, str(names.get_name(name, (".weight",))), tensor, stored)
    _write(writer, aside, file)


def _add_shape(writer: GGUFWriter, config: GPTConfig) -> None:
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


def _add_vocabulary(writer: GGUFWriter, tokenizer: Tokenizer, content: Mapping[str, Any]) -> None:
    """Tell llama.cpp the tokens; a character vocabulary is BPE to it, for it has no other that takes any text."""
    tokens, types = zip(*_tokens(tokenizer, content), strict=True)
    characters = [token for token, type_ in zip(tokens, types, strict=True) if type_ is TokenType.NORMAL]
    merges = content["model"].get("merges") or _merges_of_characters(characters) or [_NEVER_MERGED]
    split = find_split(content["pre_tokenizer"]) or GPT2
    prefix = [token_id for token_id in tokenizer.encode("") if token_id in tokenizer.special_ids]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split.name)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id((prefix or [tokenizer.end_of_text_id])[0])
    writer.add_eos_token_id(tokenizer.end_of_text_id)
    writer.add_add_bos_token(bool(prefix))
    writer.add_add_eos_token(False)
    if UNKNOWN in tokens:
        writer.add_unk_token_id(tokens.index(UNKNOWN))


def _tokens(tokenizer: Tokenizer, content: Mapping[str, Any]) -> Iterator[tuple[str, TokenType]]:
    """Yield how GGUF spells each id, and what it is."""
    letters = gguf.vocab.bytes_to_unicode()
    added = {token["id"]: token for token in content["added_tokens"]}
    unknown = content["model"]["vocab"].get(UNKNOWN)
    for id_ in range(tokenizer.vocab_size):
        if id_ in added:
            is_special = added[id_].get("special")
            yield added[id_]["content"], TokenType.CONTROL if is_special else TokenType.USER_DEFINED
        elif id_ == unknown and id_ in tokenizer.special_ids:
            yield UNKNOWN, TokenType.UNKNOWN
        elif id_ in tokenizer.special_ids:
            yield f"<|unused {id_}|>", TokenType.UNUSED
        else:
            yield "".join(letters[byte] for byte in tokenizer.token_bytes(id_)), TokenType.NORMAL


def _merges_of_characters(characters: Sequence[str]) -> list[tuple[str, str]]:
    """Return what joins the bytes of each character, from the left."""
    pairs = ((letters[:end], letters[end]) for letters in characters for end in range(1, len(letters)))
    return list(dict.fromkeys(pairs))


def _add_tensor(writer: GGUFWriter, name: str, tensor: Tensor, kind: GGMLQuantizationType) -> None:
    try:
        data = gguf.quantize(tensor.numpy(), kind)
    except gguf.QuantError as error:
        shape = " × ".join(map(str, tensor.shape))
        raise ConfigError(f"{name}, {shape}: {kind.name.lower()} takes rows of whole blocks; choose bf16") from error
    writer.add_tensor(name, data, raw_dtype=kind)


def _write(writer: GGUFWriter, aside: Path, file: Path) -> None:
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        aside.replace(file)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise CheckpointError(f"{file}: cannot write: {error.strerror}; choose another file with --out") from error
