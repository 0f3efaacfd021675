"""However a text is cut, and however many processes encode it, its ids are the same."""

import hashlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fleet.waiting import PATIENCE_S
from training.data import encoding
from training.data.encoding import num_processes, open_encoder
from training.data.pieces import Piece, read_pieces
from training.errors import CorpusError
from training.tokenizers.base import Tokenizer
from training.tokenizers.loading import train_tokenizer

WORDS = ("the", "quick", "fox’s", "3.11", "\n\n", "    pass", "他们说。", "naïve,", "don't", "\t", "...")
MB = 2**20

ORPHANS = """
import sys
import psutil
from training.data.encoding import open_encoder
from training.tokenizers.char import CharTokenizer

if __name__ == "__main__":
    with open_encoder(CharTokenizer("ab"), 2):
        print(*(child.pid for child in psutil.Process().children()), flush=True)
        sys.stdin.read()
"""


@pytest.fixture(scope="session", params=["char", "bpe"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    texts = [make_text(20_000, seed) for seed in range(3)]
    return train_tokenizer(request.param, texts, 320 if request.param == "bpe" else None)


@pytest.fixture
def documents(tmp_path: Path) -> list[str | Path]:
    """Two megabytes in one file, and small texts before and after it."""
    (tmp_path / "large").write_text(make_text(2 * MB, seed=1), "utf-8")
    (tmp_path / "empty").touch()
    return ["first " * 10, tmp_path / "empty", tmp_path / "large", "last"]


def make_text(num_chars: int, seed: int) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choices(WORDS, k=num_chars // 4))[:num_chars]


def pieces_of(documents: list[str | Path], piece_bytes: int) -> list[Piece]:
    return list(read_pieces(documents, hashlib.sha256().update, piece_bytes))


def encode(tokenizer: Tokenizer, pieces: list[Piece], processes: int) -> bytes:
    with open_encoder(tokenizer, processes) as encode_pieces:
        return b"".join(part.ids for part in encode_pieces(pieces))


def encode_whole(tokenizer: Tokenizer, documents: list[str | Path]) -> bytes:
    texts = [text if isinstance(text, str) else text.read_text("utf-8") for text in documents]
    ids = [[tokenizer.end_of_text_id, *tokenizer.encode(text)] for text in texts if text]
    return np.array([id_ for part in ids for id_ in part][1:], "<u2").tobytes()


@pytest.mark.parametrize(("processes", "piece_bytes"), [(1, 5000), (1, MB), (2, 5000), (3, 100_000)])
def test_ids_depend_on_neither_processes_nor_pieces(
    tokenizer: Tokenizer, documents: list[str | Path], processes: int, piece_bytes: int
) -> None:
    pieces = pieces_of(documents, piece_bytes)
    assert encode(tokenizer, pieces, processes) == encode_whole(tokenizer, documents)


@given(
    texts=st.lists(st.text(alphabet="ab é3.'s\n\u3000他。", max_size=30) | st.text(max_size=30), max_size=4),
    piece_bytes=st.integers(1, 40),
)
def test_any_documents_in_pieces_of_any_size(tokenizer: Tokenizer, texts: list[str], piece_bytes: int) -> None:
    digest = hashlib.sha256()
    pieces = list(read_pieces(texts, digest.update, piece_bytes))
    assert encode(tokenizer, pieces, 1) == encode_whole(tokenizer, list(texts))
    assert "".join(piece.text for piece in pieces) == "".join(texts)
    assert digest.digest() == hashlib.sha256(b"\xff".join(filter(None, map(str.encode, texts)))).digest()


def test_a_file_is_read_in_pieces_of_about_the_size_asked_for(documents: list[str | Path]) -> None:
    sizes = [piece.num_bytes for piece in pieces_of(documents[2:3], 10_000)]
    assert sum(sizes) == documents[2].stat().st_size  # type: ignore[union-attr]
    assert max(sizes) <= 10_100


def test_a_text_without_a_place_to_cut_stays_whole() -> None:
    assert [len(piece.text) for piece in pieces_of(["GATTACA" * 10_000 + " end"], 1000)] == [70_000, 4]


def test_characters_and_bytes_are_counted(tokenizer: Tokenizer) -> None:
    with open_encoder(tokenizer, 1) as encode_pieces:
        (part,) = encode_pieces(pieces_of(["né", "a"], MB))
    assert (part.num_chars, part.num_bytes) == (3, 4)


def test_short_texts_start_no_process() -> None:
    assert num_processes(encoding.WORTH_PROCESSES_BYTES - 1, memory_mb=10_000) == 1


def test_processes_are_as_many_as_processors_and_memory_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert num_processes(2**40, memory_mb=256) == 1
    assert num_processes(2**40, memory_mb=512) == 4
    assert num_processes(2**40, memory_mb=1_000_000) == 64


def test_a_process_that_is_killed_is_told_in_one_line(tokenizer: Tokenizer) -> None:
    with open_encoder(tokenizer, 2) as encode_pieces:
        for child in multiprocessing.active_children():
            child.kill()
            child.join()
        with pytest.raises(CorpusError, match=r"has died: is data\.memory_mb more than is free\?") as refused:
            list(encode_pieces(pieces_of(["text"], MB)))
    assert "\n" not in str(refused.value)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(ORPHANS)
    command = [sys.executable, str(tmp_path / "main.py")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=Path(__file__).parents[3]) as main:
        assert main.stdout
        workers = [psutil.Process(int(pid)) for pid in main.stdout.readline().split()]
        main.send_signal(signal.SIGKILL)
    assert len(workers) >= 2
    assert not psutil.wait_procs(workers, timeout=PATIENCE_S)[1]
