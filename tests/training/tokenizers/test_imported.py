"""Tokenizers of other makes give here the ids that they give in `tokenizers`."""

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.foreign import END, MAKES, content_of, make_tokenizer
from training.errors import TokenizerError
from training.tokenizers.imported import ImportedTokenizer
from training.tokenizers.loading import load_tokenizer

FAMILIAR = st.text(alphabet="The quick\r\n_fox'S 3.11 <think>Ⅷſé")
ANY_TEXT = st.text() | FAMILIAR


@pytest.fixture(scope="module", params=MAKES)
def make(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def peer(make: str, documents: tuple[str, ...]) -> tokenizers.Tokenizer:
    peer = make_tokenizer(make, documents[:30])
    peer.encode_special_tokens = True  # ours is never otherwise
    return peer


@pytest.fixture(scope="module")
def ours(make: str, peer: tokenizers.Tokenizer) -> ImportedTokenizer:
    return ImportedTokenizer.read_new(content_of(peer), peer.token_to_id(END[make]))


@given(text=ANY_TEXT)
@settings(max_examples=300)
def test_the_ids_and_the_text_are_the_peers(ours: ImportedTokenizer, peer: tokenizers.Tokenizer, text: str) -> None:
    ids = ours.encode(text)
    assert ids == peer.encode(text).ids
    assert ours.decode(ids) == peer.decode(ids) == (unicodedata.normalize("NFC", text) if peer.normalizer else text)
    assert ours.encode_array(text).tolist() == peer.encode(text, add_special_tokens=False).ids
    assert ours.encode_array(text).dtype == np.uint16


def test_the_ids_are_the_peers_over_the_corpus(
    ours: ImportedTokenizer, peer: tokenizers.Tokenizer, documents: tuple[str, ...]
) -> None:
    for document in documents:
        assert ours.encode(document) == peer.encode(document).ids


def test_every_assigned_character_is_cut_as_the_peer_does(ours: ImportedTokenizer, peer: tokenizers.Tokenizer) -> None:
    repeated_script = range(0x3400, 0xD7A4)  # 40,000 ideographs and syllables
    for code in range(0x20000):
        character = chr(code)
        if code in repeated_script or unicodedata.category(character) in ("Cn", "Cs", "Co"):
            continue
        text = f"the{character}the 11{character}11 ..{character}.. \n{character} the'{character} '{character}e"
        assert ours.encode(text) == peer.encode(text).ids, hex(code)


@pytest.mark.parametrize("repeated", [" ", "\n", " \n", "a", "1", ".", "'s", "é"])
def test_a_million_times_the_same_is_no_danger(ours: ImportedTokenizer, repeated: str) -> None:
    text = f"the{repeated * 1_000_000}the"
    assert ours.decode(ours.encode(text)) == text


def test_special_tokens_are_never_made_of_a_text(ours: ImportedTokenizer, peer: tokenizers.Tokenizer) -> None:
    special = [token for token in content_of(peer)["added_tokens"] if token["special"]]
    assert ours.special_ids == {token["id"] for token in special}
    assert all(ours.token_bytes(token["id"]) == b"" for token in special)
    text = "a".join(token["content"] for token in special)
    prefix = ours.encode("")
    assert not ours.special_ids & set(ours.encode(text)[len(prefix) :])
    assert ours.decode(ours.encode(text)) == text


def test_what_the_file_puts_before_a_text_is_put_there() -> None:
    peer = make_tokenizer("llama3", ["the"], 300)
    ours = ImportedTokenizer(content_of(peer), peer.token_to_id(END["llama3"]))
    assert ours.encode("") == peer.encode("").ids == [peer.token_to_id("<|begin_of_text|>")]


def test_saved_and_loaded_is_the_same_tokenizer(ours: ImportedTokenizer, tmp_path: Path) -> None:
    ours.save(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(ours.transformers_config()))
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert loaded.content() == ours.content()
    assert (loaded.end_of_text_id, loaded.special_ids) == (ours.end_of_text_id, ours.special_ids)
    assert loaded.encode("the quick fox's") == ours.encode("the quick fox's")


def test_without_the_file_beside_it_another_make_is_refused(ours: ImportedTokenizer, tmp_path: Path) -> None:
    ours.save(tmp_path / "tokenizer.json")
    with pytest.raises(TokenizerError, match="not a tokenizer of minigpt"):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_ids_that_the_file_leaves_out_are_special() -> None:
    content = content_of(make_tokenizer("gpt2", ["the"], 260))
    content["model"]["vocab"] = {token: id_ + 2 for token, id_ in content["model"]["vocab"].items()}
    content["added_tokens"][0]["id"] = 0
    tokenizer = ImportedTokenizer.read_new(content, 0)
    assert tokenizer.special_ids == {0, 1, 2}
    assert tokenizer.decode(tokenizer.encode("the")) == "the"


def test_a_vocabulary_beyond_16_bits_is_for_serving_only() -> None:
    content = content_of(make_tokenizer("gpt2", ["the"], 260))
    content["added_tokens"].append({"id": 70_000, "content": "<|far|>", "special": True})
    tokenizer = ImportedTokenizer.read_new(content, 0)
    assert tokenizer.decode(tokenizer.encode("the")) == "the"
    with pytest.raises(TokenizerError, match="served only"):
        tokenizer.encode_array("the")


def test_merges_of_older_files_are_read() -> None:
    content = content_of(make_tokenizer("gpt2", ["the the"], 260))
    now = ImportedTokenizer.read_new(content, 0)
    content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]
    assert ImportedTokenizer.read_new(content, 0).encode("the the") == now.encode("the the")


def change_model(**fields: object) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["model"].update(fields)


def change(**fields: object) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.update(fields)


def drop_byte(content: dict[str, Any]) -> None:
    del content["model"]["vocab"]["q"]


def share_an_id(content: dict[str, Any]) -> None:
    content["model"]["vocab"]["q"] = 5


def strip_around(content: dict[str, Any]) -> None:
    content["added_tokens"].append({"id": 900, "content": "<mask>", "special": False, "lstrip": True})


def unreachable_merge(content: dict[str, Any]) -> None:
    content["model"]["vocab"] |= {"bc": 900, "ab": 901, "abc": 902}
    content["model"]["merges"] = [["b", "c"], ["a", "b"], ["ab", "c"]]


def two_ways(content: dict[str, Any]) -> None:
    content["model"]["vocab"] |= {"bc": 900, "ab": 901, "abc": 902}
    content["model"]["merges"] = [["b", "c"], ["a", "b"], ["ab", "c"], ["a", "bc"]]


@pytest.mark.parametrize(
    ("alter", "named"),
    [
        (change_model(type="WordPiece"), "type"),
        (change_model(byte_fallback=True), "SentencePiece"),
        (change_model(dropout=0.1), "dropout"),
        (change_model(merges=["a b c"]), "two tokens"),
        (change_model(merges=[["a", "▁b"]]), "stands for no byte"),
        (change_model(merges=[["a", "q"]]), "not in its vocabulary"),
        (change(normalizer={"type": "Lowercase"}), "Lowercase"),
        (change(pre_tokenizer={"type": "Whitespace"}), "pre_tokenizer"),
        (change(pre_tokenizer=None), "pre_tokenizer"),
        (change(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}), "pre_tokenizer"),
        (change(post_processor={"type": "BertProcessing"}), "post_processor"),
        (change(added_tokens=[]), "token id 0"),
        (drop_byte, "b'q'"),
        (share_an_id, "each must have its own"),
        (strip_around, "<mask>"),
        (unreachable_merge, "b'ab' and b'c'"),
        (two_ways, "other merges"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_would_be_misread_is_refused(alter: Callable[[dict[str, Any]], None], named: str) -> None:
    content = content_of(make_tokenizer("gpt2", ["the"], 257))
    alter(content)
    with pytest.raises(TokenizerError, match=named) as refused:
        ImportedTokenizer.read_new(content, 0)
    assert "\n" not in str(refused.value)
