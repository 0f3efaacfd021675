"""What is wrong with a grammar, in one line that names the place and quotes nothing but names.

The library's messages span lines and repeat the grammar; the reason in them is kept, the rest is not.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import Any

from llguidance import regex_to_lark

from training.errors import MinigptError

_NAME = re.compile(r"[A-Za-z_$][A-Za-z0-9_$-]{0,39}")


class GrammarError(MinigptError):
    """A grammar cannot be compiled, or nothing that a vocabulary can spell matches it."""


def explain_regex(message: str, regex: str) -> str:
    """Return what the library's `message` says of `regex`, and at which character if it says so."""
    # The parser's marker under the expression, which is shown with / and newline escaped.
    at = re.search(r"regex parse error:\n {4}.*\n {4}( *)\^", message)
    if at is None:
        return _reason(message)
    place = bisect_right(range(len(regex) + 1), len(at[1]), key=lambda end: len(regex_to_lark(regex[:end], "")))
    return f"{_reason(message)}, at character {place}"


def explain_schema(message: str, schema: dict[str, Any], complaint: Callable[[dict[str, Any]], str]) -> str:
    """Return what the library's `message` says of `schema`, and the path of the innermost part that it is true of.

    Args:
        message: Of the whole schema.
        schema: It.
        complaint: Compiles a schema and returns the library's message, empty if there is none.
    """
    definitions: dict[str, Any] = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    path, part = "$", schema
    while found := next((p for p in _parts(part) if complaint(definitions | p[1]) == message), None):
        path, part = path + found[0], found[1]
    return f"{_reason(message)}, at {path}"


def _reason(message: str) -> str:
    for pattern in (r"^error: (.+)", r"\(in regex\): ([a-z -]+)", r"^(Unimplemented keys: .+)"):
        found = re.search(pattern, message, re.MULTILINE)
        if found:
            return _lower(re.sub(r'[\["\]]', "", found[1]))
    keywords_bare = re.sub(r"'(\w{1,30})'", r"\1", message)
    unquoted = re.sub(r"^at \d+\(\d+\): |'.*'|\".*\"", "", keywords_bare, flags=re.DOTALL)
    return _lower(" ".join(re.split(r"[:\n]|\. | at line ", unquoted)[0].split())) or "it cannot be compiled"


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _parts(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what may be a schema inside of `schema`, under a keyword or in the list or object there, with its path."""
    for place, value in _entries(schema):
        if isinstance(value, dict):
            yield place, value
        for deeper, inner in _entries(value):
            if isinstance(inner, dict):
                yield place + deeper, inner


def _entries(value: object) -> Iterator[tuple[str, object]]:
    """Yield what a list or an object holds, with its place: a key that is a name as it is, any other by its number."""
    if isinstance(value, list):
        yield from ((f"[{at}]", inner) for at, inner in enumerate(value))
    elif isinstance(value, dict):
        for at, (key, inner) in enumerate(value.items()):
            yield (f".{key}" if _NAME.fullmatch(key) else f"[{at}]"), inner
