from pathlib import Path

import pytest

from training.errors import TokenizerError
from training.tokenizers.char import CharTokenizer


def test_the_vocabulary_is_the_sorted_characters_then_the_special_tokens() -> None:
    tokenizer = CharTokenizer.train(["banana", "\n😀"])
    assert tokenizer.encode("\nabn😀") == [0, 1, 2, 3, 4]
    assert tokenizer.special_ids == {5, 6}
    assert tokenizer.end_of_text_id == 6


def test_tinyshakespeare_has_65_characters(tinyshakespeare: Path) -> None:
    tokenizer = CharTokenizer.train([tinyshakespeare.read_bytes().decode()])
    assert tokenizer.vocab_size == 65 + 2


def test_an_unknown_character_is_shown() -> None:
    tokenizer = CharTokenizer.train(["ab"])
    assert tokenizer.encode("azb") == [0, 2, 1]
    assert tokenizer.decode([0, 2, 1]) == "a\ufffdb"
    assert tokenizer.token_bytes(2) == "\ufffd".encode()


def test_a_replacement_character_of_the_corpus_is_a_character_like_others() -> None:
    tokenizer = CharTokenizer.train(["a\ufffd"])
    assert tokenizer.encode("\ufffdz") == [1, 2]


def test_the_largest_vocabulary_fills_16_bits() -> None:
    characters = [chr(code) for code in (*range(0xD800), *range(0xE000, 0x20000))][:65_535]
    tokenizer = CharTokenizer(characters[:-1])
    assert tokenizer.vocab_size == 65_536
    assert tokenizer.encode(characters[65_533]) == [65_533]
    with pytest.raises(TokenizerError, match=r"65,535 distinct characters.* holds 65,534; use data\.tokenizer=bpe"):
        CharTokenizer(characters)
