"""How byte-level BPE cuts a text into words before it merges, in the makes that minigpt knows.

`tokenizers` runs these patterns on Oniguruma, tiktoken on Rust's fancy-regex: where what tiktoken is given is spelled
otherwise, it matches the same and backtracks less.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

GPT2_PATTERN = r" ?(?:\p{L}+|\p{N}+)|'(?:[sdmt]|ll|ve|re)| ?[^\s\p{L}\p{N}]+|\s++$|\s+(?!\S)|\s"
"""GPT-2's cut, letters first, which is a third quicker than tiktoken's `r50k_base`. Merges never cross a cut."""

_REST = r" ?[^\s\p{L}\p{N}]++[\r\n]*+|\s*[\r\n]|\s++$|\s+(?!\S)|\s"
_WORD = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++"


class Split(msgspec.Struct, frozen=True, kw_only=True):
    """One make."""

    name: str
    """What llama.cpp calls it."""
    pattern: str
    """What tiktoken is given."""


GPT2 = Split(name="gpt-2", pattern=GPT2_PATTERN)
LLAMA3 = Split(name="llama-bpe", pattern=rf"{_WORD}|\p{{N}}{{1,3}}+|{_REST}")
QWEN2 = Split(name="qwen2", pattern=rf"{_WORD}|\p{{N}}|{_REST}")
SMOLLM = Split(
    name="smollm",
    pattern=r"\p{N}|'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?[^\s\p{L}\p{N}]++|\s++(?=\p{N})|\s++$|\s+(?!\S)|\s",
)
_BY_REGEX = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+": LLAMA3,
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+": QWEN2,
}


def find_split(pre_tokenizer: Mapping[str, Any] | None) -> Split | None:
    """Return what a `pre_tokenizer` of a `tokenizer.json` stands for; None if it is of another make."""
    match pre_tokenizer or {}:
        case {"type": "ByteLevel", **rest} if _is_byte_level(rest, use_regex=True):
            return GPT2
        case {"type": "Sequence", "pretokenizers": [first, last]} if last.get("type") == "ByteLevel":
            return _find_pair(first, last)
    return None


def _find_pair(first: Mapping[str, Any], last: Mapping[str, Any]) -> Split | None:
    match first:
        case {"type": "Digits", "individual_digits": True} if _is_byte_level(last, use_regex=True):
            return SMOLLM
        case {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": "Isolated"} if not first.get("invert"):
            return _BY_REGEX.get(regex) if _is_byte_level(last, use_regex=False) else None
    return None


def _is_byte_level(pre_tokenizer: Mapping[str, Any], *, use_regex: bool) -> bool:
    return not pre_tokenizer.get("add_prefix_space", True) and pre_tokenizer.get("use_regex", True) == use_regex
