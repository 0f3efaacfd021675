"""Text to token files: tokenizer trained, splits encoded, kept in the cache until text or settings change."""

import contextlib
import hashlib
import io
import itertools
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np
import numpy.typing as npt

from training.config import DataConfig
from training.data.corpus import Corpus
from training.data.encoding import UINT16, num_processes, open_encoder
from training.errors import CorpusError, TokenizerError
from training.manifest import sha256_of
from training.settings import Settings
from training.tokenizers.base import Tokenizer
from training.tokenizers.loading import load_tokenizer, train_tokenizer

FORMAT_VERSION = 1
ASIDE = ".new-"
ABANDONED_S = 86_400
TRAIN, VALIDATION, TOKENIZER, MANIFEST = "train.bin", "validation.bin", "tokenizer.json", "manifest.json"
MERGE_SAMPLE_BYTES = 2**25
"""Of a longer text the merges are learned from pieces at even distances, about so many bytes of them: learning takes
memory for every word that is different."""


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
    recipe = config.replace(corpus=corpus.sha256, memory_mb=DataConfig().memory_mb)  # the ids do not depend on it
    key = hashlib.sha256(msgspec.json.encode((FORMAT_VERSION, recipe))).hexdigest()[:16]
    folder = cache_dir / "prepared" / key
    if cached := _open(folder, recipe):
        return cached
    _require_split(config, corpus)
    tokenizer = _train_tokenizer(config, corpus)
    try:
        _make(folder, recipe, config, corpus, tokenizer)
    except OSError as error:
        raise CorpusError(f"{cache_dir}: cannot write: {error.strerror}: set MINIGPT_CACHE to a folder") from error
    return _open(folder, recipe) or encode_splits(config, corpus, tokenizer)


def encode_splits(config: DataConfig, corpus: Corpus, tokenizer: Tokenizer) -> PreparedData:
    """Split `corpus` and encode both parts with `tokenizer`, in memory: two bytes a token.

    Raises:
        CorpusError: a text too short to split.
    """
    _require_split(config, corpus)
    train, validation = io.BytesIO(), io.BytesIO()
    num_chars, num_bytes = _encode_splits(config, corpus, tokenizer, train, validation)
    return PreparedData(
        tokenizer=tokenizer,
        corpus_sha256=corpus.sha256,
        train=np.frombuffer(train.getbuffer(), UINT16),
        validation=np.frombuffer(validation.getbuffer(), UINT16),
        validation_chars=num_chars,
        validation_bytes=num_bytes,
    )


def _require_split(config: DataConfig, corpus: Corpus) -> None:
    if corpus.num_train_chars(config.validation_fraction) == 0:
        raise CorpusError(
            f"{corpus.name}: too short to hold out {config.validation_fraction:g} of it: use a longer text"
        )


def _train_tokenizer(config: DataConfig, corpus: Corpus) -> Tokenizer:
    """Take the characters of the whole text, as nanoGPT does, but the merges of the training split only."""
    what = "making the vocabulary"
    if config.tokenizer == "char":
        pieces = corpus.pieces(what)
    else:
        train = (piece for piece in corpus.split(config.validation_fraction, what) if not piece.held_out)
        pieces = itertools.islice(train, 0, None, max(1, round(corpus.num_bytes / MERGE_SAMPLE_BYTES)))
    return train_tokenizer(config.tokenizer, (piece.text for piece in pieces), config.vocab_size)


def _encode_splits(
    config: DataConfig, corpus: Corpus, tokenizer: Tokenizer, train: BinaryIO, validation: BinaryIO
) -> tuple[int, int]:
    """Write the ids of both splits; return how many characters and bytes are held out."""
    num_chars = num_bytes = 0
    with open_encoder(tokenizer, num_processes(corpus.num_bytes, config.memory_mb)) as encode:
        splits = itertools.groupby(corpus.split(config.validation_fraction, "encoding"), lambda piece: piece.held_out)
        for is_held_out, pieces in splits:
            for part in encode(pieces):
                (validation if is_held_out else train).write(part.ids)
                num_chars += is_held_out * part.num_chars
                num_bytes += is_held_out * part.num_bytes
    return num_chars, num_bytes


def _make(folder: Path, recipe: DataConfig, config: DataConfig, corpus: Corpus, tokenizer: Tokenizer) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder.parent)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=ASIDE) as aside:
        new = Path(aside) / folder.name
        new.mkdir()
        with (new / TRAIN).open("wb") as train, (new / VALIDATION).open("wb") as validation:
            num_chars, num_bytes = _encode_splits(config, corpus, tokenizer, train, validation)
        tokenizer.save(new / TOKENIZER)
        manifest = PreparedManifest(
            format_version=FORMAT_VERSION,
            recipe=recipe,
            files={name: sha256_of(new / name) for name in (TRAIN, VALIDATION, TOKENIZER)},
            validation_chars=num_chars,
            validation_bytes=num_bytes,
        )
        (new / MANIFEST).write_bytes(msgspec.json.encode(manifest))
        if _open(folder, recipe):
            return  # another run was quicker
        shutil.rmtree(folder, ignore_errors=True)  # it is damaged
        with contextlib.suppress(OSError):  # another run was quicker even now
            new.rename(folder)


def _remove_abandoned(cache: Path) -> None:
    """Remove what runs that were killed half-way have left."""
    for aside in cache.glob(f"{ASIDE}*"):
        with contextlib.suppress(FileNotFoundError):  # another run has removed it
            if time.time() - aside.stat().st_mtime > ABANDONED_S:
                shutil.rmtree(aside)


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
