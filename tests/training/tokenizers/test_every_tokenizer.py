"""What holds for each kind: lossless, special tokens out of reach, and one file that `tokenizers` reads alike."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from training.errors import TokenizerError
from training.tokenizers.base import END_OF_TEXT, UNKNOWN, Tokenizer
from training.tokenizers.loading import load_tokenizer

FAMILIAR = st.text(alphabet="The quick\n_fox's 3.11<|endoftext|>*")
ANY_TEXT = st.text() | FAMILIAR
WITH_SURROGATES = st.text(alphabet=st.characters(exclude_categories=[]))


@given(text=FAMILIAR)
def test_text_of_the_corpus_alphabet_survives(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_corpus_survives(tokenizer: Tokenizer, documents: tuple[str, ...]) -> None:
    for document in documents:
        assert tokenizer.decode(tokenizer.encode_array(document).tolist()) == document


@given(text=WITH_SURROGATES)
def test_encoding_is_total_and_both_forms_agree(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    array = tokenizer.encode_array(text)
    assert array.dtype == np.uint16
    assert array.tolist() == ids
    assert all(0 <= token_id < tokenizer.vocab_size for token_id in ids)
    assert tokenizer.end_of_text_id not in ids


@given(text=ANY_TEXT)
def test_the_bytes_of_the_tokens_are_the_bytes_of_the_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    joined = b"".join(map(tokenizer.token_bytes, ids))
    assert joined.decode() == tokenizer.decode(ids)


@pytest.mark.parametrize("special", [END_OF_TEXT, UNKNOWN])
def test_a_special_token_in_a_text_is_plain_text(tokenizer: Tokenizer, special: str) -> None:
    text = f"a {special} b"
    ids = tokenizer.encode(text)
    assert not tokenizer.special_ids & set(ids)
    assert tokenizer.decode(ids) == text


def test_end_of_text_is_the_last_id_and_has_no_bytes(tokenizer: Tokenizer) -> None:
    assert tokenizer.end_of_text_id == tokenizer.vocab_size - 1
    assert tokenizer.end_of_text_id in tokenizer.special_ids
    assert tokenizer.token_bytes(tokenizer.end_of_text_id) == b""
    assert tokenizer.decode([tokenizer.end_of_text_id]) == ""


def test_a_lone_surrogate_is_replaced_and_a_pair_is_one_character(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("a\ud800b\udc00") == tokenizer.encode("a\ufffdb\ufffd")
    assert tokenizer.encode("\ud83d\ude00") == tokenizer.encode("\U0001f600")


@pytest.mark.parametrize("beyond", [-1, 70_000])
def test_an_unknown_id_is_refused(tokenizer: Tokenizer, beyond: int) -> None:
    with pytest.raises(TokenizerError, match=f"token id {beyond}: this vocabulary has the ids 0 to"):
        tokenizer.decode([beyond])


@given(text=ANY_TEXT)
def test_the_peer_gives_the_same_ids_and_text(tokenizer: Tokenizer, peer: tokenizers.Tokenizer, text: str) -> None:
    peer.encode_special_tokens = True  # ours is never otherwise
    ids = peer.encode(text).ids
    assert ids == tokenizer.encode(text)
    assert peer.decode(ids) == tokenizer.decode(ids)


def test_the_peer_gives_the_same_ids_over_the_corpus(
    tokenizer: Tokenizer, peer: tokenizers.Tokenizer, documents: tuple[str, ...]
) -> None:
    for document in documents:
        assert peer.encode(document).ids == tokenizer.encode(document)


@given(data=st.data())
def test_the_peer_decodes_any_ids_alike(tokenizer: Tokenizer, peer: tokenizers.Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1)))
    assert peer.decode(ids) == tokenizer.decode(ids)


def test_the_peer_knows_the_special_token(tokenizer: Tokenizer, peer: tokenizers.Tokenizer) -> None:
    assert peer.token_to_id(END_OF_TEXT) == tokenizer.end_of_text_id
    assert peer.get_vocab_size() == tokenizer.vocab_size


def test_the_file_is_what_the_peer_would_write(
    tokenizer: Tokenizer, peer: tokenizers.Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path / "ours.json")
    peer.save(str(tmp_path / "theirs.json"))
    assert json.loads((tmp_path / "ours.json").read_bytes()) == json.loads((tmp_path / "theirs.json").read_bytes())
    assert load_tokenizer(tmp_path / "theirs.json").vocab_size == tokenizer.vocab_size


def test_saved_and_loaded_is_the_same_tokenizer(
    tokenizer: Tokenizer, documents: tuple[str, ...], tmp_path: Path
) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    loaded.save(tmp_path / "again.json")
    assert (loaded.kind, loaded.special_ids) == (tokenizer.kind, tokenizer.special_ids)
    assert loaded.encode(documents[0]) == tokenizer.encode(documents[0])
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


def test_loading_needs_neither_torch_nor_the_peer() -> None:
    program = "import sys, training.tokenizers.loading; print({'torch', 'tokenizers'} & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
