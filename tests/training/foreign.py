"""Tokenizers and models as other programs make them, small: those of GPT-2, Llama 3, Qwen and SmolLM."""

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
)

WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
MAKES = ("gpt2", "llama3", "qwen", "smollm")
END = {"gpt2": "<|endoftext|>", "llama3": "<|end_of_text|>", "qwen": "<|im_end|>", "smollm": "<|endoftext|>"}

_CLASSES = {
    "gpt2": GPT2LMHeadModel,
    "llama3": LlamaForCausalLM,
    "smollm": LlamaForCausalLM,
    "qwen": Qwen3ForCausalLM,
}


def make_tokenizer(make: str, documents: Iterable[str], vocab_size: int = 600) -> Tokenizer:
    """Learn merges of `documents`, with everything around them as in the published files."""
    return _learn(make, tuple(documents), vocab_size)


@cache
def _learn(make: str, documents: tuple[str, ...], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=make == "llama3"))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=make in ("gpt2", "smollm"))
    digits = r"|\p{N}{1,3}|" if make == "llama3" else r"|\p{N}|"
    first = {"gpt2": [], "smollm": [pre_tokenizers.Digits(individual_digits=True)]}.get(
        make, [pre_tokenizers.Split(Regex(WORD + digits + REST), "isolated")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*first, byte_level]) if first else byte_level
    tokenizer.decoder = decoders.ByteLevel()
    special = [END[make]] if make in ("gpt2", "smollm") else []  # the others add theirs behind the merges
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    if make == "llama3":
        tokenizer = list_every_pair(tokenizer)
        tokenizer.add_special_tokens(["<|begin_of_text|>", END[make]])
        begin = ("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))
        template = processors.TemplateProcessing("<|begin_of_text|> $A", special_tokens=[begin])
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    if make == "qwen":
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", END[make]])
        tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ("<think>", "</think>", "<thin")])
    return tokenizer


def content_of(tokenizer: Tokenizer) -> dict[str, Any]:
    return json.loads(tokenizer.to_str())


def list_every_pair(tokenizer: Tokenizer) -> Tokenizer:
    """Write merges as files do that come from tiktoken: all pairs that make a token, tokens in the order of ids."""
    content = content_of(tokenizer)
    vocab = content["model"]["vocab"]
    ordered = sorted((token for token in vocab if len(token) > 1), key=vocab.__getitem__)
    pairs = [(token[:end], token[end:]) for token in ordered for end in range(1, len(token))]
    content["model"]["merges"] = [pair for pair in pairs if pair[0] in vocab and pair[1] in vocab]
    return Tokenizer.from_str(json.dumps(content))


def save_model(folder: Path, make: str, documents: Iterable[str], **changes: Any) -> Tokenizer:
    """Save a tiny model of random weights as transformers does, its tokenizer beside it, as on the hub."""
    tokenizer = make_tokenizer(make, documents)
    end, padded = tokenizer.token_to_id(END[make]), tokenizer.get_vocab_size() + 5
    shard = changes.pop("max_shard_size", "1GB")
    dtype = changes.pop("save_dtype", torch.float32)
    model = _CLASSES[make](_config(make, vocab_size=padded, eos_token_id=end, bos_token_id=end, **changes))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter + 0.2 * torch.randn(parameter.shape, generator=generator))
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END[make]}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return tokenizer


def _config(make: str, **fields: Any) -> PretrainedConfig:
    if make == "gpt2":
        return GPT2Config(**({"n_positions": 64, "n_layer": 2, "n_head": 2, "n_embd": 32} | fields))
    shape = {
        "max_position_embeddings": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "head_dim": 16,
    }
    return (Qwen3Config if make == "qwen" else LlamaConfig)(**(shape | fields))
