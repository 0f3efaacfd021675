"""What the tokenizers share: a table of tokens as bytes; and, of those made here, the Hugging Face file around it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
import numpy.typing as npt

from training.errors import TokenizerError
from training.tokenizers.base import END_OF_TEXT


class BytesTokenizer(ABC):
    """A tokenizer that knows the bytes of each id.

    Args:
        tokens: UTF-8 bytes of every token; of special ones none.
    """

    kind: ClassVar[str]

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self._tokens = tuple(tokens)

    @property
    def vocab_size(self) -> int:
        """Entries, special tokens included."""
        return len(self._tokens)

    @property
    @abstractmethod
    def end_of_text_id(self) -> int:
        """Id of what ends a text."""

    @property
    @abstractmethod
    def special_ids(self) -> frozenset[int]:
        """Ids that stand for no text."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`; what looks like a special token is plain text."""
        return self.encode_array(text).tolist()

    @abstractmethod
    def encode_array(self, text: str) -> npt.NDArray[np.uint16]:
        """Return the same ids as `encode`, as an array."""

    def token_bytes(self, token_id: int) -> bytes:
        """Return the UTF-8 bytes of one token; empty for `END_OF_TEXT`.

        Raises:
            TokenizerError: no such id.
        """
        if not 0 <= token_id < self.vocab_size:
            raise TokenizerError(f"token id {token_id}: this vocabulary has the ids 0 to {self.vocab_size - 1}")
        return self._tokens[token_id]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of `token_ids`; bytes that are no UTF-8 become U+FFFD.

        Raises:
            TokenizerError: no such id.
        """
        return b"".join(map(self.token_bytes, token_ids)).decode("utf-8", "replace")

    def save(self, path: Path) -> None:
        """Write a Hugging Face `tokenizer.json`; the same tokenizer always gives the same bytes."""
        aside = path.with_name(f".{path.name}.new")
        aside.write_bytes(msgspec.json.encode(self.content()))
        aside.replace(path)

    @abstractmethod
    def content(self) -> dict[str, Any]:
        """Return what `save` writes."""

    @abstractmethod
    def transformers_config(self) -> dict[str, Any]:
        """Return what `tokenizer_config.json` says."""


class TableTokenizer(BytesTokenizer):
    """A tokenizer made here: its ids count through a table of bytes; the last id is `END_OF_TEXT`.

    Args:
        tokens: UTF-8 bytes of every token before `END_OF_TEXT`.
    """

    def __init__(self, tokens: Sequence[bytes]) -> None:
        super().__init__((*tokens, b""))

    @property
    def end_of_text_id(self) -> int:
        """Id of `END_OF_TEXT`."""
        return len(self._tokens) - 1

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that stand for no text."""
        return frozenset({self.end_of_text_id})

    def content(self) -> dict[str, Any]:
        """Return what `save` writes, field for field as the `tokenizers` library would."""
        end_of_text = {"id": self.end_of_text_id, "content": END_OF_TEXT, "special": True}
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [end_of_text | flags],
            "normalizer": None,
            "pre_tokenizer": self._pre_tokenizer(),
            "post_processor": None,
            "decoder": self._decoder(),
            "model": self._model(),
        }

    def transformers_config(self) -> dict[str, Any]:
        """Return what `tokenizer_config.json` says."""
        return transformers_config(END_OF_TEXT, END_OF_TEXT)

    @abstractmethod
    def _pre_tokenizer(self) -> dict[str, Any]: ...

    @abstractmethod
    def _decoder(self) -> dict[str, Any]: ...

    @abstractmethod
    def _model(self) -> dict[str, Any]: ...


def transformers_config(begin: str, end: str) -> dict[str, Any]:
    """Return what `tokenizer_config.json` says of the tokens that begin and end a text."""
    # Without a class transformers takes the tokenizer of the real Qwen, which drops blanks of ours.
    return {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end, "bos_token": begin}


def without_surrogates(text: str) -> str:
    """Return `text` with surrogate pairs joined and lone surrogates, which UTF-8 cannot hold, as U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
