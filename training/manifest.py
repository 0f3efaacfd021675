"""What a checkpoint folder says of itself, readable without torch.

A checkpoint folder is a Hugging Face model folder (`config.json`, `model.safetensors`, `tokenizer.json` and its
`tokenizer_config.json`) with a `manifest.json` that names every file's hash. `docs/checkpoint-format.md` tells the
whole format.
"""

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from training.errors import CheckpointError
from training.settings import Settings

FORMAT_VERSION = 1
WEIGHTS, CONFIG, TOKENIZER, MANIFEST = "model.safetensors", "config.json", "tokenizer.json", "manifest.json"


class Manifest(Settings, frozen=True, kw_only=True):
    """The content of `manifest.json`."""

    format_version: int
    files: dict[str, str]
    """File name → sha256 in hex."""
    context_length: int
    vocab_size: int
    num_parameters: int
    dtype: str
    corpus: str
    corpus_sha256: str
    step: int
    tokens: int
    """Tokens trained on."""
    validation_loss: float | None
    """Mean nats a character over the whole validation split."""
    seed: int
    train_config: dict[str, Any]
    """The settings of the run, as `TrainConfig` reads them."""
    versions: dict[str, str]

    @property
    def revision(self) -> str:
        """Name of exactly these weights."""
        return f"sha256:{self.files[WEIGHTS]}"


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def resolve_checkpoint(path: Path) -> Path:
    """Return the checkpoint folder that `path` means: itself, or the one inside a run's folder.

    A run that died between the two renames that replace its checkpoint left the former one aside: that is returned.

    Raises:
        CheckpointError: there is none.
    """
    candidates = (path, path / "checkpoint")
    for folder in (*candidates, *map(former, candidates)):
        if (folder / MANIFEST).is_file():
            return folder
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder; make a checkpoint with 'minigpt train', or correct the path")
    raise CheckpointError(f"{path}: no {MANIFEST} in it, so this is no minigpt checkpoint")


def former(folder: Path) -> Path:
    """Return where a checkpoint stands aside while its successor takes its place."""
    return folder.with_name(f".{folder.name}.former")


def read_manifest(folder: Path, *, verify: bool = True) -> Manifest:
    """Read and check `manifest.json` and, with `verify`, the hash of each file that it names.

    Raises:
        CheckpointError: missing, truncated, altered or foreign; the message names the file and the reason.
    """
    try:
        data = msgspec.json.decode((folder / MANIFEST).read_bytes())
    except OSError as error:
        raise CheckpointError(f"{folder / MANIFEST}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder / MANIFEST}: truncated or no JSON: {error}") from error
    version = data.get("format_version") if isinstance(data, dict) else None
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{folder / MANIFEST}: format version {version!r}; this minigpt reads {FORMAT_VERSION}")
    try:
        manifest = msgspec.convert(data, Manifest)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{folder / MANIFEST}: {error}") from error
    missing = {WEIGHTS, CONFIG, TOKENIZER} - manifest.files.keys()
    if missing:
        raise CheckpointError(f"{folder / MANIFEST}: names no {', '.join(sorted(missing))}")
    if verify:
        _verify(folder, manifest)
    return manifest


def _verify(folder: Path, manifest: Manifest) -> None:
    for name, expected in manifest.files.items():
        if Path(name).name != name:
            raise CheckpointError(f"{folder / MANIFEST}: names '{name}', which is no file of this folder")
        try:
            actual = sha256_of(folder / name)
        except OSError as error:
            raise CheckpointError(f"{folder / name}: {error.strerror}; copy the whole folder again") from error
        if actual != expected:
            raise CheckpointError(
                f"{folder / name}: truncated or altered (sha256 {actual[:12]}…, the manifest says {expected[:12]}…); "
                "copy the whole folder again"
            )
