"""What may come next spells texts that match, and no other; what cannot be compiled or spelt is refused, with why."""

import contextlib
import json
import random
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.grammar import Grammars, Matcher
from service.grammar_errors import GrammarError
from service.protocol import Grammar
from training.tokenizers.base import Tokenizer
from training.tokenizers.bpe import BpeTokenizer
from training.tokenizers.char import CharTokenizer

MERGED = BpeTokenizer([(b"a", b"b"), (b"ab", b"ab"), (b"\xc3", b"\xa9"), (b"1", b"2"), (b'"', b"a"), (b"}", b"}")])
CHARS = CharTokenizer('abc é12{}[]",:.')
GRAMMARS = {MERGED: Grammars(MERGED), CHARS: Grammars(CHARS)}

atoms = st.sampled_from(
    ["a", "b", "é", "ab", "[ab]", "[^b]", "[0-9]", "\\s", ".", "1", "x", "/", "\n", "\\.", "\\/", "&", "~"]
)
regexes = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"(?:{'|'.join(parts)})"),
        st.tuples(inner, st.sampled_from(["?", "*", "+", "{2}", "{1,3}"])).map(lambda part: f"(?:{part[0]}){part[1]}"),
    ),
    max_leaves=6,
)


def regex(source: str) -> Grammar:
    return Grammar(kind="regex", source=source)


def schema(source: dict[str, Any]) -> Grammar:
    return Grammar(kind="json_schema", source=json.dumps(source))


def walk(matcher: Matcher, tokenizer: Tokenizer, rng: random.Random, most: int = 60) -> list[int] | None:
    """Draw allowed tokens until the text ends; None if it does not."""
    ids: list[int] = []
    while len(ids) < most:
        allowed = matcher.allowed().nonzero()[0].tolist()
        assert allowed, tokenizer.decode(ids)
        token_id = rng.choice(allowed)
        matcher.take([token_id])
        if token_id == tokenizer.end_of_text_id:
            return ids
        ids.append(token_id)
        if matcher.is_complete:
            return ids
    return None


@given(source=regexes, tokenizer=st.sampled_from([MERGED, CHARS]), seed=st.integers(0, 2**32))
def test_a_text_of_allowed_tokens_matches_and_never_comes_to_a_dead_end(
    source: str, tokenizer: Tokenizer, seed: int
) -> None:
    try:
        matcher = GRAMMARS[tokenizer].start(regex(source))
    except GrammarError:
        assert tokenizer is CHARS  # which lacks characters; with a token for each byte everything can be spelt
        return
    ids = walk(matcher, tokenizer, random.Random(seed))
    if ids is not None:
        assert re.fullmatch(source, tokenizer.decode(ids))


@given(source=regexes, seed=st.integers(0, 2**32), at=st.integers(0, 60))
def test_going_on_from_the_tokens_alone_allows_the_same(source: str, seed: int, at: int) -> None:
    grammars, rng = GRAMMARS[MERGED], random.Random(seed)
    matcher = grammars.start(regex(source))
    ids: list[int] = []
    for _ in range(at):
        token_id = rng.choice(matcher.allowed().nonzero()[0].tolist())
        if token_id == MERGED.end_of_text_id or matcher.is_complete:
            break
        ids.append(token_id)
        matcher.take([token_id])
    again = grammars.start(regex(source))
    again.take(ids)
    assert again.is_complete == matcher.is_complete
    assert again.allowed().tolist() == matcher.allowed().tolist()


def test_the_end_of_the_text_is_allowed_exactly_where_it_matches() -> None:
    end = CHARS.end_of_text_id
    matcher = GRAMMARS[CHARS].start(regex("ab*c?"))
    assert not matcher.allowed()[end]
    matcher.take(CHARS.encode("ab"))
    assert matcher.allowed()[end]
    assert not matcher.is_complete
    matcher.take(CHARS.encode("c"))
    assert matcher.is_complete


def test_special_tokens_are_never_allowed() -> None:
    special = sorted(CHARS.special_ids - {CHARS.end_of_text_id})
    assert not GRAMMARS[CHARS].start(regex("(?s:.*)")).allowed()[special].any()


def test_a_branch_that_the_vocabulary_cannot_spell_is_not_entered() -> None:
    allowed = GRAMMARS[CHARS].start(regex("ax|b1")).allowed()
    assert CHARS.decode(allowed.nonzero()[0].tolist()) == "b"


def test_a_token_that_is_not_allowed_leads_to_a_dead_end() -> None:
    matcher = GRAMMARS[CHARS].start(regex("a+"))
    matcher.take(CHARS.encode("b"))
    assert not matcher.allowed().any()
    assert matcher.dead_end == "the grammar allows nothing that this model's vocabulary can spell"
    assert not matcher.is_complete


def test_what_takes_too_much_computing_comes_to_a_dead_end_that_says_so() -> None:
    matcher, rng = GRAMMARS[MERGED].start(regex(r"(\w{1,300}é?){1,300}")), random.Random(0)
    for _ in range(300):
        allowed = matcher.allowed().nonzero()[0].tolist()
        if matcher.dead_end:
            break
        matcher.take([rng.choice([token_id for token_id in allowed if token_id != MERGED.end_of_text_id])])
    assert matcher.dead_end == "the grammar takes too much computing"


PERSON = {
    "type": "object",
    "properties": {
        "a": {"type": "integer", "minimum": 0, "maximum": 300},
        "b": {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 2},
        "c": {"anyOf": [{"type": "null"}, {"enum": ["b", 12, {"a": [1]}]}]},
    },
    "required": ["a", "c"],
    "additionalProperties": False,
}


def fulfils_person(value: dict[str, Any]) -> bool:
    strings = value.get("b", [])
    return (
        {"a", "c"} <= value.keys() <= {"a", "b", "c"}
        and isinstance(value["a"], int)
        and 0 <= value["a"] <= 300
        and len(strings) <= 2
        and all(isinstance(text, str) and len(text) <= 3 for text in strings)
        and value["c"] in (None, "b", 12, {"a": [1]})
    )


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32))
def test_a_text_of_allowed_tokens_fulfils_the_schema(seed: int) -> None:
    ids = walk(GRAMMARS[MERGED].start(schema(PERSON)), MERGED, random.Random(seed), most=300)
    assert ids is not None  # whitespace has a bound
    assert fulfils_person(json.loads(MERGED.decode(ids)))


@pytest.mark.parametrize(
    ("grammar", "told"),
    [
        (regex("ab(c"), "regex: unclosed group, at character 3"),
        (regex("a/b\n[2-1]"), "regex: invalid character class range, the start must be <= the end, at character 6"),
        (regex("a\\"), "regex: a backslash that escapes nothing, at character 2"),
        (regex("(?=a)b"), "regex: look-around, including look-ahead and look-behind, is not supported, at character 1"),
        (regex("\\bab"), "regex: lookarounds not supported yet"),
        (regex("(" * 300 + ")" * 300), "regex: exceed the maximum number of nested parentheses/brackets (250), at"),
        (schema({"type": "tree"}), "json_schema: invalid type, at $"),
        (schema({"properties": {"a": {"type": "secret"}}}), "json_schema: invalid type, at $.properties.a"),
        (
            schema({"items": {"anyOf": [{"type": "string"}, {"not": {}}]}}),
            "json_schema: unimplemented keys: not, at $.items.anyOf[1]",
        ),
        (
            schema({"$defs": {"n": {}}, "properties": {"n": {"$ref": "#/$defs/n"}, "!": {"$ref": "#/secret"}}}),
            "json_schema: pointer does not exist, at $.properties[1]",
        ),
        (schema({"pattern": "("}), "json_schema: unclosed group, at $"),
        (schema({"minimum": 2, "maximum": 1, "type": "integer"}), "json_schema: unsatisfiable schema, at $"),
        (schema({"$ref": "http://secret/x"}), "json_schema: resource is not present in a registry"),
        (schema({"const": float("inf")}), "json_schema: expected value, at $"),
        (regex("[^\\s\\S]"), "regex: the grammar allows nothing that this model's vocabulary can spell"),
        (
            schema({"$defs": {"n": {"anyOf": [{"$ref": "#/$defs/n"}]}}, "$ref": "#/$defs/n"}),
            "json_schema: the grammar allows nothing that this model's vocabulary can spell",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_compiled_is_refused_with_the_reason_and_the_place(grammar: Grammar, told: str) -> None:
    with pytest.raises(GrammarError) as refused:
        GRAMMARS[MERGED].start(grammar)
    assert str(refused.value).startswith(told)
    assert "\n" not in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_schema_that_is_nested_without_end_is_refused() -> None:
    nested: dict[str, Any] = {"type": "string"}
    for _ in range(200):
        nested = {"items": nested}
    with pytest.raises(GrammarError, match="json_schema: recursion limit exceeded"):
        GRAMMARS[MERGED].start(schema(nested))


@pytest.mark.parametrize(
    "grammar", [regex("[3-9]+"), regex("a{3}x"), schema({"type": "boolean"}), schema({"const": {"x": 1}})]
)
def test_what_the_vocabulary_cannot_spell_is_refused(grammar: Grammar) -> None:
    with pytest.raises(GrammarError, match="vocabulary can spell"):
        GRAMMARS[CHARS].start(grammar)


@given(source=st.text(alphabet="ab()[]{}|*+?.^$\\-,1/\n&~é<>%", max_size=12))
def test_any_expression_is_compiled_or_refused(source: str) -> None:
    with contextlib.suppress(GrammarError):
        GRAMMARS[CHARS].start(regex(source)).allowed()


values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["string", "object", "a", "(", "#/x", "date"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "items", "properties", "enum", "anyOf", "$ref", "pattern", "format", "minLength", "x y"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@given(source=st.dictionaries(st.sampled_from(["type", "items", "properties", "anyOf", "$defs", "const"]), values))
def test_any_schema_is_compiled_or_refused(source: dict[str, Any]) -> None:
    with contextlib.suppress(GrammarError):
        GRAMMARS[MERGED].start(schema(source)).allowed()
