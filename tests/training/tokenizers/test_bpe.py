import unicodedata
from pathlib import Path

import msgspec
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from training.errors import TokenizerError
from training.tokenizers.bpe import BpeTokenizer
from training.tokenizers.loading import train_tokenizer

FEW_LETTERS = st.text(alphabet="abé \n", max_size=60)


def read_by_peer(tokenizer: BpeTokenizer) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(msgspec.json.encode(tokenizer.content()).decode())


def learn_all(texts: list[str]) -> BpeTokenizer:
    """Return the largest vocabulary of `texts`."""
    with pytest.raises(TokenizerError) as refused:
        BpeTokenizer.train(texts, 65_536)
    reachable = int(str(refused.value).partition("data.vocab_size=")[2].split()[0])
    return BpeTokenizer.train(texts, reachable)


def test_ids_are_bytes_then_merges_in_order_then_end_of_text() -> None:
    tokenizer = BpeTokenizer([(b"l", b"o"), (b"e", b"l"), (b"h", b"el"), (b"hel", b"lo")])
    assert [tokenizer.token_bytes(value) for value in range(256)] == [bytes([value]) for value in range(256)]
    assert [tokenizer.token_bytes(token_id) for token_id in range(256, 261)] == [b"lo", b"el", b"hel", b"hello", b""]
    assert tokenizer.vocab_size == 261
    assert tokenizer.encode("hello") == [259]
    assert tokenizer.encode("\xff") == [0xC3, 0xBF]


@given(texts=st.lists(FEW_LETTERS, min_size=1), probe=FEW_LETTERS)
def test_tiktoken_applies_merges_as_the_library_that_learned_them(texts: list[str], probe: str) -> None:
    tokenizer = learn_all(texts)
    peer = read_by_peer(tokenizer)
    for text in (*texts, probe):
        assert tokenizer.encode(text) == peer.encode(text).ids


@given(texts=st.lists(FEW_LETTERS, min_size=1))
def test_each_token_that_is_text_encodes_to_itself(texts: list[str]) -> None:
    tokenizer = learn_all(texts)
    for token_id in range(tokenizer.vocab_size - 1):
        token = tokenizer.token_bytes(token_id)
        if token.decode("utf-8", "ignore").encode() == token:
            assert tokenizer.encode(token.decode()) == [token_id]


def test_every_assigned_character_is_cut_like_the_peer_does(documents: tuple[str, ...]) -> None:
    tokenizer = BpeTokenizer.train(documents, 1024)
    peer = read_by_peer(tokenizer)
    repeated_script = range(0x3400, 0xD7A4)  # 40,000 ideographs and syllables
    for code in range(0x20000):
        character = chr(code)
        if code in repeated_script or unicodedata.category(character) in ("Cn", "Cs", "Co"):
            continue
        text = f"the{character}the 11{character}11 ..{character}.. \n{character} the"
        assert tokenizer.encode(text) == peer.encode(text).ids, hex(code)


@pytest.mark.parametrize("length", [99_999, 100_000, 100_001, 1_000_000])
@pytest.mark.parametrize("after", ["", "the", "\x1c", " \t.\u3000"])
def test_a_long_blank_is_no_danger(documents: tuple[str, ...], length: int, after: str) -> None:
    tokenizer = BpeTokenizer.train(documents, 1024)
    text = "the" + (" \n" * length)[:length] + after
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    if length < 1_000_000:
        assert ids == read_by_peer(tokenizer).encode(text).ids


def test_training_is_deterministic(documents: tuple[str, ...]) -> None:
    assert BpeTokenizer.train(documents, 2000).content() == BpeTokenizer.train(documents, 2000).content()


def test_the_smallest_vocabulary_is_the_bytes() -> None:
    tokenizer = BpeTokenizer.train([""], 257)
    assert tokenizer.decode(tokenizer.encode("héllo")) == "héllo"


def test_the_largest_vocabulary_fills_16_bits() -> None:
    pairs = [(bytes([left]), bytes([right])) for left in range(256) for right in range(256)]
    tokenizer = BpeTokenizer(pairs[: 65_536 - 257])
    assert tokenizer.vocab_size == 65_536
    assert tokenizer.encode("\x7f\x7f") == [256 + 0x7F * 256 + 0x7F]


def test_a_text_too_short_is_refused_with_the_vocabulary_that_it_reaches() -> None:
    with pytest.raises(TokenizerError, match=r"use --set data\.vocab_size=262 or a longer text"):
        BpeTokenizer.train(["hello hello"], 1024)
    assert BpeTokenizer.train(["hello hello"], 262).vocab_size == 262


def test_bpe_without_a_size_is_refused() -> None:
    with pytest.raises(TokenizerError, match="needs its size"):
        train_tokenizer("bpe", ["text"])


@pytest.mark.parametrize("merges", [[(b"ab", b"c")], [(b"a", b"b"), (b"a", b"b")], [(b"", b"a")]])
def test_merges_that_make_no_vocabulary_are_refused(merges: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(TokenizerError, match="both must be earlier tokens, and make a new one"):
        BpeTokenizer(merges)


def test_tinyshakespeare_ids_equal_the_peers(tinyshakespeare: Path) -> None:
    text = tinyshakespeare.read_bytes().decode()
    tokenizer = BpeTokenizer.train([text], 4096)
    assert tokenizer.encode(text) == read_by_peer(tokenizer).encode(text).ids
