"""Byte-level BPE: Hugging Face `tokenizers` learns the merges, tiktoken applies them.

The two agree on every text. tiktoken joins any neighbours whose bytes together are a token, `tokenizers` only the pair
that made this token; but the bytes of a token always go through the same merges, whatever stands around them, so no
other pair of parts of a token is ever left side by side.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import tiktoken

from training.errors import TokenizerError
from training.tokenizers.base import END_OF_TEXT
from training.tokenizers.byte_alphabet import to_bytes, to_characters
from training.tokenizers.splits import GPT2_PATTERN
from training.tokenizers.table import TableTokenizer, without_surrogates

LONG = 100_000
# Unicode's white space: Python's \s also counts four separators that the pattern's \s does not.
LONG_BLANK = re.compile(rf"(?<![^\S\x1c-\x1f])[^\S\x1c-\x1f]{{{LONG},}}+")


class BpeTokenizer(TableTokenizer):
    """Ids 0 to 255 are the bytes, then the merges in the order they were learned, then `END_OF_TEXT`.

    Args:
        merges: Pairs of earlier tokens, each making a new one.

    Raises:
        TokenizerError: a merge of unknown tokens, or one that makes no new token.
    """

    kind = "bpe"

    def __init__(self, merges: Sequence[tuple[bytes, bytes]]) -> None:
        self._merges = tuple(merges)
        ranks = _make_ranks(self._merges)
        super().__init__(tuple(ranks))
        self._encoding = tiktoken.Encoding(
            "minigpt", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: len(ranks)}
        )

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Self:
        """Learn the merges of the most frequent pairs in `texts`.

        Args:
            texts: Documents; no merge reaches from one into the next.
            vocab_size: Entries wanted, the 256 bytes and `END_OF_TEXT` included; 257 to 65536.

        Raises:
            TokenizerError: the texts are too short for so many entries.
        """
        merges = _learn_merges(map(without_surrogates, texts), vocab_size - 257)
        reached = 257 + len(merges)
        if reached < vocab_size:
            raise TokenizerError(
                f"vocab_size = {vocab_size}: this text gives a bpe vocabulary of {reached} entries at most; "
                f"use --set data.vocab_size={reached} or a longer text"
            )
        return cls(merges)

    @classmethod
    def from_file_merges(cls, merges: Iterable[tuple[str, str]]) -> Self:
        """Read merges as a Hugging Face file writes them, one character for each byte."""
        return cls([(to_bytes(left), to_bytes(right)) for left, right in merges])

    def encode_array(self, text: str) -> npt.NDArray[np.uint16]:
        """Return the ids of `text`; what looks like a special token is plain text."""
        segments = cut_at_long_blanks(without_surrogates(text))
        ids = [self._encoding.encode_to_numpy(segment, disallowed_special=()) for segment in segments]
        return np.concatenate(ids).astype(np.uint16)

    def _pre_tokenizer(self) -> dict[str, Any]:
        return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}

    def _decoder(self) -> dict[str, Any]:
        return {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}

    def _model(self) -> dict[str, Any]:
        vocab = {to_characters(token): token_id for token_id, token in enumerate(self._tokens[:-1])}
        return {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab | {END_OF_TEXT: self.end_of_text_id},
            "merges": [[to_characters(left), to_characters(right)] for left, right in self._merges],
        }


def _make_ranks(merges: Sequence[tuple[bytes, bytes]]) -> dict[bytes, int]:
    ranks = {bytes([value]): value for value in range(256)}
    for left, right in merges:
        if left not in ranks or right not in ranks or left + right in ranks:
            raise TokenizerError(f"merge of {left!r} and {right!r}: both must be earlier tokens, and make a new one")
        ranks[left + right] = len(ranks)
    return ranks


def _learn_merges(texts: Iterable[str], count: int) -> list[tuple[bytes, bytes]]:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers  # training only: the gateway's image lacks it

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=256 + count, initial_alphabet=alphabet, show_progress=False)
    learner.train_from_iterator(texts, trainer)
    merges = json.loads(learner.to_str())["model"]["merges"]
    return [(to_bytes(left), to_bytes(right)) for left, right in merges]


def cut_at_long_blanks(text: str) -> Iterator[str]:
    """Cut `text` where the pattern does so anyway: tiktoken fails on a million blanks before a word."""
    start = 0
    for blank in LONG_BLANK.finditer(text) if _may_have_long_blank(text) else ():
        if blank.end() < len(text):
            yield text[start : blank.start()]
            yield text[blank.start() : blank.end() - 1]
            start = blank.end() - 1
    yield text[start:]


def _may_have_long_blank(text: str) -> bool:
    """Look at every half of `LONG`, far quicker than a search: a long blank fills one of them."""
    half = LONG // 2
    return any(text[start : start + half].isspace() for start in range(0, len(text), half))
