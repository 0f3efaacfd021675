import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from training.errors import TokenizerError
from training.tokenizers.base import Tokenizer
from training.tokenizers.loading import load_tokenizer, train_tokenizer


@pytest.fixture
def file(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    tokenizer.save(tmp_path / "tokenizer.json")
    return tmp_path / "tokenizer.json"


def set_normalizer(content: dict[str, Any]) -> None:
    content["normalizer"] = {"type": "NFC"}


def swap_two_ids(content: dict[str, Any]) -> None:
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]


def drop_special(content: dict[str, Any]) -> None:
    content["added_tokens"] = []


def drop_entry(content: dict[str, Any]) -> None:
    del content["model"]["vocab"]["a"]


def write_text_id(content: dict[str, Any]) -> None:
    content["model"]["vocab"]["a"] = "7"


def drop_model(content: dict[str, Any]) -> None:
    del content["model"]


def add_field(content: dict[str, Any]) -> None:
    content["extra"] = 1


@pytest.mark.parametrize(
    "alter", [set_normalizer, swap_two_ids, drop_special, drop_entry, write_text_id, drop_model, add_field]
)
def test_an_altered_file_is_refused(file: Path, alter: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(file.read_bytes())
    alter(content)
    file.write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: not a tokenizer of minigpt: "):
        load_tokenizer(file)


@pytest.mark.parametrize("damage", [lambda raw: raw[:-9], lambda _: b"", lambda _: b"[]", lambda raw: raw + b"\xff"])
def test_a_damaged_file_is_refused(file: Path, damage: Callable[[bytes], bytes]) -> None:
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: not a tokenizer of minigpt: "):
        load_tokenizer(file)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"nowhere\.json: No such file"):
        load_tokenizer(tmp_path / "nowhere.json")


@pytest.mark.parametrize("model", [tokenizers.models.Unigram(), tokenizers.models.BPE(), tokenizers.models.WordLevel()])
def test_a_tokenizer_of_another_make_is_refused(tmp_path: Path, model: tokenizers.models.Model) -> None:
    tokenizers.Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: not a tokenizer of minigpt: "):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_a_word_is_no_character(tmp_path: Path) -> None:
    train_tokenizer("char", ["ab"]).save(tmp_path / "tokenizer.json")
    content = json.loads((tmp_path / "tokenizer.json").read_bytes())
    content["model"]["vocab"] = {"word": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match="single characters only"):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_a_failed_save_leaves_the_former_file(file: Path, tokenizer: Tokenizer) -> None:
    before = file.read_bytes()
    file.with_name(f".{file.name}.new").mkdir()
    with pytest.raises(OSError, match="directory"):
        tokenizer.save(file)
    assert file.read_bytes() == before
