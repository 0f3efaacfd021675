"""Byte-level BPE of other makes: GPT-2's, Llama 3's, Qwen's, read from their `tokenizer.json` and kept as it is.

There an id says nothing of the order of the merges. tiktoken, which encodes, wants one number for both: it is given
ranks, and a table turns them into ids.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, Self

import msgspec
import numpy as np
import numpy.typing as npt
import tiktoken

from training.errors import TokenizerError
from training.tokenizers.bpe import cut_at_long_blanks
from training.tokenizers.byte_alphabet import to_bytes
from training.tokenizers.merging import Merge, make_ranks, require_same_words
from training.tokenizers.splits import find_split
from training.tokenizers.table import BytesTokenizer, transformers_config, without_surrogates

END_OF_TEXT_KEY = "minigpt_end_of_text_id"
"""Stands in the `tokenizer_config.json` beside an imported `tokenizer.json`, and only there."""
MAX_TRAINABLE = 65_536
"""Entries that ids of 16 bits count, as prepared text has them."""
MAX_VOCAB = 2**20


class AddedToken(msgspec.Struct, frozen=True):
    """A token that stands outside of the merges."""

    id: int
    content: str
    special: bool = False
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False


class Model(msgspec.Struct, frozen=True):
    """The part of the file that merges."""

    type: Literal["BPE"]
    vocab: dict[str, int]
    merges: list[tuple[str, str] | str]
    ignore_merges: bool = False
    byte_fallback: bool = False
    dropout: float | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None


class File(msgspec.Struct, frozen=True):
    """What of a `tokenizer.json` decides about ids."""

    model: Model
    added_tokens: list[AddedToken] = []
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    post_processor: dict[str, Any] | None = None


class ImportedTokenizer(BytesTokenizer):
    """A tokenizer of another make. What its file puts before every text, `encode` puts there too.

    Added tokens that are special have no bytes and are never made from a text; those that are not are text.

    Args:
        content: Of its `tokenizer.json`.
        end_of_text_id: The special token that stands between documents.

    Raises:
        TokenizerError: not byte-level BPE of a make that minigpt knows, or no such special token.
    """

    kind = "bpe"

    def __init__(self, content: Mapping[str, Any], end_of_text_id: int) -> None:
        file = _read(content)
        split = find_split(file.pre_tokenizer)
        if split is None:
            raise TokenizerError("pre_tokenizer: minigpt knows those of GPT-2, Llama 3, Qwen 2 and 3, and SmolLM")
        id_of = _merged_vocab(file)
        super().__init__(_make_table(id_of, file.added_tokens))
        self._content, self._end_of_text_id = dict(content), end_of_text_id
        self._names = {token.id: token.content for token in file.added_tokens}
        self._special_ids = frozenset(id_ for id_, token in enumerate(self._tokens) if not token)
        if end_of_text_id not in self._special_ids or end_of_text_id not in self._names:
            raise TokenizerError(f"token id {end_of_text_id}, which is to end a text, is none of its special tokens")
        ranks = make_ranks(_read_merges(file.model), id_of, whole_words=file.model.ignore_merges)
        self._id_of_rank = np.array([id_of[token] for token in ranks], np.uint32)
        self._encoding = tiktoken.Encoding("imported", pat_str=split.pattern, mergeable_ranks=ranks, special_tokens={})
        self._normalizes = file.normalizer is not None
        self._prefix = _read_prefix(file.post_processor)
        self._written = {token.content: token.id for token in file.added_tokens if not token.special}
        longest_first = sorted(self._written, key=len, reverse=True)
        self._cut = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")

    @classmethod
    def read_new(cls, content: Mapping[str, Any], end_of_text_id: int) -> Self:
        """Read a file for the first time: check, for seconds, that it gives here the ids that it gives there.

        Raises:
            TokenizerError: it does not, or see the class.
        """
        tokenizer, file = cls(content, end_of_text_id), _read(content)
        merges = list(_read_merges(file.model))
        require_same_words(merges, _merged_vocab(file), whole_words=file.model.ignore_merges)
        return tokenizer

    @property
    def end_of_text_id(self) -> int:
        """Id of what ends a text."""
        return self._end_of_text_id

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that stand for no text, those that the file leaves out among them."""
        return self._special_ids

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`; what looks like a special token is plain text."""
        return [*self._prefix, *self._encode(text).tolist()]

    def encode_array(self, text: str) -> npt.NDArray[np.uint16]:
        """Return the ids of a piece of text to train on: those of `encode` without what stands before every text.

        Raises:
            TokenizerError: more entries than 16 bits count.
        """
        if self.vocab_size > MAX_TRAINABLE:
            raise TokenizerError(
                f"this vocabulary of {self.vocab_size:,} entries can be served only: prepared text has ids of 16 bits"
            )
        return self._encode(text).astype(np.uint16)

    def content(self) -> dict[str, Any]:
        """Return the file that it was read from."""
        return self._content

    def transformers_config(self) -> dict[str, Any]:
        """Return what `tokenizer_config.json` says."""
        end = self._names[self._end_of_text_id]
        begin = self._names[self._prefix[0]] if self._prefix else end
        return transformers_config(begin, end) | {END_OF_TEXT_KEY: self._end_of_text_id}

    def _encode(self, text: str) -> npt.NDArray[np.uint32]:
        return np.concatenate([np.empty(0, np.uint32), *self._parts(without_surrogates(text))])

    def _parts(self, text: str) -> Iterator[npt.NDArray[np.uint32]]:
        for part in self._cut.split(text):
            if part in self._written:
                yield np.array([self._written[part]], np.uint32)
                continue
            normal = unicodedata.normalize("NFC", part) if self._normalizes else part
            for segment in cut_at_long_blanks(normal):
                yield self._id_of_rank[self._encoding.encode_to_numpy(segment, disallowed_special=())]


def _read(content: Mapping[str, Any]) -> File:
    try:
        file = msgspec.convert(content, File)
    except msgspec.ValidationError as error:
        raise TokenizerError(f"{error}: minigpt imports byte-level BPE, as of GPT-2, Llama 3 and Qwen") from error
    model = file.model
    if model.byte_fallback:
        raise TokenizerError("model.byte_fallback: a SentencePiece vocabulary; minigpt imports byte-level BPE")
    if model.dropout or model.continuing_subword_prefix or model.end_of_word_suffix:
        raise TokenizerError("model: minigpt knows no dropout, prefix or suffix of words")
    if file.normalizer not in (None, {"type": "NFC"}):
        raise TokenizerError(f"normalizer: {file.normalizer.get('type')!r}; minigpt knows NFC, or none")
    for token in file.added_tokens:
        if not token.special and (token.single_word or token.lstrip or token.rstrip):
            raise TokenizerError(f"added token {token.content!r}: minigpt knows no single_word, lstrip or rstrip")
    return file


def _read_merges(model: Model) -> Iterator[Merge]:
    for merge in model.merges:
        parts = merge.split(" ") if isinstance(merge, str) else merge  # as files before 2024 have them
        if len(parts) != 2:
            raise TokenizerError(f"merge {merge!r}: two tokens are expected")
        yield to_bytes(parts[0]), to_bytes(parts[1])


def _merged_vocab(file: File) -> dict[bytes, int]:
    """Return token → id without the added tokens, which some files list there too."""
    added = {token.content for token in file.added_tokens}
    return {to_bytes(token): id_ for token, id_ in file.model.vocab.items() if token not in added}


def _make_table(id_of: Mapping[bytes, int], added_tokens: Iterable[AddedToken]) -> list[bytes]:
    """Return the bytes of each id: none for special tokens, and for ids that the file leaves out."""
    added = {token.id: b"" if token.special else token.content.encode() for token in added_tokens}
    tokens = added | {id_: token for token, id_ in id_of.items()}
    if len(tokens) != len(added) + len(id_of) or not 0 <= min(tokens) <= max(tokens) < MAX_VOCAB:
        raise TokenizerError(f"ids of its tokens: each must have its own, from 0 to {MAX_VOCAB - 1}")
    return [tokens.get(id_, b"") for id_ in range(max(tokens) + 1)]


def _read_prefix(post_processor: Mapping[str, Any] | None) -> list[int]:
    """Return the ids that are put before every text."""
    match post_processor:
        case None | {"type": "ByteLevel"}:
            return []
        case {"type": "Sequence", "processors": list(processors)}:
            return [id_ for processor in processors for id_ in _read_prefix(processor)]
        case {"type": "TemplateProcessing", "single": [*before, {"Sequence": _}], "special_tokens": dict(special)}:
            names = [part["SpecialToken"]["id"] for part in before]
            return [id_ for name in names for id_ in special[name]["ids"]]
    raise TokenizerError("post_processor: minigpt knows special tokens before a text, none after it")
