"""Characters as tokens: the smallest vocabulary, and the one that published Tiny-Shakespeare losses are about."""

from collections.abc import Iterable
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from training.errors import TokenizerError
from training.tokenizers.base import END_OF_TEXT, UNKNOWN
from training.tokenizers.table import TableTokenizer, without_surrogates

MAX_CHARACTERS = 2**16 - 2
"""Ids are uint16, and two of them are `UNKNOWN` and `END_OF_TEXT`."""
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
NUM_CODE_POINTS = 0x110000


class CharTokenizer(TableTokenizer):
    """One id for each character of the corpus in code point order, then `UNKNOWN`, then `END_OF_TEXT`.

    Args:
        characters: Distinct characters, in any order.

    Raises:
        TokenizerError: too many of them, or an entry that is not one character.
    """

    kind = "char"

    def __init__(self, characters: Iterable[str]) -> None:
        self._characters = sorted(characters)
        if len(self._characters) > MAX_CHARACTERS:
            count = len(self._characters)
            raise TokenizerError(
                f"{count:,} distinct characters: a char vocabulary holds {MAX_CHARACTERS:,}; use data.tokenizer=bpe"
            )
        if any(len(entry) != 1 for entry in self._characters):
            raise TokenizerError("a char vocabulary holds single characters only")
        super().__init__([character.encode() for character in (*self._characters, REPLACEMENT)])
        self._ids = np.full(NUM_CODE_POINTS, self._unknown_id, np.uint16)
        self._ids[[ord(character) for character in self._characters]] = np.arange(len(self._characters))

    @classmethod
    def train(cls, texts: Iterable[str]) -> Self:
        """Take every character that occurs in `texts`."""
        seen = np.zeros(NUM_CODE_POINTS, np.bool_)
        for text in texts:
            seen[_code_points(text)] = True
        return cls(map(chr, np.flatnonzero(seen)))

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of `UNKNOWN` and `END_OF_TEXT`."""
        return super().special_ids | {self._unknown_id}

    def encode_array(self, text: str) -> npt.NDArray[np.uint16]:
        """Return one id a character; a character that the vocabulary lacks is `UNKNOWN`."""
        return self._ids[_code_points(text)]

    @property
    def _unknown_id(self) -> int:
        return len(self._characters)

    def _pre_tokenizer(self) -> dict[str, Any]:
        return {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}

    def _decoder(self) -> dict[str, Any]:
        show_unknown = {"type": "Replace", "pattern": {"String": UNKNOWN}, "content": REPLACEMENT}
        return {"type": "Sequence", "decoders": [show_unknown, {"type": "Fuse"}]}

    def _model(self) -> dict[str, Any]:
        tokens = (*self._characters, UNKNOWN, END_OF_TEXT)
        return {
            "type": "WordLevel",
            "vocab": {token: token_id for token_id, token in enumerate(tokens)},
            "unk_token": UNKNOWN,
        }


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(without_surrogates(text).encode("utf-32-le"), "<u4")
