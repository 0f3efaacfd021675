"""A text cut at its borders and encoded in parts gives the ids of the whole, for tokenizers of every make."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.foreign import END, MAKES, content_of, make_tokenizer
from training.errors import TokenizerError
from training.tokenizers.base import Tokenizer
from training.tokenizers.borders import last_border
from training.tokenizers.bpe import BpeTokenizer
from training.tokenizers.imported import ImportedTokenizer

# What split patterns tell apart: letters, digits, marks, blanks of every kind, apostrophes, ends of lines.
ALPHABET = "aZéß1²٣ \n\r\t\x1c\x85\u00a0\u2003\u3000'’sdl.,、。中本あ_-\u0301\0🙂"
ANY_TEXT = st.text(alphabet=ALPHABET, max_size=40) | st.text(max_size=40)


@pytest.fixture(scope="session", params=["ours", *MAKES])
def tricky(request: pytest.FixtureRequest) -> Tokenizer:
    """A tokenizer that has merged whatever its make lets it."""
    rng = random.Random(5)
    texts = ["".join(rng.choices(ALPHABET, k=8)) for _ in range(10_000)]
    if request.param == "ours":
        return BpeTokenizer.train(texts, 1024)
    peer = make_tokenizer(request.param, texts, 1024)
    return ImportedTokenizer(content_of(peer), peer.token_to_id(END[request.param]))


@given(before=ANY_TEXT, after=ANY_TEXT)
@settings(max_examples=500)
def test_the_ids_of_the_parts_are_those_of_the_whole(tricky: Tokenizer, before: str, after: str) -> None:
    put_before = len(tricky.encode(""))  # Llama 3 begins every text with a token
    cut = last_border(before)
    text = before + after
    assert tricky.encode(text[:cut]) + tricky.encode(text[cut:])[put_before:] == tricky.encode(text)


@given(before=ANY_TEXT, after=ANY_TEXT)
def test_they_are_so_with_every_merge_that_the_text_itself_has(before: str, after: str) -> None:
    text = before + after
    with pytest.raises(TokenizerError) as refused:
        BpeTokenizer.train([text], 65_536)
    reachable = int(str(refused.value).partition("data.vocab_size=")[2].split()[0])
    tokenizer = BpeTokenizer.train([text], reachable)
    cut = last_border(before)
    assert tokenizer.encode(text[:cut]) + tokenizer.encode(text[cut:]) == tokenizer.encode(text)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("one two  three", "one two"),
        ("one\n", "one"),
        ("3.14", "3"),
        ("他们说。\r\n", "他们说"),
        ("def f():\n    pass", "def"),
        ("\u3000 \u3000 ", ""),
        ("GATTACA", ""),
        ("", ""),
    ],
)
def test_a_text_is_cut_as_late_as_it_may(text: str, left: str) -> None:
    assert text[: last_border(text)] == left
