import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from training.config import DataConfig
from training.data.corpus import Corpus, load_corpus
from training.data.prepare import PreparedData, encode_splits, prepare
from training.errors import CorpusError, TokenizerError
from training.tokenizers.char import CharTokenizer

CHAR = DataConfig(validation_fraction=0.25)
BPE = DataConfig(tokenizer="bpe", vocab_size=300)
CORPUS = Corpus(name="letters", documents=("abcdefgh", "éfgh", "ijkl"))


@pytest.fixture(scope="session")
def topics() -> Corpus:
    return load_corpus("pydoc-topics")


def only_folder(cache_dir: Path) -> Path:
    (folder,) = (cache_dir / "prepared").iterdir()
    return folder


def assert_same(one: PreparedData, other: PreparedData) -> None:
    np.testing.assert_array_equal(one.train, other.train)
    np.testing.assert_array_equal(one.validation, other.validation)
    for field in ("corpus_sha256", "validation_chars", "validation_bytes"):
        assert getattr(one, field) == getattr(other, field)
    assert one.tokenizer.vocab_size == other.tokenizer.vocab_size


def test_tinyshakespeare_is_what_nanogpt_makes_of_it(tinyshakespeare: Path, tmp_path: Path) -> None:
    prepared = prepare(DataConfig(), load_corpus("tinyshakespeare", tinyshakespeare), tmp_path)
    assert (len(prepared.train), len(prepared.validation)) == (1_003_854, 111_540)
    assert prepared.train[:13].tolist() == [18, 47, 56, 57, 58, 1, 15, 47, 58, 47, 64, 43, 52]
    assert (prepared.validation_chars, prepared.validation_bytes) == (111_540, 111_540)


def test_end_of_text_stands_between_documents_and_nowhere_else(tmp_path: Path) -> None:
    prepared = prepare(CHAR, CORPUS, tmp_path)
    end = prepared.tokenizer.end_of_text_id
    encode = prepared.tokenizer.encode
    assert prepared.train.tolist() == [*encode("abcdefgh"), end, *encode("éfgh")]
    assert prepared.validation.tolist() == encode("ijkl")


def test_the_held_out_text_is_counted_in_characters_and_bytes(tmp_path: Path) -> None:
    corpus = Corpus(name="letters", documents=("abcdefgh", "éfgh"))
    prepared = prepare(DataConfig(validation_fraction=0.5), corpus, tmp_path)
    assert (prepared.validation_chars, prepared.validation_bytes) == (6, 7)
    assert len(prepared.validation) == 6 + 1


@pytest.mark.parametrize("config", [CHAR, BPE])
def test_both_splits_are_the_text(config: DataConfig, topics: Corpus, tmp_path: Path) -> None:
    prepared = prepare(config, topics, tmp_path)
    train, validation = topics.split(config.validation_fraction)
    assert isinstance(prepared.train, np.memmap)
    assert prepared.train.dtype == prepared.validation.dtype == np.uint16
    assert prepared.tokenizer.decode(prepared.train.tolist()) == "".join(train)
    assert prepared.tokenizer.decode(prepared.validation.tolist()) == "".join(validation)


def test_a_char_vocabulary_is_of_the_whole_text(tmp_path: Path) -> None:
    prepared = prepare(CHAR, CORPUS, tmp_path)
    assert prepared.tokenizer.vocab_size == len(set("abcdefghéijkl")) + 2


def test_merges_are_not_learned_from_the_held_out_text(tmp_path: Path) -> None:
    corpus = Corpus(name="letters", documents=("ab" * 90 + "yz" * 10,))
    prepared = prepare(DataConfig(tokenizer="bpe", vocab_size=258), corpus, tmp_path)
    assert prepared.tokenizer.token_bytes(256) == b"ab"
    with pytest.raises(TokenizerError, match="vocab_size"):
        prepare(DataConfig(tokenizer="bpe", vocab_size=280), corpus, tmp_path)


def test_encoding_with_a_given_tokenizer_is_the_same_data(topics: Corpus, tmp_path: Path) -> None:
    prepared = prepare(BPE, topics, tmp_path)
    assert_same(encode_splits(BPE, topics, prepared.tokenizer), prepared)


def test_what_is_prepared_once_is_used_again_whatever_the_corpus_is_called(tmp_path: Path) -> None:
    first = prepare(CHAR, CORPUS, tmp_path)
    inode = only_folder(tmp_path).stat().st_ino
    renamed = Corpus(name="other", documents=CORPUS.documents)
    assert_same(prepare(CHAR.replace(corpus="other"), renamed, tmp_path), first)
    assert only_folder(tmp_path).stat().st_ino == inode


def test_another_text_or_setting_is_other_data(tmp_path: Path) -> None:
    prepare(CHAR, CORPUS, tmp_path)
    prepare(CHAR.replace(validation_fraction=0.5), CORPUS, tmp_path)
    prepare(CHAR, Corpus(name="letters", documents=("abcdefgh", "éfgh", "ijkm")), tmp_path)
    assert len(list((tmp_path / "prepared").iterdir())) == 3


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
@pytest.mark.parametrize("name", ["train.bin", "validation.bin", "tokenizer.json", "manifest.json"])
def test_damaged_data_is_made_anew(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    first = prepare(CHAR, CORPUS, tmp_path)
    expected = encode_splits(CHAR, CORPUS, first.tokenizer)
    damage(only_folder(tmp_path) / name)
    assert_same(prepare(CHAR, CORPUS, tmp_path), expected)
    inode = only_folder(tmp_path).stat().st_ino
    assert_same(prepare(CHAR, CORPUS, tmp_path), expected)
    assert only_folder(tmp_path).stat().st_ino == inode


def test_data_of_another_recipe_is_not_taken_for_this_one(tmp_path: Path) -> None:
    prepare(CHAR, CORPUS, tmp_path / "one")
    prepare(CHAR.replace(validation_fraction=0.5), CORPUS, tmp_path / "other")
    wrong, right = only_folder(tmp_path / "one"), only_folder(tmp_path / "other").name
    wrong.rename(wrong.with_name(right))
    prepared = prepare(CHAR.replace(validation_fraction=0.5), CORPUS, tmp_path / "one")
    assert prepared.validation_chars == 8


def test_runs_that_prepare_at_once_all_get_the_data(topics: Corpus, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: prepare(CHAR, topics, tmp_path), range(4)))
    for prepared in made:
        assert_same(prepared, made[0])
    assert only_folder(tmp_path)


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill_the_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(CharTokenizer, "save", fill_the_disk)
    with pytest.raises(CorpusError, match="cannot write: No space left on device: set MINIGPT_CACHE"):
        prepare(CHAR, CORPUS, tmp_path)
    assert not list((tmp_path / "prepared").iterdir())


def test_a_cache_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CorpusError, match="file: cannot write: Not a directory: set MINIGPT_CACHE"):
        prepare(CHAR, CORPUS, tmp_path / "file")


def test_a_text_too_short_to_split_is_refused(tmp_path: Path) -> None:
    assert len(prepare(DataConfig(), Corpus(name="two", documents=("ab",)), tmp_path).validation) == 1
    with pytest.raises(CorpusError, match=r"one: too short to hold out 0\.1 of it"):
        prepare(DataConfig(), Corpus(name="one", documents=("a",)), tmp_path)


def test_a_random_text_of_many_documents_comes_back(tmp_path: Path) -> None:
    rng = random.Random(7)
    documents = tuple("".join(rng.choices("abc \n", k=rng.randint(1, 30))) for _ in range(200))
    prepared = prepare(DataConfig(), Corpus(name="random", documents=documents), tmp_path)
    end = prepared.tokenizer.end_of_text_id
    num_ends = int((prepared.train == end).sum() + (prepared.validation == end).sum())
    assert num_ends in (198, 199)  # one border is the split's, or lies within a document
