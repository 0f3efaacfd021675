"""What every tokenizer does."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

END_OF_TEXT = "<|endoftext|>"
"""Stands between documents; a model that draws it has ended its text."""
TOKENIZER_CONFIG = "tokenizer_config.json"
"""Stands beside a `tokenizer.json`."""
UNKNOWN = "<|unk|>"
"""What a character-level vocabulary writes for a character that it lacks; shown as U+FFFD."""


class Tokenizer(Protocol):
    """Text to token ids and back. Lossless: `decode(encode(text)) == text` for text within the vocabulary."""

    @property
    def kind(self) -> str:
        """`char` or `bpe`."""

    @property
    def vocab_size(self) -> int:
        """Entries, special tokens included; ids are 0 … vocab_size - 1."""

    @property
    def end_of_text_id(self) -> int:
        """Id of `END_OF_TEXT`, or of what an imported vocabulary has in its place; `encode` never returns it."""

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that stand for no text: never made from a user's text, never (but `end_of_text_id`) sampled."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`; what looks like a special token is plain text."""

    def encode_array(self, text: str) -> npt.NDArray[np.uint16]:
        """Return the ids of a piece of a corpus: those of `encode`, without what some vocabularies put first."""

    def token_bytes(self, token_id: int) -> bytes:
        """Return the UTF-8 bytes of one token, possibly part of a character; empty for `END_OF_TEXT`.

        Raises:
            TokenizerError: no such id.
        """

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of `token_ids`; bytes that are no UTF-8 become U+FFFD.

        Raises:
            TokenizerError: no such id.
        """

    def save(self, path: Path) -> None:
        """Write a Hugging Face `tokenizer.json` to `path`."""

    def transformers_config(self) -> dict[str, Any]:
        """Return what `tokenizer_config.json` says."""
