"""Checkpoint folders: write a trained model aside and rename it into place; read one back, or say why not."""

import os
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from training.config import TrainConfig
from training.errors import CheckpointError
from training.manifest import (
    CONFIG,
    FORMAT_VERSION,
    MANIFEST,
    TOKENIZER,
    WEIGHTS,
    Manifest,
    former,
    read_manifest,
    resolve_checkpoint,
    sha256_of,
)
from training.model_card import write_model_card
from training.models.families import AnyModel, make_model
from training.models.layouts import from_hf_config, hf_model_type, to_generation_config, to_hf_config
from training.tokenizers.base import TOKENIZER_CONFIG, Tokenizer
from training.tokenizers.loading import load_tokenizer

GENERATION_CONFIG = "generation_config.json"


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A model with everything needed to use it."""

    model: AnyModel
    tokenizer: Tokenizer
    manifest: Manifest


def save_checkpoint(
    folder: Path,
    model: AnyModel,
    tokenizer: Tokenizer,
    train_config: TrainConfig,
    *,
    dtype: torch.dtype = torch.float32,
    corpus_sha256: str = "",
    step: int = 0,
    tokens: int = 0,
    validation_loss: float | None = None,
) -> Manifest:
    """Write a checkpoint folder; what stood there before is replaced only once the new one is whole.

    Args:
        folder: Where to; its parent is made.
        model: The model.
        tokenizer: Its tokenizer.
        train_config: Settings of the run, kept in the manifest.
        dtype: Of the stored weights.
        corpus_sha256: Hash of the text trained on.
        step: Steps made.
        tokens: Tokens trained on.
        validation_loss: Mean nats a character over the whole validation split.

    Raises:
        CheckpointError: no permission, or no room.
    """
    aside = folder.with_name(f".{folder.name}.new")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        # Named parameters list a tied matrix once, and never carry a compiler's prefix.
        weights = {name: tensor.detach().to(dtype).contiguous() for name, tensor in model.named_parameters()}
        safetensors.torch.save_file(weights, aside / WEIGHTS, metadata={"format": "pt"})
        dtype_name = str(dtype).removeprefix("torch.")
        _write_json(aside / CONFIG, to_hf_config(model.config, dtype_name, tokenizer.end_of_text_id))
        _write_json(aside / GENERATION_CONFIG, to_generation_config(tokenizer.end_of_text_id, tokenizer.special_ids))
        tokenizer.save(aside / TOKENIZER)
        _write_json(aside / TOKENIZER_CONFIG, tokenizer.transformers_config())
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            files={name: sha256_of(aside / name) for name in (WEIGHTS, CONFIG, TOKENIZER, TOKENIZER_CONFIG)},
            context_length=model.state_spec.max_context,
            vocab_size=model.config.vocab_size,
            num_parameters=sum(parameter.numel() for parameter in model.parameters()),
            dtype=dtype_name,
            corpus=train_config.data.corpus,
            corpus_sha256=corpus_sha256,
            step=step,
            tokens=tokens,
            validation_loss=validation_loss,
            seed=train_config.run.seed,
            train_config=msgspec.to_builtins(train_config),
            versions={"python": platform.python_version(), "torch": str(torch.__version__)},
        )
        _write_json(aside / MANIFEST, msgspec.to_builtins(manifest))
        write_model_card(aside, manifest, hf_model_type(model.config))
        (aside / WEIGHTS).chmod((aside / MANIFEST).stat().st_mode)  # safetensors lets only the owner read
        for file in aside.iterdir():
            sync(file)
        _replace(folder, aside)
    except (OSError, safetensors.SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{folder}: cannot write: {reason}; choose another folder with --out") from error
    return read_manifest(folder, verify=False)


def load_checkpoint(path: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Checkpoint:
    """Read and check a checkpoint folder, or the one inside a run's folder.

    Raises:
        CheckpointError: missing, truncated, altered or foreign.
    """
    folder = resolve_checkpoint(path)
    manifest = read_manifest(folder)
    tokenizer = load_tokenizer(folder / TOKENIZER)
    try:
        config = from_hf_config(msgspec.json.decode((folder / CONFIG).read_bytes(), type=dict[str, Any]))
        weights = safetensors.torch.load_file(folder / WEIGHTS, device=device)
    except (safetensors.SafetensorError, msgspec.DecodeError) as error:
        raise CheckpointError(f"{folder}: {error}") from error
    if tokenizer.vocab_size != config.vocab_size:
        raise CheckpointError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} entries, the model {config.vocab_size}"
        )
    with torch.device("meta"):
        model = make_model(config)
    load_weights(model, {name: tensor.to(dtype) for name, tensor in weights.items()}, folder)
    return Checkpoint(model=model.eval(), tokenizer=tokenizer, manifest=manifest)


def load_weights(model: AnyModel, weights: dict[str, Tensor], folder: Path) -> None:
    """Give `model` these weights in place of its own; `folder` names where they are from.

    Raises:
        CheckpointError: names or shapes that are not the model's.
    """
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{folder / WEIGHTS}: does not hold the model of {CONFIG}: {reason}") from error
    tied = {"lm_head.weight"} if model.config.tie_embeddings else set()
    if wrong := sorted({*missing, *unexpected} - tied):
        raise CheckpointError(f"{folder / WEIGHTS}: does not hold the model of {CONFIG}: {', '.join(wrong)}")
    model.tie()


def sync(path: Path) -> None:
    """Have the disk hold the file before its name does: a power cut must not leave the name on half of it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(data), indent=2) + b"\n")


def _replace(folder: Path, aside: Path) -> None:
    """Put `aside` in the place of `folder`; a crash between the two renames leaves one that readers find."""
    shutil.rmtree(former(folder), ignore_errors=True)
    if folder.exists():
        folder.rename(former(folder))
    aside.rename(folder)
    shutil.rmtree(former(folder), ignore_errors=True)
