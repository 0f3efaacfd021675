"""The text does not depend on how tokens arrive, and nothing is sent that has to be taken back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.detokenizer import TextStream
from training.tokenizers.bpe import BpeTokenizer
from training.tokenizers.char import CharTokenizer

BYTES = BpeTokenizer([])  # a token is a byte
MERGED = BpeTokenizer([(b"a", b"b"), (b"ab", b"ab"), (b"\xc3", b"\xa9"), (b"\xa9", b"a")])

texts = st.text(alphabet="abcé€🦜\ufffd", max_size=24)
stops = st.lists(st.text(alphabet="abcé€\ufffd", min_size=1, max_size=5), max_size=4)
token_ids = st.lists(
    st.one_of(st.integers(0, MERGED.vocab_size - 1), st.sampled_from([*b"ab\xc3\xa9", *range(256, 261)])), max_size=40
)


def cut(text: str, stop: list[str]) -> tuple[str, str | None]:
    """The definition, character by character: end at the first place where a stop string is complete."""
    for end in range(1, len(text) + 1):
        complete = [string for string in stop if text[:end].endswith(string)]
        if complete:
            longest = max(complete, key=len)
            return text[: end - len(longest)], longest
    return text, None


@st.composite
def split(draw, ids: st.SearchStrategy[list[int]]) -> list[list[int]]:
    whole = draw(ids)
    places = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    return [whole[start:end] for start, end in zip([0, *places], [*places, len(whole)], strict=True)]


@given(parts=split(token_ids), stop=stops)
def test_any_split_of_the_tokens_gives_the_text_up_to_the_first_stop(parts: list[list[int]], stop: list[str]) -> None:
    stream = TextStream(MERGED, stop)
    sent = "".join(stream.push(part) for part in parts) + stream.finish()
    whole = MERGED.decode([token_id for part in parts for token_id in part])
    assert (sent, stream.stopped) == cut(whole, stop)


@given(text=texts, stop=stops)
def test_what_is_held_back_could_still_become_a_stop_string_or_a_character(text: str, stop: list[str]) -> None:
    stream = TextStream(BYTES, stop)
    sent = b""
    encoded = text.encode()
    for count, token_id in enumerate(BYTES.encode(text), 1):
        sent += stream.push([token_id]).encode()
        if stream.stopped is not None:
            break
        held = encoded[len(sent) : count].decode("utf-8", "ignore")
        assert held == "" or any(string.startswith(held) and string != held for string in stop)


def test_of_stop_strings_complete_at_one_character_the_longest_counts() -> None:
    stream = TextStream(BYTES, ["bc", "abc", "abcd"])
    assert stream.push(BYTES.encode("xabcd")) == "x"
    assert stream.stopped == "abc"


def test_tokens_after_a_stop_string_give_no_text() -> None:
    stream = TextStream(BYTES, ["\n"])
    assert stream.push(BYTES.encode("one\ntwo")) == "one"
    assert stream.push(BYTES.encode("three")) == ""
    assert stream.finish() == ""


def test_a_character_cut_off_by_the_end_is_shown_as_replacement() -> None:
    stream = TextStream(BYTES)
    assert stream.push(BYTES.encode("é")[:1]) == ""
    assert stream.finish() == "\ufffd"


@pytest.mark.parametrize("special", ["unknown", "end of text"])
def test_special_tokens_of_a_character_vocabulary_read_as_in_decode(special: str) -> None:
    tokenizer = CharTokenizer("abc")
    ids = [*tokenizer.encode("ab"), tokenizer.end_of_text_id if special == "end of text" else tokenizer.encode("x")[0]]
    stream = TextStream(tokenizer)
    assert stream.push(ids) + stream.finish() == tokenizer.decode(ids)
