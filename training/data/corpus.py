"""Where the text comes from: a known corpus, a file, a folder. Nothing but a byte order mark is taken from it."""

import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from training.data.pieces import Document, Piece, read_pieces, read_texts, size_bytes
from training.errors import CorpusError

TINYSHAKESPEARE = "tinyshakespeare"
TINYSHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
TINYSHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
PYDOC_TOPICS = "pydoc-topics"
CHOICES = f"a corpus is {TINYSHAKESPEARE}, {PYDOC_TOPICS}, or the path of a readable UTF-8 file or folder"

Progress = Callable[[str, int, int], None]
"""Told what is done to a text, bytes done and bytes in all."""


def silence(_what: str, _done_bytes: int, _total_bytes: int) -> None:
    """Tell nobody how far it is."""


class _Measures(NamedTuple):
    sha256: str
    num_chars: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A text in documents; those that are files are never in memory as a whole."""

    name: str
    """What `load_corpus` finds it by."""
    documents: tuple[Document, ...]
    progress: Progress = field(default=silence, compare=False, repr=False)
    """Told how far each pass over the text is."""

    @property
    def sha256(self) -> str:
        """Hash of the text; of a single document, that of its UTF-8 bytes."""
        return self._measures.sha256

    @property
    def num_chars(self) -> int:
        """Length of the text."""
        return self._measures.num_chars

    @property
    def num_bytes(self) -> int:
        """Length of the text in UTF-8."""
        return self._measures.num_bytes

    def num_train_chars(self, validation_fraction: float) -> int:
        """Return how many characters are trained on: the first `int((1 - validation_fraction) * num_chars)`.

        Source: nanoGPT's data/shakespeare_char/prepare.py.
        """
        # As a fraction, since 1 - 0.9 in floating point is less than 0.1.
        return int((1 - Fraction(str(validation_fraction))) * self.num_chars)

    def pieces(self, what: str = "reading") -> Iterator[Piece]:
        """Read the whole text once more.

        Args:
            what: For whom `progress` is to tell: what this is done for.

        Raises:
            CorpusError: unreadable, not UTF-8, or changed since it was read first.
        """
        digest = hashlib.sha256()
        yield from self._read(what, digest.update)
        if digest.hexdigest() != self.sha256:
            raise CorpusError(f"{self.name}: changed while it was read: train on a copy of it")

    def split(self, validation_fraction: float, what: str = "reading") -> Iterator[Piece]:
        """Read the whole text once more, what is held out apart: a document across the border is cut in two."""
        left = self.num_train_chars(validation_fraction)
        is_first = True
        for piece in self.pieces(what):
            train, validation = piece.text[:left], piece.text[left:]
            left -= len(train)
            if train:
                yield piece._replace(text=train)
            if validation:
                yield Piece(validation, piece.opens_document and not is_first, held_out=True)
                is_first = False

    @functools.cached_property
    def _measures(self) -> _Measures:
        digest = hashlib.sha256()
        num_chars = num_bytes = 0
        for piece in self._read("reading", digest.update):
            num_chars += len(piece.text)
            num_bytes += piece.num_bytes
        return _Measures(digest.hexdigest(), num_chars, num_bytes)

    def _read(self, what: str, listen: Callable[[bytes], object]) -> Iterator[Piece]:
        try:
            done, total = 0, sum(map(size_bytes, self.documents))
            for piece in read_pieces(self.documents, listen):
                yield piece
                done += piece.num_bytes
                self.progress(what, done, total)
        except OSError as error:
            raise CorpusError(f"{error.filename or self.name}: {error.strerror}: {CHOICES}") from error


def load_corpus(
    name: str, data: Path | None = None, cache_dir: Path | None = None, progress: Progress = silence
) -> Corpus:
    """Find a corpus, and read it once.

    Args:
        name: `tinyshakespeare` (downloaded once), `pydoc-topics` (comes with Python), or the path of a UTF-8 file or
            folder. In a folder each file is a document, in the order of the paths; hidden ones and linked folders are
            left out.
        data: Path to read in place of what `name` says.
        cache_dir: Where downloads are kept; `None`: `default_cache_dir()`.
        progress: Told how far each pass over the text is.

    Raises:
        CorpusError: missing, unreadable, empty, not UTF-8, or not the text expected.
    """
    if data is not None:
        return _open(data, progress)
    if not name:  # of an imported model
        raise CorpusError("no corpus is known of this model: give a text with --data FILE")
    if name == TINYSHAKESPEARE:
        return _open(_fetch_tinyshakespeare(cache_dir or default_cache_dir()), progress)
    if name == PYDOC_TOPICS:
        return _load_pydoc_topics()
    return _open(Path(name), progress)


def default_cache_dir() -> Path:
    """Return `$MINIGPT_CACHE`, or the folder that this system has for caches."""
    import pooch

    return Path(os.environ.get("MINIGPT_CACHE") or pooch.os_cache("minigpt"))


def _open(path: Path, progress: Progress) -> Corpus:
    try:
        files = list(_visible_files(path)) if path.is_dir() else [path]
        documents = tuple(map(_keep_if_gone_once_read, files))
    except OSError as error:
        raise CorpusError(f"{error.filename}: {error.strerror}: {CHOICES}") from error
    corpus = Corpus(name=str(path), documents=documents, progress=progress)
    if not corpus.num_chars:
        raise CorpusError(f"{path}: no text in it: {CHOICES}")
    return replace(corpus, name=TINYSHAKESPEARE) if corpus.sha256 == TINYSHAKESPEARE_SHA256 else corpus


def _keep_if_gone_once_read(path: Path) -> Document:
    """Return the text of a pipe, and any other path as it is."""
    return "".join(read_texts(path)) if path.is_fifo() else path


def _visible_files(folder: Path) -> Iterator[Path]:
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_file():
            yield entry
        elif entry.is_dir() and not entry.is_symlink():
            yield from _visible_files(entry)


def _load_pydoc_topics() -> Corpus:
    from pydoc_data.topics import topics

    return Corpus(name=PYDOC_TOPICS, documents=tuple(topics[key] for key in sorted(topics)))


def _fetch_tinyshakespeare(cache_dir: Path) -> Path:
    import pooch

    try:
        file = pooch.retrieve(
            TINYSHAKESPEARE_URL,
            known_hash=f"sha256:{TINYSHAKESPEARE_SHA256}",
            fname=f"{TINYSHAKESPEARE}.txt",
            path=cache_dir / "corpora",
            downloader=pooch.HTTPDownloader(stream=False),  # it would leave a stream open when it fails
        )
    except (OSError, ValueError) as error:
        raise CorpusError(_explain_download(error, cache_dir)) from error
    return Path(file)


def _explain_download(error: OSError | ValueError, cache_dir: Path) -> str:
    if isinstance(error, PermissionError) or (isinstance(error, OSError) and error.errno):
        return f"{cache_dir}: cannot keep a download: {error.strerror or error}: set MINIGPT_CACHE to a folder"
    # What is left are requests' errors, OSErrors without a number, and pooch's ValueError.
    reason = "cannot be fetched" if isinstance(error, OSError) else "holds another text than expected"
    return f"{TINYSHAKESPEARE_URL}: {reason}: give a text with --data FILE, or --set data.corpus={PYDOC_TOPICS}"
