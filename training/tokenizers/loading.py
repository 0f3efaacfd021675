"""Making a tokenizer: from texts, or from the file that `save` wrote."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import msgspec

from training.errors import TokenizerError
from training.tokenizers.base import END_OF_TEXT, TOKENIZER_CONFIG, UNKNOWN, Tokenizer
from training.tokenizers.bpe import BpeTokenizer
from training.tokenizers.char import CharTokenizer
from training.tokenizers.imported import ImportedTokenizer
from training.tokenizers.table import TableTokenizer


class _Model(msgspec.Struct, frozen=True):
    type: Literal["WordLevel", "BPE"]
    vocab: dict[str, int]
    merges: list[tuple[str, str]] = []


class _Config(msgspec.Struct, frozen=True):
    minigpt_end_of_text_id: int | None = None
    """Of an imported tokenizer (see `ImportedTokenizer.transformers_config`)."""


def train_tokenizer(kind: Literal["char", "bpe"], texts: Iterable[str], vocab_size: int | None = None) -> Tokenizer:
    """Make a vocabulary for `texts`.

    Args:
        kind: `char` or `bpe`.
        texts: Documents.
        vocab_size: Entries of a `bpe` vocabulary, special tokens included; `None` for `char`.

    Raises:
        TokenizerError: too many characters for `char`, or too short a text for `vocab_size`.
    """
    if kind == "char":
        return CharTokenizer.train(texts)
    if vocab_size is None:
        raise TokenizerError("a bpe vocabulary needs its size: --set data.vocab_size=1024")
    return BpeTokenizer.train(texts, vocab_size)


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a `tokenizer.json` that `save` wrote, and the `tokenizer_config.json` beside it.

    Raises:
        TokenizerError: missing, damaged, or a tokenizer of another make; the message names the file and the reason.
    """
    try:
        content = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        if (end_of_text_id := _imported_end_of_text(path.with_name(TOKENIZER_CONFIG))) is not None:
            return ImportedTokenizer(content, end_of_text_id)
        tokenizer = _build(msgspec.convert(content.get("model"), _Model))
    except OSError as error:
        raise TokenizerError(f"{path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, TokenizerError) as error:
        raise TokenizerError(f"{path}: not a tokenizer of minigpt: {error}") from error
    expected = tokenizer.content()
    if foreign := sorted(key for key in content.keys() | expected.keys() if content.get(key) != expected.get(key)):
        raise TokenizerError(f"{path}: not a tokenizer of minigpt: other {', '.join(foreign)} than it writes")
    return tokenizer


def _build(model: _Model) -> TableTokenizer:
    if model.type == "BPE":
        return BpeTokenizer.from_file_merges(model.merges)
    return CharTokenizer(model.vocab.keys() - {UNKNOWN, END_OF_TEXT})


def _imported_end_of_text(config: Path) -> int | None:
    return msgspec.json.decode(config.read_bytes(), type=_Config).minigpt_end_of_text_id if config.exists() else None
