"""Texts read piece by piece, so that one larger than memory passes through."""

import codecs
import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from training.errors import CorpusError
from training.tokenizers.borders import last_border

PIECE_BYTES = 2**16
"""Bytes of a piece, unless there is no place to cut for so long."""
DOCUMENT_BORDER = b"\xff"  # occurs in no UTF-8 text

Document = str | Path
"""A text, or the file that holds it."""


class Piece(NamedTuple):
    """Some of a text, never empty: the tokens of a text are those of its pieces, one after the other."""

    text: str
    opens_document: bool
    """Whether another document ends right before it."""
    held_out: bool = False
    """Whether it is of the validation split."""

    @property
    def num_bytes(self) -> int:
        """Length in UTF-8."""
        return len(self.text.encode())


def read_pieces(
    documents: Iterable[Document], listen: Callable[[bytes], object], piece_bytes: int = PIECE_BYTES
) -> Iterator[Piece]:
    """Yield `documents` piece by piece; an empty one leaves nothing.

    Args:
        documents: Texts and files; nothing but a byte order mark is taken from a file.
        listen: Told all bytes of the text, and a byte that occurs in none between documents.
        piece_bytes: About so many bytes make a piece; at least 1.

    Raises:
        CorpusError: a file is not UTF-8.
        OSError: a file cannot be read.
    """
    is_first = True
    for document in documents:
        opens_document = not is_first
        for text in read_texts(document, piece_bytes):
            listen(DOCUMENT_BORDER * opens_document + text.encode())
            yield Piece(text, opens_document)
            is_first = opens_document = False


def read_texts(document: Document, piece_bytes: int = PIECE_BYTES) -> Iterator[str]:
    """Yield one document in texts that may be encoded apart.

    Raises:
        CorpusError: a file is not UTF-8.
        OSError: a file cannot be read.
    """
    if isinstance(document, str):
        yield from _cut(io.BytesIO(document.encode()), b"", 0, piece_bytes)
        return
    with document.open("rb") as file:
        head = file.read(len(codecs.BOM_UTF8))
        data = head.removeprefix(codecs.BOM_UTF8)
        try:
            yield from _cut(file, data, len(head) - len(data), piece_bytes)
        except UnicodeDecodeError as error:
            remedy = "convert it (iconv -t utf-8), or take it out of the corpus"
            raise CorpusError(f"{document}: not UTF-8 at byte {error.start}: {remedy}") from error


def size_bytes(document: Document) -> int:
    """Return the length of a document, byte order mark included.

    Raises:
        OSError: there is no such file.
    """
    return len(document.encode()) if isinstance(document, str) else document.stat().st_size


def _cut(file: BinaryIO, data: bytes, start: int, piece_bytes: int) -> Iterator[str]:
    """Yield the text of `data`, which is the file's from byte `start` on, and of the rest of `file`."""
    while block := file.read(max(piece_bytes, len(data))):  # twice as much where nothing could be cut
        data += block
        text = _decode(data, start, final=False)
        if cut := last_border(text):
            yield text[:cut]
            size = len(text[:cut].encode())
            start, data = start + size, data[size:]
    if data:
        yield _decode(data, start, final=True)


def _decode(data: bytes, start: int, *, final: bool) -> str:
    try:
        return codecs.utf_8_decode(data, "strict", final)[0]
    except UnicodeDecodeError as error:
        error.start += start  # counted from the start of the file
        raise
