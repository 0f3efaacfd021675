import codecs
import hashlib
import os
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data import corpus as corpora
from training.data.corpus import Corpus, default_cache_dir, load_corpus
from training.errors import CorpusError

PLAY = b"ROMEO:\r\nIs the day so young?\n"


def texts_of(corpus: Corpus) -> list[str]:
    """Return the documents, read from their files."""
    texts = list[str]()
    for piece in corpus.pieces():
        if piece.opens_document or not texts:
            texts.append("")
        texts[-1] += piece.text
    return texts


def split_text(corpus: Corpus, validation_fraction: float) -> tuple[str, str]:
    """Return the text to train on, and the one held out."""
    pieces = list(corpus.split(validation_fraction))
    train, validation = ("".join(p.text for p in pieces if p.held_out is held_out) for held_out in (False, True))
    return train, validation


class Remote:
    """A server that has one text to give, until it is gone."""

    def __init__(self) -> None:
        remote = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                remote.num_requests += 1
                self.send_response(200 if remote.body else 404)
                self.send_header("Content-Length", str(len(remote.body)))
                self.end_headers()
                self.wfile.write(remote.body)

            def log_message(self, *_: object) -> None:
                pass

        self.body = PLAY
        self.num_requests = 0
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/input.txt"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Iterator[Remote]:
    """Stands for the public address of tinyshakespeare, with a text of its own."""
    remote = Remote()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(corpora, "TINYSHAKESPEARE_URL", remote.url)
    monkeypatch.setattr(corpora, "TINYSHAKESPEARE_SHA256", hashlib.sha256(PLAY).hexdigest())
    yield remote
    remote.server.shutdown()
    remote.server.server_close()


def test_a_download_is_kept(remote: Remote, tmp_path: Path) -> None:
    first = load_corpus("tinyshakespeare", cache_dir=tmp_path)
    remote.body = b""
    assert load_corpus("tinyshakespeare", cache_dir=tmp_path) == first
    assert remote.num_requests == 1
    assert first.name == "tinyshakespeare"
    assert texts_of(first) == [PLAY.decode()]


def test_a_damaged_download_is_fetched_again(remote: Remote, tmp_path: Path) -> None:
    first = load_corpus("tinyshakespeare", cache_dir=tmp_path)
    next(tmp_path.rglob("*.txt")).write_bytes(b"damaged")
    assert load_corpus("tinyshakespeare", cache_dir=tmp_path) == first
    assert remote.num_requests == 2


def test_another_text_at_the_address_is_refused_and_not_kept(remote: Remote, tmp_path: Path) -> None:
    remote.body = b"<html>moved</html>"
    with pytest.raises(CorpusError, match="holds another text than expected: give a text with --data FILE"):
        load_corpus("tinyshakespeare", cache_dir=tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_address_that_is_gone_is_told_in_one_line(remote: Remote, tmp_path: Path) -> None:
    remote.body = b""
    with pytest.raises(CorpusError, match="cannot be fetched: give a text with --data FILE") as refused:
        load_corpus("tinyshakespeare", cache_dir=tmp_path)
    assert "\n" not in str(refused.value)


def test_no_network_is_told_with_the_remedies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket() as listener:  # bound, not listening: connections are refused
        listener.bind(("127.0.0.1", 0))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(corpora, "TINYSHAKESPEARE_URL", f"http://127.0.0.1:{listener.getsockname()[1]}/input.txt")
        with pytest.raises(CorpusError, match=r"--data FILE, or --set data\.corpus=pydoc-topics"):
            load_corpus("tinyshakespeare", cache_dir=tmp_path)


def test_a_cache_that_cannot_be_written_is_no_network_problem(remote: Remote, tmp_path: Path) -> None:
    (tmp_path / "corpora").write_text("a file where a folder should be")
    with pytest.raises(CorpusError, match="set MINIGPT_CACHE to a folder"):
        load_corpus("tinyshakespeare", cache_dir=tmp_path)
    assert remote.num_requests == 0


def test_tinyshakespeare_is_split_as_everybody_splits_it(tinyshakespeare: Path) -> None:
    corpus = load_corpus("tinyshakespeare", data=tinyshakespeare)
    train, validation = split_text(corpus, 0.1)
    assert corpus.name == "tinyshakespeare"
    assert corpus.sha256 == corpora.TINYSHAKESPEARE_SHA256
    assert (len(train), len(validation)) == (1_003_854, 111_540)
    assert train + validation == tinyshakespeare.read_bytes().decode()


def test_data_replaces_the_corpus_of_the_preset(tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_bytes(PLAY)
    corpus = load_corpus("tinyshakespeare", data=mine)
    assert texts_of(corpus) == [PLAY.decode()]
    assert load_corpus(corpus.name) == corpus


def test_python_brings_a_corpus() -> None:
    corpus = load_corpus("pydoc-topics")
    assert len(corpus.documents) > 50
    assert load_corpus(corpus.name) == corpus


def test_a_folder_is_its_visible_files_in_order(tmp_path: Path) -> None:
    texts = {"b.md": "third", "a/z.txt": "second", "a/b/y": "first", ".git/config": "no", "a/.x": "no", "empty": ""}
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "again").symlink_to(tmp_path)
    assert texts_of(load_corpus(str(tmp_path))) == ["first", "second", "third"]


def test_the_text_is_kept_as_it_is_but_for_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes("\ufeffa\r\n\ufeff\0é\n".encode())
    assert texts_of(load_corpus(str(tmp_path / "text"))) == ["a\r\n\ufeff\0é\n"]


def test_the_hash_is_of_the_file_and_knows_where_documents_end() -> None:
    def hash_of(*documents: str) -> str:
        return Corpus(name="any", documents=documents).sha256

    assert hash_of("é") == hashlib.sha256("é".encode()).hexdigest()
    assert len({hash_of("ab"), hash_of("a", "b"), hash_of("b", "a"), hash_of("aÿb"), hash_of("a\0b")}) == 5


@given(documents=st.lists(st.text(min_size=1), min_size=1), percent=st.integers(1, 99))
def test_a_split_loses_nothing_and_cuts_at_the_share(documents: list[str], percent: int) -> None:
    corpus = Corpus(name="any", documents=tuple(documents))
    train, validation = split_text(corpus, percent / 100)
    assert train + validation == "".join(documents)
    assert len(train) == corpus.num_train_chars(percent / 100) == (100 - percent) * len(train + validation) // 100
    pieces = list(corpus.split(percent / 100))
    assert all(piece.text for piece in pieces)
    for held_out in (False, True):
        assert not next(piece for piece in pieces if piece.held_out is held_out or not train).opens_document


def refused_text(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / "text"
    if kind == "empty file":
        path.write_bytes(b"")
    elif kind == "only a byte order mark":
        path.write_bytes(b"\xef\xbb\xbf")
    elif kind == "empty folder":
        path.mkdir()
    elif kind == "name too long":
        path = tmp_path / ("x" * 300)
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "text: No such file or directory"),
        ("empty file", "text: no text in it"),
        ("only a byte order mark", "text: no text in it"),
        ("empty folder", "text: no text in it"),
        ("name too long", "x: File name too long"),
    ],
)
def test_a_text_that_is_none_is_refused_with_the_choices(tmp_path: Path, kind: str, reason: str) -> None:
    with pytest.raises(CorpusError, match=f"{reason}: a corpus is tinyshakespeare, pydoc-topics, or the path of"):
        load_corpus(str(refused_text(tmp_path, kind)))


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["text", "folder"])
def test_a_text_that_may_not_be_read_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "text").write_text("secret")
    (tmp_path / "folder").mkdir()
    (tmp_path / name).chmod(0)
    with pytest.raises(CorpusError, match=f"{name}: Permission denied"):
        load_corpus(str(tmp_path))


def test_what_is_no_utf8_is_refused_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"fine")
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    with pytest.raises(CorpusError, match=r"b\.txt: not UTF-8 at byte 3: convert it"):
        load_corpus(str(tmp_path))


def test_a_place_that_is_no_utf8_is_counted_from_the_start_of_the_file(tmp_path: Path) -> None:
    place = 300_003
    (tmp_path / "big").write_bytes(codecs.BOM_UTF8 + ("é wörd" * 100_000).encode()[: place - 3] + b"\xff and so on")
    with pytest.raises(CorpusError, match=rf"big: not UTF-8 at byte {place}: "):
        load_corpus(str(tmp_path / "big"))


def test_a_character_that_the_end_of_a_file_cuts_is_no_utf8(tmp_path: Path) -> None:
    (tmp_path / "cut").write_bytes("a word €".encode()[:-1])
    with pytest.raises(CorpusError, match="cut: not UTF-8 at byte 7: "):
        load_corpus(str(tmp_path / "cut"))


@pytest.mark.parametrize("change", [b"ROMEO: no!\n", PLAY + b"and more\n", PLAY[:-1] + b"."])
def test_a_text_that_changes_while_it_is_read_is_refused(tmp_path: Path, change: bytes) -> None:
    (tmp_path / "log").write_bytes(PLAY)
    corpus = load_corpus(str(tmp_path / "log"))
    (tmp_path / "log").write_bytes(change)
    with pytest.raises(CorpusError, match="log: changed while it was read: train on a copy of it"):
        list(corpus.pieces())


def test_a_text_that_goes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(PLAY)
    corpus = load_corpus(str(tmp_path / "text"))
    (tmp_path / "text").unlink()
    with pytest.raises(CorpusError, match="text: No such file"):
        list(corpus.split(0.1))


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes in folders")
def test_a_pipe_is_read_once_and_kept(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(PLAY,))
    writer.start()
    corpus = load_corpus(str(tmp_path / "pipe"))
    writer.join()
    assert texts_of(corpus) == texts_of(corpus) == [PLAY.decode()]


def test_each_pass_over_a_text_tells_how_far_it_is(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"word " * 50_000)
    told = list[tuple[str, int, int]]()
    corpus = load_corpus(str(tmp_path / "text"), progress=lambda *progress: told.append(progress))
    list(corpus.split(0.1, "encoding"))
    for what in ("reading", "encoding"):
        done = [done for name, done, total in told if name == what and total == 250_000]
        assert len(done) > 2
        assert done == sorted(done)
        assert done[-1] == 250_000


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv("MINIGPT_CACHE")
    assert "minigpt" in str(default_cache_dir())
