"""Text to token files: tokenizer trained, splits encoded, kept in the cache until text or settings change."""

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from training.config import DataConfig
from training.data.corpus import Corpus
from training.errors import CorpusError, TokenizerError
from training.manifest import sha256_of
from training.settings import Settings
from training.tokenizers.base import Tokenizer
from training.tokenizers.loading import load_tokenizer, train_tokenizer

FORMAT_VERSION = 1
TRAIN, VALIDATION, TOKENIZER, MANIFEST = "train.bin", "validation.bin", "tokenizer.json", "manifest.json"
UINT16 = "<u2"


class PreparedManifest(Settings, frozen=True, kw_only=True):
    """What a folder of prepared data says of itself."""

    format_version: int
    recipe: DataConfig
    """The settings; in place of the corpus' name the hash of its text."""
    files: dict[str, str]
    """File name → sha256 in hex."""
    validation_chars: int
    validation_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedData:
    """The two splits of a corpus as token ids."""

    tokenizer: Tokenizer
    corpus_sha256: str
    train: npt.NDArray[np.uint16]
    """Ids to train on; `END_OF_TEXT` stands between documents."""
    validation: npt.NDArray[np.uint16]
    """Ids held out."""
    validation_chars: int
    validation_bytes: int
    """Length of the held-out text, to tell a loss per character and per UTF-8 byte."""


def prepare(config: DataConfig, corpus: Corpus, cache_dir: Path) -> PreparedData:
    """Train the tokenizer and encode both splits, or take them from the cache.

    What the cache holds is used only if text, settings and hashes agree; else it is made anew.

    Args:
        config: How text becomes token ids.
        corpus: The text; `config.corpus` is not looked at.
        cache_dir: Where prepared data is kept.

    Raises:
        CorpusError: a text too short to split, or a cache that cannot be written.
        TokenizerError: no such vocabulary can be made of this text.
    """
    recipe = config.replace(corpus=corpus.sha256)
    key = hashlib.sha256(msgspec.json.encode((FORMAT_VERSION, recipe))).hexdigest()[:16]
    folder = cache_dir / "prepared" / key
    if cached := _open(folder, recipe):
        return cached
    prepared = encode_splits(config, corpus, _train_tokenizer(config, corpus))
    try:
        _write(prepared, recipe, folder)
    except OSError as error:
        raise CorpusError(f"{cache_dir}: cannot write: {error.strerror}: set MINIGPT_CACHE to a folder") from error
    return _open(folder, recipe) or prepared


def encode_splits(config: DataConfig, corpus: Corpus, tokenizer: Tokenizer) -> PreparedData:
    """Split `corpus` and encode both parts with `tokenizer`, in memory.

    Raises:
        CorpusError: a text too short to split.
    """
    train, validation = corpus.split(config.validation_fraction)
    if not train or not validation:
        raise CorpusError(
            f"{corpus.name}: too short to hold out {config.validation_fraction:g} of it: use a longer text"
        )
    return PreparedData(
        tokenizer=tokenizer,
        corpus_sha256=corpus.sha256,
        train=_encode(tokenizer, train),
        validation=_encode(tokenizer, validation),
        validation_chars=sum(map(len, validation)),
        validation_bytes=sum(len(document.encode()) for document in validation),
    )


def _train_tokenizer(config: DataConfig, corpus: Corpus) -> Tokenizer:
    """Take the characters of the whole text, as nanoGPT does, but the merges of the training split only."""
    texts = corpus.documents if config.tokenizer == "char" else corpus.split(config.validation_fraction)[0]
    return train_tokenizer(config.tokenizer, texts, config.vocab_size)


def _encode(tokenizer: Tokenizer, documents: Sequence[str]) -> npt.NDArray[np.uint16]:
    border = np.array([tokenizer.end_of_text_id], np.uint16)
    parts = [part for document in documents for part in (border, tokenizer.encode_array(document))]
    return np.concatenate(parts[1:])


def _write(prepared: PreparedData, recipe: DataConfig, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as aside:
        new = Path(aside) / folder.name
        new.mkdir()
        prepared.train.astype(UINT16).tofile(new / TRAIN)
        prepared.validation.astype(UINT16).tofile(new / VALIDATION)
        prepared.tokenizer.save(new / TOKENIZER)
        manifest = PreparedManifest(
            format_version=FORMAT_VERSION,
            recipe=recipe,
            files={name: sha256_of(new / name) for name in (TRAIN, VALIDATION, TOKENIZER)},
            validation_chars=prepared.validation_chars,
            validation_bytes=prepared.validation_bytes,
        )
        (new / MANIFEST).write_bytes(msgspec.json.encode(manifest))
        shutil.rmtree(folder, ignore_errors=True)  # it is damaged, or another run's that holds the same
        with contextlib.suppress(OSError):  # another run was quicker
            new.rename(folder)


def _open(folder: Path, recipe: DataConfig) -> PreparedData | None:
    """Return what stands in `folder`; `None` if anything is missing, altered, or made by another recipe."""
    try:
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=PreparedManifest)
        intact = all(sha256_of(folder / name) == manifest.files.get(name) for name in (TRAIN, VALIDATION, TOKENIZER))
        if not intact or (manifest.format_version, manifest.recipe) != (FORMAT_VERSION, recipe):
            return None
        return PreparedData(
            tokenizer=load_tokenizer(folder / TOKENIZER),
            corpus_sha256=recipe.corpus,
            train=np.memmap(folder / TRAIN, UINT16, "r"),
            validation=np.memmap(folder / VALIDATION, UINT16, "r"),
            validation_chars=manifest.validation_chars,
            validation_bytes=manifest.validation_bytes,
        )
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, TokenizerError):
        return None
