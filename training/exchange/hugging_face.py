"""A model folder of Hugging Face's as a checkpoint of minigpt: GPT-2, and what has the layout of Llama or Qwen3."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from training.checkpoint import GENERATION_CONFIG, load_weights, save_checkpoint
from training.config import BudgetConfig, DataConfig, TrainConfig
from training.errors import CheckpointError, TokenizerError
from training.manifest import CONFIG, MANIFEST, TOKENIZER, WEIGHTS, Manifest
from training.model_config import GPTConfig
from training.models.gpt import GPT
from training.models.layouts import GPT2_MODEL_TYPE, OWN_MODEL_TYPE, from_hf_config, gpt2_weights
from training.tokenizers.base import END_OF_TEXT, TOKENIZER_CONFIG
from training.tokenizers.imported import ImportedTokenizer

WEIGHTS_INDEX = f"{WEIGHTS}.index.json"
GPT2_TOKENIZER = ("vocab.json", "merges.txt")
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_BIASED = {"self_attn": "attention_bias", "mlp": "mlp_bias"}
"""Part of a layer → the field that says whether its products have biases."""
_TOKEN_ROWS = ("model.embed_tokens.weight", "lm_head.weight")
_POSITION_ROWS = "model.embed_positions.weight"


def import_hf(folder: Path, out: Path, *, context_length: int | None = None) -> Manifest:
    """Write the model in `folder` as a checkpoint, once all of it has been read and fits.

    Rows of the embeddings that no token of the vocabulary has are left out.

    Args:
        folder: As `save_pretrained` leaves it, or from the hub.
        out: Where to; must not exist.
        context_length: Positions to keep; None: all.

    Raises:
        CheckpointError: a file is missing or damaged, weights are pickled, or minigpt does not compute such a model.
        TokenizerError: a vocabulary of another make.
    """
    if out.exists():
        raise CheckpointError(f"{out}: is there already; choose another folder with --out")
    if (folder / MANIFEST).exists():
        raise CheckpointError(f"{folder}: a checkpoint of minigpt already; serve it: minigpt serve --model {folder}")
    data = _read_json(folder / CONFIG)
    config = _read_config(data, folder, context_length)
    tokenizer = _read_tokenizer(folder, data)
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{folder}: {TOKENIZER} has {tokenizer.vocab_size} entries, vocab_size of {CONFIG} is {config.vocab_size}"
        )
    config = config.replace(vocab_size=tokenizer.vocab_size)
    model = _make_model(config, dict(_fitting(_read_weights(folder), config, data)), folder)
    settings = TrainConfig(budget=BudgetConfig(steps=1), data=DataConfig(corpus=""), model=config)
    return save_checkpoint(out, model, tokenizer, settings, dtype=model.lm_head.weight.dtype)


def _read_config(data: Mapping[str, Any], folder: Path, context_length: int | None) -> GPTConfig:
    try:
        config = from_hf_config({"model_type": None} if data.get("model_type") == OWN_MODEL_TYPE else data)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}/{error}") from error
    config = cast(GPTConfig, config)
    if context_length is None:
        return config
    if context_length > config.context_length:
        raise CheckpointError(f"--context {context_length}: the model has {config.context_length} positions")
    return config.replace(context_length=context_length)


def _read_tokenizer(folder: Path, data: Mapping[str, Any]) -> ImportedTokenizer:
    try:
        content = _tokenizer_content(folder)
        return ImportedTokenizer.read_new(content, _end_of_text(folder, data, content))
    except TokenizerError as error:
        raise TokenizerError(f"{folder / TOKENIZER}: {error}") from error
    except (LookupError, TypeError, AttributeError) as error:
        raise TokenizerError(f"{folder / TOKENIZER}: a field is missing or wrong: {error}") from error


def _tokenizer_content(folder: Path) -> dict[str, Any]:
    if (folder / TOKENIZER).exists():
        return _read_json(folder / TOKENIZER)
    vocab, merges = (folder / name for name in GPT2_TOKENIZER)
    if not vocab.exists() or not merges.exists():
        raise TokenizerError("is missing: a model without it, or with SentencePiece's tokenizer.model, is not imported")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    try:
        tokenizer = Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
    except Exception as error:  # the library has no class of its own for it
        raise TokenizerError(f"{' and '.join(GPT2_TOKENIZER)} in its place: {error}") from error
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT])
    content: dict[str, Any] = msgspec.json.decode(tokenizer.to_str())
    return content


def _end_of_text(folder: Path, data: Mapping[str, Any], content: Mapping[str, Any]) -> int:
    """Return the id that the folder's files end a text with, the first where they name several."""
    others = (folder / name for name in (GENERATION_CONFIG, TOKENIZER_CONFIG))
    files = [data, *(_read_json(path) for path in others if path.exists())]
    for named in (file.get(field) for file in files for field in ("eos_token_id", "eos_token")):
        first = named[0] if isinstance(named, list) and named else named
        if isinstance(first, int):
            return first
        name = first.get("content") if isinstance(first, dict) else first
        for token in content.get("added_tokens") or ():
            if name is not None and token["content"] == name:
                return int(token["id"])
    raise TokenizerError(f"nothing ends a text: give eos_token_id in {CONFIG}")


def _read_weights(folder: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for name in _weight_files(folder):
        try:
            weights |= safetensors.torch.load_file(folder / name)
        except (OSError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"{folder / name}: {error}; copy the whole folder again") from error
    return weights


def _weight_files(folder: Path) -> Sequence[str]:
    if (folder / WEIGHTS).exists():
        return [WEIGHTS]
    if (folder / WEIGHTS_INDEX).exists():
        weight_map = _read_json(folder / WEIGHTS_INDEX).get("weight_map")
        names = sorted(map(str, weight_map.values())) if isinstance(weight_map, dict) else []
        if names and all(Path(name).name == name for name in names):
            return list(dict.fromkeys(names))
        raise CheckpointError(f"{folder / WEIGHTS_INDEX}: names no files of this folder; copy the whole folder again")
    if pickled := next((path for pattern in PICKLED for path in sorted(folder.glob(pattern))), None):
        raise CheckpointError(
            f"{pickled}: pickled weights only, and reading those runs code; write safetensors where you trust it: "
            "transformers.AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(DIR)"
        )
    raise CheckpointError(f"{folder}: no {WEIGHTS} in it; copy the whole folder")


def _fitting(weights: Mapping[str, Tensor], config: GPTConfig, data: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights under our names: no rows that nothing reads, and zeros for biases that one part lacks."""
    is_gpt2 = data["model_type"] == GPT2_MODEL_TYPE
    for name, tensor in (gpt2_weights(weights) if is_gpt2 else weights).items():
        if name in _TOKEN_ROWS:
            yield name, tensor[: config.vocab_size]
        elif name == _POSITION_ROWS:
            yield name, tensor[: config.context_length]
        elif not name.endswith("rotary_emb.inv_freq"):  # which older files keep
            yield name, tensor
            part = name.removesuffix("_proj.weight").split(".")[-2]
            if config.bias and not is_gpt2 and name.endswith("_proj.weight") and not data.get(_BIASED[part]):
                yield name.replace("weight", "bias"), torch.zeros(tensor.size(0), dtype=tensor.dtype)


def _make_model(config: GPTConfig, weights: dict[str, Tensor], folder: Path) -> GPT:
    with torch.device("meta"):
        model = GPT(config)
    load_weights(model, weights, folder)
    return model


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; copy the whole folder") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: truncated or no JSON: {error}") from error
    return content
