"""Where the text comes from: a known corpus, a file, a folder. Nothing but a byte order mark is taken from it."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from training.errors import CorpusError

TINYSHAKESPEARE = "tinyshakespeare"
TINYSHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
TINYSHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
PYDOC_TOPICS = "pydoc-topics"
BYTE_ORDER_MARK = "\ufeff"
DOCUMENT_BORDER = b"\xff"  # occurs in no UTF-8 text
CHOICES = f"a corpus is {TINYSHAKESPEARE}, {PYDOC_TOPICS}, or the path of a readable UTF-8 file or folder"


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """A text in documents, none of them empty."""

    name: str
    """What `load_corpus` finds it by."""
    documents: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Hash of the text; of a single document, that of its UTF-8 bytes."""
        return hashlib.sha256(DOCUMENT_BORDER.join(map(str.encode, self.documents))).hexdigest()

    def split(self, validation_fraction: float) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the documents to train on, and those at the end of the text that are held out.

        The border is nanoGPT's: the first `int((1 - validation_fraction) * num_chars)` characters are trained on. The
        document across it is cut in two.
        """
        # As a fraction, since 1 - 0.9 in floating point is less than 0.1.
        train_share = 1 - Fraction(str(validation_fraction))
        border = int(train_share * sum(map(len, self.documents)))
        train, validation = [], []
        for document in self.documents:
            train.append(document[:border])
            validation.append(document[border:])
            border = max(0, border - len(document))
        return tuple(filter(None, train)), tuple(filter(None, validation))


def load_corpus(name: str, data: Path | None = None, cache_dir: Path | None = None) -> Corpus:
    """Read a corpus.

    Args:
        name: `tinyshakespeare` (downloaded once), `pydoc-topics` (comes with Python), or the path of a UTF-8 file or
            folder. In a folder each file is a document, in the order of the paths; hidden ones and linked folders are
            left out.
        data: Path to read in place of what `name` says.
        cache_dir: Where downloads are kept; `None`: `default_cache_dir()`.

    Raises:
        CorpusError: missing, unreadable, empty, not UTF-8, or not the text expected.
    """
    if data is not None:
        return _read(data)
    if name == TINYSHAKESPEARE:
        return _read(_fetch_tinyshakespeare(cache_dir or default_cache_dir()))
    if name == PYDOC_TOPICS:
        return _load_pydoc_topics()
    return _read(Path(name))


def default_cache_dir() -> Path:
    """Return `$MINIGPT_CACHE`, or the folder that this system has for caches."""
    import pooch

    return Path(os.environ.get("MINIGPT_CACHE") or pooch.os_cache("minigpt"))


def _read(path: Path) -> Corpus:
    try:
        files = list(_visible_files(path)) if path.is_dir() else [path]
        documents = tuple(filter(None, map(_read_document, files)))
    except OSError as error:
        raise CorpusError(f"{error.filename}: {error.strerror}: {CHOICES}") from error
    if not documents:
        raise CorpusError(f"{path}: no text in it: {CHOICES}")
    corpus = Corpus(name=str(path), documents=documents)
    return replace(corpus, name=TINYSHAKESPEARE) if corpus.sha256 == TINYSHAKESPEARE_SHA256 else corpus


def _visible_files(folder: Path) -> Iterator[Path]:
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_file():
            yield entry
        elif entry.is_dir() and not entry.is_symlink():
            yield from _visible_files(entry)


def _read_document(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8").removeprefix(BYTE_ORDER_MARK)
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{path}: not UTF-8 at byte {error.start}: convert it (iconv -t utf-8), or take it out of the corpus"
        ) from error


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
