"""Constrained output: which tokens may come next under a regular expression or a JSON schema.

The library llguidance matches; here is what it must know of a vocabulary, and what keeps it in bounds. Gateway and
engine run this same code, so what the gateway lets pass, the engine can compile.
"""

import json
import re
from collections.abc import Iterable
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper, regex_to_lark

from service.grammar_errors import GrammarError, explain_regex, explain_schema
from service.protocol import Grammar
from training.tokenizers.base import Tokenizer

MAX_KEPT = 64
"""Compiled grammars that are kept: those used last."""
MAX_FORCED_TOKENS = 200
"""Tokens without an alternative at the beginning of a text that are tried before it is let pass."""
_SPACE = "[ ]?"
"""Between the parts of JSON. Where any number of spaces may stand, a small model loves to go on with them."""
_UNFORCED = '%llguidance {"no_forcing": true}\n'
"""Text without an alternative is drawn like any other. The library would write it in the tokenizer's own way, and for
that tokenize all of it at each step, however long it is."""
_OPTIONS = "x-guidance"
"""Where in a schema the library looks for options; they are ours to choose."""
_NO_MATCH = re.compile(r"\A\Z|NoExtension|satisfy the grammar")
"""What the library says where nothing matches; all else that it may say of a matcher is about its limits."""
_TOO_COMPLEX = "the grammar takes too much computing"
_UNSPELLABLE = "the grammar allows nothing that this model's vocabulary can spell"
_LONE_BACKSLASH = re.compile(r"(?<!\\)(?:\\\\)*\\\Z")


class Matcher:
    """How far one text has come in its grammar.

    Args:
        matcher: The library's, at the text's beginning.
        drawable: Ids that a text may have, end of text among them, `(V,)`.
    """

    def __init__(self, matcher: LLMatcher, drawable: npt.NDArray[np.bool_]) -> None:
        self.dead_end: str | None = None
        """Why nothing may come next, once `allowed` has found so."""
        self._matcher = matcher
        self._drawable = drawable

    @property
    def is_complete(self) -> bool:
        """Whether the text matches and nothing may follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Return which ids may come next, `(V,)`: end of text exactly if the text matches, none at a dead end."""
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(mask, count=len(self._drawable), bitorder="little").astype(np.bool_) & self._drawable
        if self._matcher.is_error():
            allowed[:] = False
        if not allowed.any():
            self.dead_end = _UNSPELLABLE if _NO_MATCH.search(self._matcher.get_error()) else _TOO_COMPLEX
        return allowed

    def take(self, token_ids: Iterable[int]) -> None:
        """Go on by `token_ids`; one that is not allowed leads to a dead end."""
        self._matcher.consume_tokens(list(token_ids))

    def copy(self) -> "Matcher":
        """Return another one that goes on from here by itself."""
        return Matcher(self._matcher.deep_copy(), self._drawable)


class Grammars:
    """Compiles grammars for one vocabulary, and keeps the latest.

    Args:
        tokenizer: Of the model.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._compiled = lru_cache(MAX_KEPT)(self._compile)

    def start(self, grammar: Grammar) -> Matcher:
        """Return a matcher at the beginning of a text; a new grammar takes milliseconds.

        Raises:
            GrammarError: it cannot be compiled, or nothing that this vocabulary can spell matches.
        """
        return self._compiled(grammar).copy()

    def _compile(self, grammar: Grammar) -> Matcher:
        compile_ = self._compile_regex if grammar.kind == "regex" else self._compile_schema
        try:
            return compile_(grammar.source)
        except GrammarError as error:
            raise GrammarError(f"{grammar.kind}: {error}") from None

    def _compile_regex(self, regex: str) -> Matcher:
        if _LONE_BACKSLASH.search(regex):
            raise GrammarError(f"a backslash that escapes nothing, at character {len(regex)}")
        lark = f"{_UNFORCED}start: TEXT\nTEXT: /{regex_to_lark(regex, '')}/"
        if self._alphabet is not None:  # then a branch that the vocabulary cannot spell to its end is never entered
            lark += f" & /{self._alphabet}*/"
        matcher = self._match(lark)
        if matcher.is_error():
            raise GrammarError(explain_regex(matcher.get_error(), regex))
        _try_beginning(Matcher(matcher.deep_copy(), self._drawable))
        return Matcher(matcher, self._drawable)

    def _compile_schema(self, source: str) -> Matcher:
        schema = {key: value for key, value in json.loads(source).items() if key != _OPTIONS}
        dense = self._match(_json_lark(schema, whitespace_flexible=False))
        if dense.is_error():
            raise GrammarError(explain_schema(self._complain(schema), schema, self._complain))
        _try_beginning(Matcher(dense, self._drawable))
        return Matcher(self._match(_json_lark(schema, whitespace_pattern=_SPACE)), self._drawable)

    def _complain(self, schema: dict[str, Any]) -> str:
        """Return the library's message about `schema` alone, which does not quote it whole; empty if there is none."""
        try:
            return self._match(LLMatcher.grammar_from_json_schema(json.dumps(schema))).get_error()
        except ValueError as error:
            return str(error)

    def _match(self, grammar: str) -> LLMatcher:
        # So that nobody's grammar takes more than some 10 ms a token, and 10 MB.
        limits = LLParserLimits(max_lexer_states=20_000, step_max_items=20_000, verbose_errors=False)
        return LLMatcher(self._vocabulary, grammar, log_level=0, limits=limits)

    @cached_property
    def _vocabulary(self) -> LLTokenizer:
        return LLTokenizer(TokenizerWrapper(_Vocabulary(self._tokenizer)))

    @cached_property
    def _drawable(self) -> npt.NDArray[np.bool_]:
        drawable = np.ones(self._tokenizer.vocab_size, np.bool_)
        drawable[list(self._tokenizer.special_ids)] = False
        drawable[self._tokenizer.end_of_text_id] = True
        return drawable

    @cached_property
    def _alphabet(self) -> str | None:
        """The characters that tokens can spell, as a class of a regular expression; None: all."""
        special = self._tokenizer.special_ids
        tokens = {self._tokenizer.token_bytes(i) for i in range(self._tokenizer.vocab_size) if i not in special}
        if all(bytes([byte]) in tokens for byte in range(256)):
            return None
        characters = sorted(set().union(*(token.decode() for token in tokens)))
        return "[" + "".join(f"\\x{{{ord(character):x}}}" for character in characters) + "]"


class _Vocabulary:
    """What the library asks of a tokenizer."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.eos_token_id = tokenizer.end_of_text_id
        self.special_token_ids = sorted(tokenizer.special_ids)
        self.tokens = [
            f"<|{token_id}|>".encode() if token_id in tokenizer.special_ids else tokenizer.token_bytes(token_id)
            for token_id in range(tokenizer.vocab_size)
        ]
        self._encode = tokenizer.encode

    def __call__(self, text: bytes) -> list[int]:
        """Return the ids of `text`."""
        return self._encode(text.decode())


def _json_lark(schema: dict[str, Any], **options: object) -> str:
    return f"{_UNFORCED}start: %json " + json.dumps(schema | {_OPTIONS: options})


def _try_beginning(matcher: Matcher) -> None:
    """Follow a text as long as it has no choice.

    Raises:
        GrammarError: it comes to a dead end.
    """
    for _ in range(MAX_FORCED_TOKENS):
        ids = matcher.allowed().nonzero()[0].tolist()
        if matcher.dead_end is not None:
            raise GrammarError(matcher.dead_end)
        if len(ids) > 1 or matcher.is_complete:
            return
        matcher.take(ids)
