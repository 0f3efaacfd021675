import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from training.config import DataConfig
from training.data import prepare as preparing
from training.data.corpus import Corpus, load_corpus
from training.data.prepare import PreparedData, encode_splits, prepare
from training.errors import CorpusError, TokenizerError
from training.tokenizers.char import CharTokenizer

ROOT = Path(__file__).parents[3]
CHAR = DataConfig(validation_fraction=0.25)
BPE = DataConfig(tokenizer="bpe", vocab_size=300)
CORPUS = Corpus(name="letters", documents=("abcdefgh", "éfgh", "ijkl"))
START = """
import resource, sys
from pathlib import Path
from training.config import DataConfig
from training.data.corpus import load_corpus
from training.data.prepare import prepare
from training.errors import CorpusError

def stop(what, done, total):
    if what == "encoding" and 2 * done > total:
        print("half", flush=True)
        sys.stdin.read()

text, cache = sys.argv[1], Path(sys.argv[2])
"""
FULL_DISK = """
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
try:
    prepare(DataConfig(), load_corpus(text), cache)
except CorpusError as error:
    print(error)
"""
STOP_HALF_WAY = """
prepare(DataConfig(), load_corpus(text, progress=stop), cache)
"""


@pytest.fixture(scope="session")
def topics() -> Corpus:
    return load_corpus("pydoc-topics")


def split_text(corpus: Corpus, validation_fraction: float) -> tuple[str, str]:
    """Return the text to train on, and the one held out."""
    pieces = list(corpus.split(validation_fraction))
    train, validation = ("".join(p.text for p in pieces if p.held_out is held_out) for held_out in (False, True))
    return train, validation


def _program(tmp_path: Path, body: str) -> list[str]:
    """Return the command line of a process that prepares two megabytes of text."""
    (tmp_path / "text").write_bytes(b"to be or not to be\n" * 100_000)
    return [sys.executable, "-c", START + body, str(tmp_path / "text"), str(tmp_path / "cache")]


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
    train, validation = split_text(topics, config.validation_fraction)
    assert isinstance(prepared.train, np.memmap)
    assert prepared.train.dtype == prepared.validation.dtype == np.uint16
    assert prepared.tokenizer.decode(prepared.train.tolist()) == train
    assert prepared.tokenizer.decode(prepared.validation.tolist()) == validation


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


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of a process")
def test_a_disk_that_is_full_half_way_is_told_and_left_clean(tmp_path: Path) -> None:
    """The real thing but for its name: the system lets no file grow past a limit, as it does on a full disk."""
    done = subprocess.run(_program(tmp_path, FULL_DISK), capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout == f"{tmp_path / 'cache'}: cannot write: File too large: set MINIGPT_CACHE to a folder\n"
    assert not list((tmp_path / "cache" / "prepared").iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_what_a_killed_run_leaves_is_no_data_and_is_removed_in_the_end(tmp_path: Path) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen(_program(tmp_path, STOP_HALF_WAY), stdin=pipe, stdout=pipe, text=True, cwd=ROOT) as run:
        assert run.stdout
        assert run.stdout.readline() == "half\n"
        run.send_signal(signal.SIGKILL)
    (aside,) = (tmp_path / "cache" / "prepared").iterdir()
    corpus = load_corpus(str(tmp_path / "text"))
    prepared = prepare(DataConfig(), corpus, tmp_path / "cache")
    assert_same(prepared, encode_splits(DataConfig(), corpus, prepared.tokenizer))
    assert aside.exists()  # another run may be at it
    os.utime(aside, (0, 0))
    prepare(CHAR, corpus, tmp_path / "cache")
    assert not aside.exists()


def test_a_text_that_changes_while_it_is_encoded_leaves_nothing_behind(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("first\n" * 1000)

    def grow(what: str, _done: int, _total: int) -> None:
        if what == "encoding":
            log.write_text("first\n" * 1000 + "last\n")

    with pytest.raises(CorpusError, match="log: changed while it was read: train on a copy of it"):
        prepare(DataConfig(), load_corpus(str(log), progress=grow), tmp_path)
    assert not list((tmp_path / "prepared").iterdir())


def test_a_long_text_gives_its_merges_by_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "MERGE_SAMPLE_BYTES", 200_000)
    text = "".join(f"{half} " * 150_000 for half in ("aaab", "ccd"))
    corpus = Corpus(name="halves", documents=(text,))
    tokenizer = prepare(DataConfig(tokenizer="bpe", vocab_size=262), corpus, tmp_path).tokenizer
    assert len(tokenizer.encode(" aaab ccd")) < 9  # of both halves


def test_memory_makes_no_other_data(tmp_path: Path) -> None:
    first = prepare(CHAR, CORPUS, tmp_path)
    inode = only_folder(tmp_path).stat().st_ino
    assert_same(prepare(CHAR.replace(memory_mb=1000), CORPUS, tmp_path), first)
    assert only_folder(tmp_path).stat().st_ino == inode


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
